"""The discrete Gaussian, ``P(X = k)`` proportional to ``exp(-k**2 / (2 std**2))``: by table, and exactly.

The table is Walker's alias method. A word of 64 bits picks a column and compares its other bits with the
column's threshold; only where these are equal, which leaves the outcome open, another 64 bits are compared.
Probabilities are computed to 60 digits and thresholds kept to at least 112 bits, so what remains is the tail
beyond 14 std, and rounding: in total variation below 2**-100 a draw.
"""

from __future__ import annotations

import functools
import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ..errors import PrivacyParameterError
from ..random import Stream

__all__ = ["LARGEST_STD", "discrete_gaussian", "exact_discrete_gaussian"]

LARGEST_STD = 2048.0
"""Beyond it the table leaves the cache; `rounded_gaussian` serves wide noise."""
_BLOCK = 1 << 14
_TAIL = 14


def discrete_gaussian(n: int, std: float, stream: Stream) -> npt.NDArray[np.int64]:
    """Draw `n` integers of the discrete Gaussian by table.

    Guarantees:
        - In total variation a draw is within 2**-100 of the ideal: for a million values in a million
          releases that adds less than 2**-60 to delta.

    Args:
        n: How many.
        std: Its parameter sigma, in (0, `LARGEST_STD`]; the standard deviation, up to 1e-8 from sigma = 1 on.
        stream: Randomness: 64 bits a draw, 128 where these leave the outcome open.

    Raises:
        PrivacyParameterError: If `std` is out of range.
    """
    if not 0 < std <= LARGEST_STD:
        raise PrivacyParameterError(
            f"Expected std in (0, {LARGEST_STD:g}], got std={std}. Use rounded_gaussian for wider noise."
        )
    bits, high, low, jump = _table(std)
    shift, least = np.uint64(64 - bits), -(1 << (bits - 1))
    mask = np.uint64((1 << (64 - bits)) - 1)
    draws = np.empty(n, np.int64)
    columns, limits = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.uint64)
    jumps = np.empty(_BLOCK, np.int64)
    for start in range(0, n, _BLOCK):
        words = stream.uint64(min(_BLOCK, n - start))
        column, limit, add = columns[: words.size], limits[: words.size], jumps[: words.size]
        np.right_shift(words, shift, out=column.view(np.uint64))
        np.bitwise_and(words, mask, out=words)
        np.take(high, column, out=limit, mode="wrap")
        np.take(jump, column, out=add, mode="wrap")
        goes = words >= limit
        for i in np.flatnonzero(words == limit):
            goes[i] = bool(stream.uint64(1)[0] >= low[column[i]])
        np.multiply(add, goes, out=add)
        out = draws[start : start + words.size]
        np.add(column, add, out=out)
        np.add(out, least, out=out)
    return draws


@functools.lru_cache(maxsize=16)
def _table(
    std: float,
) -> tuple[int, npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Alias table: bits of a column, thresholds in two parts, and how far the alias is from the column."""
    bits = max(4, math.ceil(math.log2(2 * _TAIL * std + 2)))
    size, scale = 1 << bits, 128 - bits
    unit = 1 << scale
    left = _weights(std, size, unit)
    alias = list(range(size))
    small = [i for i in range(size) if left[i] < unit]
    large = [i for i in range(size) if left[i] >= unit]
    while small and large:
        i, j = small.pop(), large[-1]
        alias[i] = j
        left[j] -= unit - left[i]
        if left[j] < unit:
            small.append(large.pop())
    # A full column never leaves to its alias, which is itself; its threshold need not be right.
    thresholds = [min(weight, unit - 1) for weight in left]
    high = np.array([t >> 64 for t in thresholds], np.uint64)
    low = np.array([t & (2**64 - 1) for t in thresholds], np.uint64)
    return bits, high, low, np.array(alias, np.int64) - np.arange(size)


def _weights(std: float, size: int, unit: int) -> list[int]:
    """Probabilities of ``-size/2 .. size/2 - 1`` in units of ``1 / (size * unit)``; they sum to one."""
    with localcontext() as context:
        context.prec = 60
        inverse = 1 / (2 * Decimal(std) ** 2)
        masses = [(-(k * k) * inverse).exp() for k in range(size // 2 + 1)]
        total = masses[0] + 2 * sum(masses[1 : size // 2])
        positive = [int(mass / total * size * unit) for mass in masses]
    weights = [0, *positive[size // 2 - 1 : 0 : -1], *positive[: size // 2]]
    # What rounding down left over, less than one unit a point, goes to the most likely one.
    weights[size // 2] += size * unit - sum(weights)
    return weights


def exact_discrete_gaussian(n: int, std: Fraction, stream: Stream) -> list[int]:
    """Draw by rational arithmetic alone, one at a time: slow, and without any error.

    Args:
        n: How many.
        std: The parameter sigma, a positive fraction.
        stream: Randomness.

    Raises:
        PrivacyParameterError: If `std` is not positive.

    References:
        Canonne, Kamath, Steinke (2020), https://arxiv.org/abs/2004.00010, Algorithms 1 to 3.
    """
    if std <= 0:
        raise PrivacyParameterError(f"Expected std > 0, got std={std}.")
    scale = math.floor(std) + 1
    draws: list[int] = []
    while len(draws) < n:
        candidate = _discrete_laplace(scale, stream)
        off = abs(candidate) - std * std / scale
        if _bernoulli_exp(off * off / (2 * std * std), stream):
            draws.append(candidate)
    return draws


def _discrete_laplace(scale: int, stream: Stream) -> int:
    """``P(k)`` proportional to ``exp(-|k| / scale)``: their Algorithm 2."""
    while True:
        part = _below(scale, stream)
        if not _bernoulli_exp(Fraction(part, scale), stream):
            continue
        whole = 0
        while _bernoulli_exp(Fraction(1), stream):
            whole += 1
        size, negative = part + scale * whole, bool(_below(2, stream))
        if size or not negative:
            return -size if negative else size


def _bernoulli_exp(gamma: Fraction, stream: Stream) -> bool:
    """True with probability ``exp(-gamma)``: their Algorithm 1."""
    while gamma > 1:
        if not _bernoulli_exp(Fraction(1), stream):
            return False
        gamma -= 1
    k = 1
    while _below(gamma.denominator * k, stream) < gamma.numerator:
        k += 1
    return k % 2 == 1


def _below(bound: int, stream: Stream) -> int:
    """A uniform integer in [0, bound), by rejection."""
    bits = (bound - 1).bit_length()
    words = -(-bits // 64)
    while True:
        value = int.from_bytes(stream.uint64(words).astype("<u8").tobytes(), "little")
        value &= (1 << bits) - 1
        if value < bound:
            return value
