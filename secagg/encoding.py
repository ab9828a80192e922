"""Encoding: one client's values as 64-bit words whose sum over clients decodes to the reduced values.

`secagg.layout` says where each lane lies and why none overflows, `secagg.blocks` how values become lanes.
Here a vector is put together from its fields and taken apart again, in one go or piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .blocks import (
    Given,
    Target,
    add_levels,
    decode_run,
    decoded_dtype,
    encode_run,
    refusal,
    refusal_not_finite,
    refusal_outside,
)
from .blocks import Rounding as Rounding
from .blocks import Words as Words
from .errors import EncodingError, SchemaError
from .layout import BLOCK, COUNT_WORD, HEADER_WORDS, ZERO_WORD, Run, largest_weight, lay_out
from .reductions import Adaptive, Bounded, MaskedReduction
from .reductions.base import NOT_FINITE, at, first_not_finite, outside
from .schema import Schema


@dataclass(frozen=True)
class Reduced:
    """What a sum of encoded vectors says.

    Attributes:
        values: Reduced values by field: numpy arrays, Python numbers and truth values for scalars.
        clipped: Values that were clipped, over all clients, by field that clips.
        bounds: Bounds of the next round, by adaptive field.
    """

    values: dict[str, Any]
    clipped: dict[str, int]
    bounds: dict[str, float]


class Encoding:
    """Layout of one round's vector, with both directions of the code.

    Guarantees:
        - No lane of a sum over at most `num_clients` encoded vectors carries into its neighbour.
        - Decoding the sum of n encoded vectors differs from `reduce_clear` of their values by at most
          `error_bound`, if no value was clipped; integers and counts are exact, truth values are wrong with
          a probability of 2^-64 a word.
        - Encoding and decoding need less than 4 MB beyond their input and output (and one copy of an array
          that is not contiguous, a number for each bin of a histogram and each entry of an extremum, of a
          mean of integers, and of each power of moments).

    Args:
        schema: Fields; those whose shape was never given hold scalars.
        num_clients: Largest number of vectors that will be added.

    Raises:
        SchemaError: If a lane needs more than 64 bits, or an argument is of another type.

    Example:
        >>> import numpy as np
        >>> from secagg import Encoding, Schema, summed
        >>> encoding = Encoding(Schema(x=summed(1.0, shape=(3,))), num_clients=8)
        >>> rounding = np.random.default_rng()  # no secrecy rests on how values are rounded
        >>> total = sum(encoding.encode({"x": [0.0, 1.0, -1.0]}, rounding) for _ in range(8))
        >>> encoding.decode(total, 8).values["x"].tolist()
        [0.0, 8.0, -8.0]
    """

    def __init__(self, schema: Schema, num_clients: int) -> None:
        if not isinstance(schema, Schema):
            raise SchemaError(f"Expected a Schema, got {type(schema).__name__}. Wrap it: Schema(fields).")
        if isinstance(num_clients, bool) or not isinstance(num_clients, int) or num_clients < 1:
            raise SchemaError(f"Expected num_clients to be a positive integer, got {num_clients!r}.")
        self.schema = schema
        self.num_clients = num_clients
        self.runs: tuple[Run, ...] = tuple(lay_out(schema, num_clients))
        self.words: int = HEADER_WORDS + sum(run.words for run in self.runs)

    def __repr__(self) -> str:
        return f"Encoding({self.schema!r}, num_clients={self.num_clients}, words={self.words})"

    def error_bound(self, field: str, n: int) -> float | NDArray[np.float64]:
        """Largest error of a decoded entry of `field` over `n` clients, in its units, if none was clipped.

        One quantum a client for a sum (a mean divides it by n again), and float64's round-off; one bin for
        a quantile, one level for an extremum. An array, where entries differ in it.
        """
        reduction = self.schema.masked[field]
        return reduction.error_bound(n, largest_weight(self.schema, reduction))

    def encode(self, values: Mapping[str, Any], rounding: Rounding) -> Words:
        """Encode one client's values.

        Args:
            values: One value per masked field; `local` fields may be present and are not read.
            rounding: Uniform draws for stochastic rounding. No secrecy rests on them.

        Returns:
            Fresh words, shape ``(words,)``.

        Raises:
            EncodingError: If a field is missing, unknown, of the wrong shape or type, holds NaN or infinity,
                or an integer is out of its range. Names the field, never a value.
        """
        given = self._given(values)
        words = np.zeros(self.words, np.uint64)
        for _ in self._pieces(given, rounding, lambda low, high: words[low:high]):
            pass
        return words

    def stream(
        self, values: Mapping[str, Any], rounding: Rounding, words_per_chunk: int = 1 << 17
    ) -> Iterator[Words]:
        """Encode one client's values chunk by chunk: what `encode` returns, in order, never whole in memory.

        Every value is verified before the first chunk, in a pass of its own, so that an error comes while
        nothing was sent. The values must not change until the last chunk; where they do and can no longer
        be carried, the iterator raises.

        Args:
            values: As for `encode`. Arrays may be `numpy.memmap`; they are read block by block.
            rounding: As for `encode`.
            words_per_chunk: Words of each chunk but the last.

        Returns:
            Iterator over fresh arrays.

        Raises:
            EncodingError: As `encode` does, and if `words_per_chunk` is no positive integer.
        """
        if isinstance(words_per_chunk, bool) or not isinstance(words_per_chunk, int) or words_per_chunk < 1:
            raise EncodingError(
                f"Expected words_per_chunk to be a positive integer, got {words_per_chunk!r}."
            )
        given = self._given(values)
        for run in self.runs:
            _verify_range(run, given[run.field])
        return self._chunks(given, rounding, words_per_chunk)

    def _chunks(self, given: Mapping[str, Given], rounding: Rounding, size: int) -> Iterator[Words]:
        scratch = np.empty(max(BLOCK, HEADER_WORDS), np.uint64)

        def blank(low: int, high: int) -> Words:
            scratch[: high - low] = 0
            return scratch[: high - low]

        left = self.words
        chunk, filled = np.empty(min(size, left), np.uint64), 0
        for piece in self._pieces(given, rounding, blank):
            taken = 0
            while taken < piece.size:
                count = min(piece.size - taken, chunk.size - filled)
                chunk[filled : filled + count] = piece[taken : taken + count]
                taken, filled = taken + count, filled + count
                if filled == chunk.size:
                    left -= filled
                    yield chunk
                    chunk, filled = np.empty(min(size, left), np.uint64), 0

    def add_levels(self, words: Words, field: str, levels: Any, kind: str = "value") -> None:
        """Add integers, such as noise, to the lanes of one client's encoded values, in place.

        The guard bits of a field are the room for all that a client adds to a lane, so call it once a field.
        One level is worth `MaskedReduction.quantum_of` in value units; where clients weigh, it is a level of
        the weighed sum.

        Args:
            words: What `encode` returned, or the sum of it and a mask.
            field: Name of the field.
            levels: One integer a lane: shape ``(lanes,)``, or the shape of the field's value.
            kind: Kind of lanes, such as ``"power 1"`` of moments.

        Raises:
            EncodingError: If there are no such lanes, the integers are not one a lane, or one is beyond the
                room of the guard bits; nothing is added then.
        """
        run = next((run for run in self.runs if (run.field, run.kind) == (field, kind)), None)
        if run is None or run.carrier not in ("fixed", "rounded", "integer"):
            raise EncodingError(f"Expected a field with lanes of levels, got {field!r}, {kind!r}.")
        array = np.asarray(levels)
        if words.shape != (self.words,) or words.dtype != np.uint64:
            raise EncodingError(
                f"Expected {self.words} uint64 words, got {words.dtype} of shape {words.shape}."
            )
        if array.dtype.kind != "i" or array.size != run.size:
            raise EncodingError(
                f"Field {field!r}: expected {run.size} signed integers, one a lane, got {array.dtype} of "
                f"shape {array.shape}."
            )
        add_levels(run, words, np.ascontiguousarray(array.reshape(-1), np.int64))

    def _pieces(self, given: Mapping[str, Given], rounding: Rounding, target: Target) -> Iterator[Words]:
        """All words in order, filled piece by piece: the one code behind `encode` and `stream`."""
        header = target(0, HEADER_WORDS)
        header[COUNT_WORD] = 1
        yield header
        for run in self.runs:
            yield from encode_run(run, given[run.field], rounding, target)

    def _given(self, values: Mapping[str, Any]) -> dict[str, Given]:
        """One client's values by field, every one checked for shape and type before any is used."""
        masked = self.schema.masked
        carried = set(masked) | {name for name, field in self.schema.items() if field.kind == "local"}
        if unknown := sorted(set(map(str, values)) - carried):
            raise EncodingError(
                f"Expected values of the masked fields {list(masked)}, got also {unknown}. Values of same() "
                "and public() fields are declared when the round opens."
            )
        arrays = {}
        for name, field in masked.items():
            if name not in values:
                raise EncodingError(
                    f"Expected a value of field {name!r}, got {sorted(map(str, values))}. Give each masked "
                    "field one."
                )
            arrays[name] = _arranged(name, field, values[name])
        return {
            name: Given(field, arrays[name], self._weight(field, arrays)) for name, field in masked.items()
        }

    def _weight(self, field: MaskedReduction, arrays: Mapping[str, NDArray[Any]]) -> int:
        """This client's weight; refused here if out of range, before it is used."""
        if field.weighed_by is None:
            return 1
        weight, at_most = int(arrays[field.weighed_by].item()), largest_weight(self.schema, field)
        if not 0 <= weight <= at_most:
            raise refusal(field.weighed_by, outside(0, at_most))
        return weight

    def decode(self, total: Words, n: int, out: Mapping[str, NDArray[Any]] | None = None) -> Reduced:
        """Decode a sum of encoded vectors.

        Args:
            total: Sum modulo 2^64 of the words of `n` clients, shape ``(words,)``; may be a `numpy.memmap`.
            n: Number of clients in the sum.
            out: Arrays that receive the results of some fields, by name; may be `numpy.memmap`. Contiguous,
                of the result's shape and dtype (float32 in place of float64 halves a large model's result).

        Returns:
            Reduced values, clip counts and the next bounds of adaptive fields.

        Raises:
            EncodingError: If the zero lane or the count lane says that `total` is not the sum of `n` vectors,
                or an array of `out` cannot hold its result.
        """
        self._verify_sum(total, n)
        held = {} if out is None else dict(out)
        self.verify_out(held)
        masked = self.schema.masked
        sums: dict[str, dict[str, NDArray[Any]]] = {name: {} for name in masked}
        clipped: dict[str, int] = {}
        bounds: dict[str, float] = {}
        for run in self.runs:
            name, field = run.field, masked[run.field]
            if run.carrier == "clipped":
                clipped[name] = int(total[run.start])
            elif run.carrier == "peak":
                assert isinstance(field, Bounded)  # noqa: S101  # our invariant: only these
                assert isinstance(field.bound, Adaptive)  # noqa: S101  # have a peak
                bounds[name] = field.bound.following(int(total[run.start]))
            else:
                direct = held[name].reshape(-1) if field.entrywise and name in held else None
                found = np.empty(run.size, decoded_dtype(run)) if direct is None else direct
                decode_run(run, total, n, field.quantum_of(run.kind), found)
                sums[name][run.kind] = found
        values: dict[str, Any] = dict.fromkeys(masked)  # In the order of the schema.
        # What weighs others is weighed by none, so it can be assembled first.
        for name, field in sorted(masked.items(), key=lambda item: item[1].weighed_by is not None):
            weight = n if field.weighed_by is None else int(values[field.weighed_by])
            values[name] = field.assemble(sums.pop(name), weight, held.get(name))
        return Reduced(values, clipped, bounds)

    def _verify_sum(self, total: Words, n: int) -> None:
        """Raise EncodingError unless `total` can be the sum of `n` encoded vectors."""
        if total.shape != (self.words,) or total.dtype != np.uint64:
            raise EncodingError(
                f"Expected {self.words} uint64 words, got {total.dtype} of shape {total.shape}."
            )
        if not 1 <= n <= self.num_clients:
            raise EncodingError(f"Expected 1..{self.num_clients} clients, got n={n}.")
        if total[ZERO_WORD] != 0:
            raise EncodingError(f"The zero lane of {n} clients is not zero: masks did not cancel.")
        if total[COUNT_WORD] != n:
            raise EncodingError(f"The count lane does not say {n}: the sum is not that of {n} clients.")

    def verify_out(self, out: Mapping[str, NDArray[Any]]) -> None:
        """Raise EncodingError unless every array can hold its field's result."""
        for name, array in out.items():
            field = self.schema.masked.get(name)
            if field is None or not field.holds:
                raise EncodingError(f"Expected out= arrays of fields whose result is an array, got {name!r}.")
            if not isinstance(array, np.ndarray):
                raise EncodingError(
                    f"Field {name!r}: expected an out= array of numpy, got {type(array).__name__}."
                )
            fits = array.shape == field.dims and array.dtype in field.holds
            if not fits or not array.flags.c_contiguous or not array.flags.writeable:
                raise EncodingError(
                    f"Field {name!r}: expected a contiguous, writable out= array of shape {field.dims} and "
                    f"dtype {' or '.join(t.__name__ for t in field.holds)}, got {array.dtype} of shape "
                    f"{array.shape}."
                )


def _arranged(name: str, field: MaskedReduction, value: Any) -> NDArray[Any]:
    """One client's value as its reduction takes it, of a shape and type that it carries."""
    if value is None:
        raise EncodingError(f"Field {name!r}: expected {field.expects}, got None. Give it a value.")
    if isinstance(value, np.ma.MaskedArray):
        raise EncodingError(f"Field {name!r}: expected an array without a mask, got one: fill what it hides.")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise EncodingError(
            f"Field {name!r}: expected an array of numbers, got {type(value).__name__}.{_as_array(value)}"
        ) from error
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        with np.errstate(over="ignore"):  # What no float64 holds becomes infinite, and is refused below.
            array = array.astype(np.float64)
    arranged = field.arranged(array)
    if arranged is None:
        undeclared = "" if field.shape is not None else ", or fill it with Schema.resolve()"
        raise EncodingError(
            f"Field {name!r}: expected {field.expects}, got shape {array.shape}. Reshape the value, or "
            f"declare shape={array.shape} with the field{undeclared}."
        )
    kinds, wanted = field.accepts
    if array.dtype.kind not in kinds and array.size:
        raise EncodingError(
            f"Field {name!r}: expected {wanted}, got dtype {array.dtype}. {field.remedy}".rstrip()
        )
    arranged = np.ascontiguousarray(arranged)
    if (why := field.refuses(arranged)) is not None:
        entry = (
            first_not_finite(arranged.reshape(-1).__getitem__, arranged.size) if why == NOT_FINITE else None
        )
        if entry is not None:
            why = at(why, tuple(int(place) for place in np.unravel_index(entry, array.shape)))
        raise refusal(name, why)
    return arranged


def _as_array(value: Any) -> str:
    """How to make an array of a tensor that gives none by itself: it records gradients, or is elsewhere."""
    return " Give it as .detach().cpu(), and bfloat16 as .float()." if hasattr(value, "detach") else ""


def _verify_range(run: Run, given: Given) -> None:
    """Raise EncodingError if a value of the run cannot be carried: a pass that encodes nothing."""
    read = run.carrier in ("fixed", "integer") and (given.field.entrywise or isinstance(given.field, Bounded))
    if not read:
        return  # Verified when it was arranged, or in range by itself.
    source = given.field.source(run.kind, given.values)
    for low in range(0, run.size, BLOCK):
        x = source(slice(low, min(low + BLOCK, run.size)))
        least, most = x.min(), x.max()
        if run.carrier == "integer" and (int(least) < run.low or int(most) > run.high):
            raise refusal_outside(run, given, low, x)
        if not (np.isfinite(least) and np.isfinite(most)):
            raise refusal_not_finite(run, given)
