"""Blocks: one client's values to lanes, and summed lanes to values, in pieces that stay in cache.

What a carrier of `secagg.reductions` means is written here: clip, round, weigh, pack, and the way back. A
piece is handed out as soon as it is full, so that a vector can be masked and sent while it is being encoded,
and a large model needs no second copy of itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import EncodingError
from .layout import BLOCK, Run
from .reductions import Bounded, MaskedReduction, Source
from .reductions.base import NOT_FINITE, at, first_not_finite, outside
from .reductions.sums import peak_level

Words: TypeAlias = NDArray[np.uint64]
Target: TypeAlias = Callable[[int, int], Words]
"""Words ``low..high`` of the vector, zero, to be filled."""


class Rounding(Protocol):
    """What stochastic rounding draws from; `numpy.random.Generator` is one. No secrecy rests on it."""

    def random(self, *, dtype: type[np.float32], out: NDArray[np.float32]) -> Any:
        """Fill `out` with independent uniform draws from [0, 1), multiples of 2^-24."""


@dataclass(repr=False)
class Given:
    """One client's values of one field, and what encoding them has shown.

    Attributes:
        field: Reduction of the field.
        values: Arranged values (see `MaskedReduction.arranged`).
        weight: This client's weight; 1 where clients weigh alike.
        clipped: How many values were clipped.
        peak: Largest absolute value over the bound, at most 1.
    """

    field: MaskedReduction
    values: NDArray[Any]
    weight: int = 1
    clipped: int = 0
    peak: float = 0.0


def encode_run(run: Run, given: Given, rounding: Rounding, target: Target) -> Iterator[Words]:
    """Fill the words of a run, piece by piece, in order."""
    if run.carrier == "clipped":
        piece = target(run.start, run.start + 1)
        piece[0] = given.clipped + given.field.clips(given.values)
        yield piece
    elif run.carrier == "peak":
        piece = target(run.start, run.start + 1)
        piece[0] = peak_level(given.peak)
        yield piece
    else:
        source = given.field.source(run.kind, given.values)
        if run.carrier == "fixed":
            yield from _fixed(run, given, source, rounding, target)
        elif run.carrier == "rounded":
            yield from _rounded(run, given, source, rounding, target)
        elif run.carrier == "integer":
            yield from _integers(run, given, source, target)
        else:
            yield from _truths(run, source, target)


def refusal(name: str, why: str) -> EncodingError:
    """A value that its field cannot carry."""
    return EncodingError(f"Field {name!r}: {why}.")


def refusal_not_finite(run: Run, given: Given) -> EncodingError:
    """NaN or infinity in a run: where the first is."""
    entry = first_not_finite(given.field.source(run.kind, given.values), run.size)
    if entry is None:  # It has been changed again since it was seen.
        return refusal(run.field, NOT_FINITE)
    return refusal(run.field, at(NOT_FINITE, given.field.index_of(entry, given.values)))


def refusal_outside(run: Run, given: Given, start: int, integers: NDArray[Any]) -> EncodingError:
    """Integers beyond a run's limits, given those from entry `start` on: where the first is."""
    why = outside(run.low, run.high)
    # A type's own limits may lie within the run's, which it cannot be compared with then.
    wrong = np.flatnonzero((integers.astype(object) < run.low) | (integers.astype(object) > run.high))
    if not given.field.entrywise or not wrong.size:
        return refusal(run.field, why)
    index = given.field.index_of(start + int(wrong[0]), given.values)
    return refusal(run.field, at(why, index) + ". Raise the limit that the field declares, or leave it out")


def _fixed(run: Run, given: Given, source: Source, rounding: Rounding, target: Target) -> Iterator[Words]:
    """Clip, scale, round, weigh and pack real values."""
    field = given.field
    assert isinstance(field, Bounded)  # noqa: S101  # our invariant: only these have levels of their own
    bound, levels = field.limit, field.levels
    scale, weight = levels / bound, given.weight
    constant = np.uint64(run.offset - weight * levels)
    size = min(BLOCK, max(1, run.words))
    level, fraction = np.empty(size, np.float64), np.empty(size, np.float32)
    coded = np.empty(size, np.uint64)
    for block, lanes in run.blocks():
        words = target(block.start, block.stop)
        for where, shift in lanes:
            x = source(where)
            t, u, q = level[: x.size], fraction[: x.size], coded[: x.size]
            low, high = float(x.min()), float(x.max())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise refusal_not_finite(run, given)
            largest = max(-low, high)
            if weight:  # What weighs nothing is in no sum, and says nothing of its bound.
                given.peak = max(given.peak, min(1.0, largest / bound))
            with np.errstate(over="ignore"):  # What overflows is out of bounds, and clipped below.
                np.multiply(x, scale, out=t, dtype=np.float64)
            if largest > bound:
                if weight:
                    most = _largest(x.dtype, bound)
                    given.clipped += int(np.count_nonzero(x > most)) + int(np.count_nonzero(x < -most))
                np.clip(t, -levels, levels, out=t)
            # ⌊t + L + u⌋ with u uniform in [0, 1) is t's upper level with the probability of its fraction. It
            # is at most 2L: t <= L + 2^-25 as the scale is rounded (L < 2^27), and u <= 1 - 2^-24 in float32.
            rounding.random(dtype=np.float32, out=u)
            t += levels
            t += u
            np.copyto(q.view(np.int64), t, casting="unsafe")
            if weight != 1:
                q *= np.uint64(weight)
            if constant:
                q += constant
            _pack(words, q, shift)
        yield words


def _largest(dtype: np.dtype[Any], bound: float) -> Any:
    """The largest value of a type that is not beyond the bound.

    numpy compares a float32 with the float32 nearest to the bound, which may be larger than the bound.
    """
    if dtype.kind != "f":
        return bound
    with np.errstate(over="ignore"):
        nearest = dtype.type(bound)
    return nearest if nearest <= np.longdouble(bound) else np.nextafter(nearest, dtype.type(0))


def _rounded(run: Run, given: Given, source: Source, rounding: Rounding, target: Target) -> Iterator[Words]:
    """Weigh, round and pack levels that may be larger than a float64 holds with 24 bits behind the point."""
    for block, lanes in run.blocks():
        words = target(block.start, block.stop)
        for where, shift in lanes:
            level = source(where) * given.weight
            below = np.floor(level)
            up = np.empty(level.size, np.float32)
            rounding.random(dtype=np.float32, out=up)
            q = below.astype(np.int64)
            q += up < level - below
            high = run.high * given.weight
            np.clip(q, run.low * given.weight, high, out=q)  # Sums of powers err in their last place.
            coded = q.view(np.uint64)
            coded += np.uint64(run.offset)
            _pack(words, coded, shift)
        yield words


def _integers(run: Run, given: Given, source: Source, target: Target) -> Iterator[Words]:
    """Verify, weigh and pack integers."""
    coded = np.empty(min(BLOCK, max(1, run.words)), np.uint64)
    for block, lanes in run.blocks():
        words = target(block.start, block.stop)
        for where, shift in lanes:
            x = source(where)
            if int(x.min()) < run.low or int(x.max()) > run.high:
                raise refusal_outside(run, given, where.start, x)
            q = coded[: x.size]
            np.copyto(q.view(np.int64), x, casting="unsafe")
            q *= np.uint64(given.weight)  # Modulo 2^64, as is the sum below: w·x + offset is in 0..top.
            q += np.uint64(run.offset)
            _pack(words, q, shift)
        yield words


def _truths(run: Run, source: Source, target: Target) -> Iterator[Words]:
    """A whole word a truth value: uniform among the words that are not zero if true, else zero."""
    for block, lanes in run.blocks():
        words = target(block.start, block.stop)
        for where, _ in lanes:
            true = source(where)
            words[true] = secret_words(int(np.count_nonzero(true)))
        yield words


def secret_words(count: int) -> Words:
    """Words that are not zero, from the operating system: secrecy rests on them, so no seed makes them."""
    words = np.frombuffer(bytearray(os.urandom(8 * count)), np.uint64)
    while (zero := np.flatnonzero(words == 0)).size:
        words[zero] = np.frombuffer(os.urandom(8 * zero.size), np.uint64)
    return words


def _pack(words: Words, lanes: Words, shift: int) -> None:
    if shift:
        np.left_shift(lanes, np.uint64(shift), out=lanes)
    target = words[: lanes.size]
    np.bitwise_or(target, lanes, out=target)


def add_levels(run: Run, words: Words, levels: NDArray[np.int64]) -> None:
    """Add an integer to each lane of a run, in place; what stays within the run's room cannot overflow."""
    if levels.size and max(-int(levels.min()), int(levels.max())) > run.room:
        raise refusal(
            run.field, f"expected added levels in ±{run.room}, the room of its guard bits, got more"
        )
    for block, lanes in run.blocks():
        for where, shift in lanes:
            # Modulo 2^64, as the sum over clients is: a lane that borrows here pays back there.
            words[block][: where.stop - where.start] += levels[where].view(np.uint64) << np.uint64(shift)


def decode_run(run: Run, total: Words, n: int, quantum: float, out: NDArray[Any]) -> None:
    """Lanes of a sum over `n` clients to values: remove n offsets, scale by the quantum.

    Args:
        run: The run.
        total: Words of the whole vector.
        n: Number of clients in the sum.
        quantum: What one level is worth, value units; not used for integers and truth values.
        out: Flat array of the run's size that receives the values.
    """
    mask, offset = np.uint64(2**run.width - 1), np.uint64(n * run.offset)
    for block, lanes in run.blocks():
        source = total[block]
        for where, shift in lanes:
            lane = source[: where.stop - where.start] >> np.uint64(shift)
            if run.carrier == "truth":
                np.not_equal(lane, 0, out=out[where])
                continue
            lane &= mask
            lane -= offset  # Modulo 2^64; the sum of levels fits int64 by the layout.
            if run.carrier == "integer":
                out[where] = lane.view(np.int64)
            else:
                np.multiply(lane.view(np.int64), quantum, out=out[where], casting="same_kind")


def decoded_dtype(run: Run) -> type[np.generic]:
    """What the values of a run are decoded to."""
    if run.carrier == "truth":
        return np.bool_
    return np.int64 if run.carrier == "integer" else np.float64
