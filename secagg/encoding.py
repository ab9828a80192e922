"""Encoding: one client's values as 64-bit words whose sum over clients decodes to the reduced values.

`secagg.layout` says where each lane lies and why none overflows. Here values are clipped to their bounds,
rounded stochastically to levels, weighed, and packed; and sums of such words are turned back into values.
Everything runs in cache-sized blocks: a large model needs no second copy of itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import EncodingError, SchemaError
from .layout import BLOCK, COUNT_WORD, HEADER_WORDS, PEAK_LEVELS, ZERO_WORD, Run, largest_weight, lay_out
from .reductions import MIN_BOUND, Adaptive, Averaged, Counted, MaskedReduction, Summed
from .schema import Schema

Words: TypeAlias = NDArray[np.uint64]


class Rounding(Protocol):
    """What stochastic rounding draws from; `numpy.random.Generator` is one. No secrecy rests on it."""

    def random(self, *, dtype: type[np.float32], out: NDArray[np.float32]) -> Any:
        """Fill `out` with independent uniform draws from [0, 1), multiples of 2^-24."""


@dataclass(frozen=True)
class Reduced:
    """What a sum of encoded vectors says.

    Attributes:
        values: Reduced values by field: float64 or int64 arrays, Python numbers for scalars.
        clipped: Values that were clipped, over all clients, by real-valued field.
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
          `error_bound`, if no value was clipped; integers are exact.
        - Encoding and decoding need less than 4 MB beyond their input and output (one copy of an array that
          is not contiguous).

    Args:
        schema: Fields; those whose shape was never given hold scalars.
        num_clients: Largest number of vectors that will be added.

    Raises:
        SchemaError: If a lane needs more than 64 bits.

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
        if isinstance(num_clients, bool) or not isinstance(num_clients, int) or num_clients < 1:
            raise SchemaError(f"Expected num_clients to be a positive integer, got {num_clients!r}.")
        self.schema = schema
        self.num_clients = num_clients
        self.runs: tuple[Run, ...] = tuple(lay_out(schema, num_clients))
        self.words: int = HEADER_WORDS + sum(run.words for run in self.runs)

    def __repr__(self) -> str:
        return f"Encoding({self.schema!r}, num_clients={self.num_clients}, words={self.words})"

    def error_bound(self, field: str, n: int) -> float:
        """Largest error of a decoded entry of `field` over `n` clients, in its units, if none was clipped.

        One quantum a client for a sum (a mean divides it by n again), and float64's round-off.
        """
        reduction = self.schema[field]
        if not isinstance(reduction, (Summed, Averaged)):
            return 0.0
        is_sum = isinstance(reduction, Summed)
        if reduction.integer:
            return 0.0 if is_sum else 1e-13 * reduction.limit
        return (n if is_sum else 1) * (reduction.quantum + 1e-13 * reduction.limit)

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
        arrays = self._verified(values)
        words = np.zeros(self.words, np.uint64)
        words[COUNT_WORD] = 1
        clipped, peak = 0, 0.0
        for run in self.runs:
            field = self.schema[run.field]
            if run.kind == "clipped":
                words[run.start] = clipped
            elif run.kind == "peak":
                # Rounded up, so that a bound derived from it is never too small.
                words[run.start] = min(PEAK_LEVELS, math.ceil(peak * PEAK_LEVELS))
            elif isinstance(field, (Summed, Averaged)):
                weight = self._weight(field, arrays)
                if field.integer:
                    low, high = -int(field.limit), int(field.limit)
                    _encode_integers(run, low, high, arrays[run.field], words, weight)
                else:
                    clipped, peak = _encode_reals(run, field, arrays[run.field], words, rounding, weight)
            elif isinstance(field, Counted):
                _encode_integers(run, 0, field.at_most, arrays[run.field], words, (1, 1))
        return words

    def _weight(self, field: Summed | Averaged, arrays: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
        """This client's weight and the largest one; refused here if out of range, before it is used."""
        if not isinstance(field, Averaged) or field.weight is None:
            return 1, 1
        weight, at_most = int(arrays[field.weight].item()), largest_weight(self.schema, field)
        if not 0 <= weight <= at_most:
            raise _out_of_range(field.weight, 0, at_most)
        return weight, at_most

    def _verified(self, values: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Flat arrays by field, every one checked for shape and type before any is used."""
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
                raise EncodingError(f"Expected a value of field {name!r}, got {sorted(map(str, values))}.")
            try:
                array = np.asarray(values[name])
            except (ValueError, TypeError, RuntimeError) as error:
                raise EncodingError(f"Field {name!r}: expected an array of numbers.") from error
            if array.shape != field.dims:
                raise EncodingError(
                    f"Field {name!r}: expected shape {field.dims}, got {array.shape}. Declare shape= with "
                    "the field or fill it with Schema.resolve()."
                )
            if array.dtype.kind not in ("iub" if field.integer else "iubf") and array.size:
                wanted = "integers (its bound is an int)" if field.integer else "real numbers"
                if isinstance(field, Counted):
                    wanted = "integers (it is counted)"
                raise EncodingError(f"Field {name!r}: expected {wanted}, got dtype {array.dtype}.")
            arrays[name] = np.ascontiguousarray(array).reshape(-1)
        return arrays

    def decode(self, total: Words, n: int) -> Reduced:
        """Decode a sum of encoded vectors.

        Args:
            total: Sum modulo 2^64 of the words of `n` clients, shape ``(words,)``.
            n: Number of clients in the sum.

        Returns:
            Reduced values, clip counts and the next bounds of adaptive fields.

        Raises:
            EncodingError: If the zero lane or the count lane says that `total` is not the sum of `n` vectors.
        """
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
        values: dict[str, Any] = {}
        clipped: dict[str, int] = {}
        bounds: dict[str, float] = {}
        for run in self.runs:
            field = self.schema[run.field]
            if run.kind == "clipped":
                clipped[run.field] = int(total[run.start])
            elif run.kind == "peak" and isinstance(field, (Summed, Averaged)):
                mean_peak = field.limit * int(total[run.start]) / (PEAK_LEVELS * n)
                bounds[run.field] = _next_bound(field, mean_peak, clipped[run.field])
            else:
                values[run.field] = _decode_values(run, field, total, n)  # type: ignore[arg-type]
        for name, field in self.schema.masked.items():
            if isinstance(field, Averaged):
                weight = n if field.weight is None else int(values[field.weight])
                values[name] = _divided(values[name], weight)
        return Reduced(values, clipped, bounds)


def _out_of_range(name: str, low: int, high: int) -> EncodingError:
    return EncodingError(f"Field {name!r}: expected integers in {low}..{high}, got one outside.")


def _encode_reals(
    run: Run,
    field: Summed | Averaged,
    values: NDArray[Any],
    words: Words,
    rounding: Rounding,
    weight: tuple[int, int],
) -> tuple[int, float]:
    """Clip, round, weigh and pack; returns how many were clipped, and the peak over the bound, at most 1."""
    bound, levels = field.limit, field.levels
    scale = levels / bound
    constant = np.uint64((weight[1] - weight[0]) * levels)
    size = min(BLOCK, max(1, run.words))
    level, fraction = np.empty(size, np.float64), np.empty(size, np.float32)
    coded = np.empty(size, np.uint64)
    clipped, peak = 0, 0.0
    for block, lanes in run.blocks():
        for where, shift in lanes:
            x = values[where]
            t, u, q = level[: x.size], fraction[: x.size], coded[: x.size]
            low, high = float(x.min()), float(x.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise EncodingError(f"Field {run.field!r}: expected finite numbers, got NaN or infinity.")
            largest = max(-low, high)
            peak = max(peak, largest)
            with np.errstate(over="ignore"):  # What overflows is out of bounds, and clipped below.
                np.multiply(x, scale, out=t, dtype=np.float64)
            if largest > bound:
                clipped += int(np.count_nonzero(x > bound)) + int(np.count_nonzero(x < -bound))
                np.clip(t, -levels, levels, out=t)
            # ⌊t + L + u⌋ with u uniform in [0, 1) is t's upper level with the probability of its fraction. It
            # is at most 2L: t <= L + 2^-25 as the scale is rounded (L < 2^27), and u <= 1 - 2^-24 in float32.
            rounding.random(dtype=np.float32, out=u)
            t += levels
            t += u
            np.copyto(q.view(np.int64), t, casting="unsafe")
            if weight != (1, 1):
                q *= np.uint64(weight[0])
                q += constant
            _pack(words[block], q, shift)
    return clipped, min(1.0, peak / bound)


def _encode_integers(
    run: Run, low: int, high: int, values: NDArray[Any], words: Words, weight: tuple[int, int]
) -> None:
    """Verify, weigh and pack integers."""
    coded = np.empty(min(BLOCK, max(1, run.words)), np.uint64)
    for block, lanes in run.blocks():
        for where, shift in lanes:
            x = values[where]
            if int(x.min()) < low or int(x.max()) > high:
                raise _out_of_range(run.field, low, high)
            q = coded[: x.size]
            np.copyto(q.view(np.int64), x, casting="unsafe")
            q *= np.uint64(weight[0])  # Modulo 2^64, as is the sum below: w·x + offset is in 0..top.
            q += np.uint64(run.offset)
            _pack(words[block], q, shift)


def _pack(words: Words, lanes: Words, shift: int) -> None:
    if shift:
        np.left_shift(lanes, np.uint64(shift), out=lanes)
    target = words[: lanes.size]
    np.bitwise_or(target, lanes, out=target)


def _decode_values(run: Run, field: MaskedReduction, total: Words, n: int) -> Any:
    """Lanes to values: remove n offsets, scale by the quantum."""
    real = isinstance(field, (Summed, Averaged)) and not field.integer
    quantum = field.quantum if isinstance(field, (Summed, Averaged)) else 1.0
    out = np.empty(run.size, np.float64 if real else np.int64)
    mask, offset = np.uint64(2**run.width - 1), np.uint64(n * run.offset)
    for block, lanes in run.blocks():
        source = total[block]
        for where, shift in lanes:
            lane = source[: where.stop - where.start] >> np.uint64(shift)
            lane &= mask
            lane -= offset  # Modulo 2^64; the sum of levels fits int64 by the layout.
            if real:
                np.multiply(lane.view(np.int64), quantum, out=out[where])
            else:
                out[where] = lane.view(np.int64)
    shaped = out.reshape(field.dims)
    return shaped.item() if field.dims == () else shaped


def _divided(total: Any, weight: int) -> Any:
    """The mean; NaN where nothing was weighed. In place where the array can hold it."""
    factor = weight or math.nan
    if isinstance(total, np.ndarray) and total.dtype == np.float64:
        total /= factor
        return total
    return total / factor


def _next_bound(field: Summed | Averaged, mean_peak: float, clipped: int) -> float:
    """The adaptive rule: deterministic in the decoded sums, so that every party derives the same bound."""
    bound = field.bound
    assert isinstance(bound, Adaptive)  # noqa: S101  # our invariant: only these have a peak run
    wanted = 2 * bound.value if clipped else max(4 * mean_peak, bound.value / 2)
    return min(bound.at_most, max(MIN_BOUND, wanted))
