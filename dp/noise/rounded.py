"""Gaussian noise rounded to integers, exactly: what a release on a lattice adds. Part of floor 3.

A draw is defined by 128 random bits and whole-number comparisons: a sign, and the 127-bit U below which the
probability of a larger magnitude lies. It rounds to the number of r >= 1 with ``U < K(r)``, where
``K(r) = floor(2**127 * P(|X| > r - 1/2))``. Boundaries are right to 2**-127 of probability, so the total
variation from the ideal rounded Gaussian is at most ``std * 2**-122``.

Floating point only saves time. A draw is taken from a float where the first 64 bits leave no doubt about the
integer: where the float is further from a boundary than its error can be. Else the other 64 bits are drawn
and the float is taken by a finer function; where that leaves a doubt too, integers decide.
"""

from __future__ import annotations

import decimal
import functools
import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ..random import Stream

__all__ = ["rounded_gaussian"]

_BLOCK = 1 << 15
"""Draws at a time: what lies between the steps stays in cache, and numpy's calls cost little each."""
_CELL_BITS = 14
_CELLS = 1 << _CELL_BITS
_LOW_BITS = np.uint64(64 - _CELL_BITS)
_LOW = np.uint64((1 << (64 - _CELL_BITS)) - 1)
_ONE = np.uint64(0x3FF << 52)
_QUADRATIC, _CUBIC = 2.0**24, 2.0**32
"""Largest standard deviations at which polynomials of degree 2 and 3 leave few draws in doubt."""
_FEW = 1 << 12


def rounded_gaussian(n: int, std: float, stream: Stream) -> npt.NDArray[np.int64]:
    """Draw `n` integers ``round(X)`` with X Gaussian of mean 0.

    Guarantees:
        - The distribution is within ``std * 2**-122`` of the ideal one, in total variation.
        - What a draw is follows from its bits by integer arithmetic; the float arithmetic of the machine
          decides only how long it takes. This rests on scipy's `ndtri` being right to 2**-47 relative.

    Args:
        n: How many.
        std: Standard deviation before rounding, in (0, 2**48).
        stream: Randomness: 64 bits a draw, 128 where the first leave a doubt.
    """
    if n < _FEW or std > _CUBIC:
        return _resolved(stream.uint64(n), std, stream)
    draws = np.empty(n, np.int64)
    doubtful, words = _from_polynomials(draws, std, stream)
    draws[doubtful] = _resolved(words, std, stream)
    return draws


def _from_polynomials(
    draws: npt.NDArray[np.int64], std: float, stream: Stream
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint64]]:
    """Fill `draws` by the cells' polynomials; return which are in doubt, and their words."""
    degree = 2 if std <= _QUADRATIC else 3
    table, error = _cells(degree)
    table = table * std
    clear = 0.5 - error * std
    value, term, cells = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK, np.int64)
    doubtful, doubtful_words = [], []
    for low in range(0, draws.size, _BLOCK):
        words = stream.uint64(min(_BLOCK, draws.size - low))
        v, t, cell = value[: words.size], term[: words.size], cells[: words.size]
        np.right_shift(words, _LOW_BITS, out=cell.view(np.uint64))
        np.bitwise_and(words, _LOW, out=words)
        # The bits below the cell's become the fraction of a float in [1, 1.25): no conversion is needed.
        np.bitwise_or(words, _ONE, out=words)
        x = words.view(np.float64)
        np.take(table[degree], cell, out=v, mode="wrap")
        for coefficients in table[degree - 1 :: -1]:
            np.multiply(v, x, out=v)
            np.take(coefficients, cell, out=t, mode="wrap")
            np.add(v, t, out=v)
        np.rint(v, out=t)
        np.copyto(draws[low : low + words.size], t, casting="unsafe")
        np.subtract(v, t, out=v)
        np.abs(v, out=v)
        np.take(clear, cell, out=t, mode="wrap")
        found = np.flatnonzero(v > t)
        doubtful.append(found + low)
        doubtful_words.append((cell[found].astype(np.uint64) << _LOW_BITS) | (words[found] & _LOW))
    return np.concatenate(doubtful), np.concatenate(doubtful_words)


@functools.cache
def _cells(degree: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Polynomials for the quantile function on each cell, and how far off each can be.

    Interpolation at the Chebyshev points of a cell of width h is off by at most the next derivative there
    times ``2 (h/4)**(degree + 1) / (degree + 1)!``; that derivative grows outwards.

    Returns:
        Coefficients, lowest first, shape ``(degree + 1, _CELLS)``; errors in standard deviations, shape
        ``(_CELLS,)``, infinite on the outermost cells.
    """
    from scipy.special import ndtri  # loaded when noise is drawn: scipy takes a while

    nodes = 0.5 + np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1)) / 2
    half = np.arange(_CELLS // 2)
    quantiles = ndtri((half[:, None] + nodes) / _CELLS)
    # The upper half mirrors the lower, where probabilities have their full precision.
    quantiles = np.concatenate([quantiles, -quantiles[::-1, ::-1]])
    powers = np.vander(1 + nodes * 2.0 ** (12 - _CELL_BITS), degree + 1, increasing=True)
    coefficients = np.asarray(np.linalg.solve(powers, quantiles.T), dtype=np.float64)
    outer = -ndtri(np.maximum(half, 1) / _CELLS)
    density = np.exp(-(outer**2) / 2) / np.sqrt(2 * np.pi)
    derivative = [(1 + 2 * outer**2) / density**3, (7 * outer + 6 * outer**3) / density**4][degree - 2]
    bound = 2 * (1 / (4 * _CELLS)) ** (degree + 1) / math.factorial(degree + 1) * derivative
    # Rounding of coefficients and Horner's steps, generously.
    error = 1.01 * bound + 2.0**-44
    error[0] = np.inf
    coefficients.flags.writeable = False
    return coefficients, np.concatenate([error, error[::-1]])


def _resolved(words: npt.NDArray[np.uint64], std: float, stream: Stream) -> npt.NDArray[np.int64]:
    """The draws that `words` begin, each with another 64 bits."""
    from scipy.special import ndtri

    further = stream.uint64(words.size)
    negative = words < np.uint64(2**63)
    tail = np.where(negative, words, ~words)
    # Where the tail's 63 bits are fewer than a float holds, the further ones give what is missing.
    probability = tail.astype(np.float64) + (further.astype(np.float64) + 0.5) * 2.0**-64
    sigmas: npt.NDArray[np.float64] = -ndtri(probability * 2.0**-64)
    magnitudes = sigmas * std
    draws = np.rint(magnitudes)
    doubtful = np.flatnonzero(np.abs(magnitudes - draws) > 0.5 - std * 2.0**-46 * (1 + sigmas))
    draws = draws.astype(np.int64)
    for i in doubtful:
        draws[i] = _exact(int(tail[i]) << 64 | int(further[i]), std, int(draws[i]))
    return np.where(negative, -draws, draws)


def _exact(bits: int, std: float, guess: int) -> int:
    """The number of r >= 1 with ``bits < K(r)``, found from a guess that is close."""
    while bits < _boundary(guess + 1, std):
        guess += 1
    while guess > 0 and bits >= _boundary(guess, std):
        guess -= 1
    return guess


def _boundary(r: int, std: float) -> int:
    """``K(r) = floor(2**127 * P(|X| > r - 1/2))``, by 70 digits.

    ``P(|X| < b) = 2 phi(b) (b + b**3/3 + b**5/15 + ...)`` with positive terms alone, so nothing cancels.
    """
    with decimal.localcontext() as context:
        context.prec = 70
        ratio = Fraction(2 * r - 1, 2) / Fraction(std)
        b = decimal.Decimal(ratio.numerator) / ratio.denominator
        square, term, total, odd = b * b, b, decimal.Decimal(0), 1
        while term > total.scaleb(-70):
            total += term
            odd += 2
            term *= square / odd
        inside = 2 * total * (-square / 2).exp() / (2 * _pi()).sqrt()
        return int((1 - inside) * 2**127)


@functools.cache
def _pi() -> decimal.Decimal:
    """Machin's formula, to 75 digits."""
    with decimal.localcontext() as context:
        context.prec = 80

        def arctan_inverse(x: int) -> decimal.Decimal:
            power = decimal.Decimal(1) / x
            total, k = power, 1
            while abs(power) > decimal.Decimal(10) ** -78:
                power /= -x * x
                k += 2
                total += power / k
            return total

        return 4 * (4 * arctan_inverse(5) - arctan_inverse(239))
