"""Statistical assertions that every package's tests share.

Each assertion is one exact (or, where it says so, normal-approximated) hypothesis test at level `ALPHA`:
a correct implementation fails it once in a million runs, and the tests that use it fix their seeds, so in
practice never. A statistical test that cannot fail proves nothing, so each use comes with its power: the
same assertion, on a sample that is wrong in the way that matters, wrapped in `assert_rejects`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

ALPHA = 1e-6
"""Probability that one assertion rejects a correct implementation."""


def assert_rejects(check: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """The power check: `check(*args)` must fail on a sample that is known to be wrong."""
    try:
        check(*args, **kwargs)
    except AssertionError:
        return
    raise AssertionError(f"{check.__name__} accepts a sample that is wrong: it has no power here.")


def assert_std(sample: ArrayLike, expected: float, *, mean: float = 0.0, alpha: float = ALPHA) -> None:
    """Two-sided chi-square test that Gaussian `sample` of known `mean` has standard deviation `expected`.

    Measured: n = 4,000 is enough to reject a standard deviation that is 10 % wrong.
    """
    x = np.asarray(sample, dtype=np.float64).ravel()
    assert x.size >= 100, f"Expected at least 100 draws, got {x.size}."
    assert np.isfinite(x).all(), "The sample holds NaN or infinities."
    statistic = float(np.sum(((x - mean) / expected) ** 2))
    low, high = stats.chi2.isf([1 - alpha / 2, alpha / 2], x.size)
    assert low <= statistic <= high, (
        f"Standard deviation {expected:.6g} expected, {np.sqrt(statistic / x.size) * expected:.6g} measured "
        f"on {x.size} draws; chi-square {statistic:.6g} outside [{low:.6g}, {high:.6g}]."
    )


def assert_mean(sample: ArrayLike, expected: float, std: float, *, alpha: float = ALPHA) -> None:
    """Two-sided z test that independent draws of known standard deviation `std` have mean `expected`.

    Exact for Gaussian draws; by the central limit theorem for others (use n >= 1,000 there).
    """
    x = np.asarray(sample, dtype=np.float64).ravel()
    assert x.size > 0, "Expected a sample, got none."
    assert np.isfinite(x).all(), "The sample holds NaN or infinities."
    z = (float(np.mean(x)) - expected) * np.sqrt(x.size) / std
    limit = float(stats.norm.isf(alpha / 2))
    assert abs(z) <= limit, (
        f"Mean {expected:.6g} expected, {np.mean(x):.6g} measured on {x.size} draws; "
        f"z = {z:.2f}, limit {limit:.2f}."
    )


def assert_counts(observed: ArrayLike, probabilities: ArrayLike, *, alpha: float = ALPHA) -> None:
    """Chi-square goodness of fit: `observed` counts against cell `probabilities`, each expecting >= 10."""
    counts = np.asarray(observed, dtype=np.float64).ravel()
    p = np.asarray(probabilities, dtype=np.float64).ravel()
    assert counts.shape == p.shape, f"{counts.size} counts, {p.size} probabilities."
    assert abs(p.sum() - 1) < 1e-9, f"Probabilities sum to {p.sum()}."
    expected = counts.sum() * p
    assert expected.min() >= 10, f"Smallest expected count is {expected.min():.3g}; draw more or merge cells."
    statistic = float(np.sum((counts - expected) ** 2 / expected))
    limit = float(stats.chi2.isf(alpha, p.size - 1))
    assert statistic <= limit, f"Chi-square {statistic:.6g} over {p.size} cells, limit {limit:.6g}."


def assert_distribution(
    sample: ArrayLike, cdf: Callable[[NDArray[np.float64]], Any], *, alpha: float = ALPHA
) -> None:
    """Kolmogorov-Smirnov test of draws against a continuous `cdf`.

    Measured: n = 20,000 is enough to reject a Gaussian whose standard deviation is 10 % wrong.
    """
    x = np.asarray(sample, dtype=np.float64).ravel()
    outcome = stats.kstest(x, cdf)
    assert outcome.pvalue >= alpha, (
        f"Kolmogorov-Smirnov distance {outcome.statistic:.4g} on {x.size} draws, p = {outcome.pvalue:.2g}."
    )


def assert_uncorrelated(a: ArrayLike, b: ArrayLike, *, alpha: float = ALPHA) -> None:
    """Test that paired draws have no linear correlation (normal approximation, n >= 1,000)."""
    x, y = (np.asarray(v, dtype=np.float64).ravel() for v in (a, b))
    assert x.size == y.size >= 1_000, f"Expected two samples of one size >= 1000, got {x.size} and {y.size}."
    r = float(np.corrcoef(x, y)[0, 1])
    limit = float(stats.norm.isf(alpha / 2)) / np.sqrt(x.size)
    assert abs(r) <= limit, f"Correlation {r:.4g} on {x.size} pairs, limit {limit:.4g}."


def assert_uniform_bits(words: NDArray[np.unsignedinteger[Any]], *, alpha: float = ALPHA) -> None:
    """Test that unsigned integers are uniform on their whole range and independent of their neighbours.

    Three tests share `alpha`: every bit position is balanced, every byte position is uniform on 0..255, and
    consecutive words agree in half of their bits (so that a constant or a repeated keystream fails). Needs
    at least 4,000 words.
    """
    x = np.ascontiguousarray(words).ravel()
    assert x.dtype.kind == "u", f"Expected unsigned integers, got {x.dtype}."
    n, width = x.size, x.dtype.itemsize
    assert n >= 4_000, f"Expected at least 4,000 words, got {n}."
    level = alpha / 3

    # 64 binomials, each standardized: their squares sum to a chi-square with one degree a bit.
    limit = float(stats.chi2.isf(level, 8 * width))
    for what, sample in (("bit balance", x), ("agreement of neighbours", x[1:] ^ x[:-1])):
        ones = _ones_by_position(sample)
        statistic = float(np.sum((2 * ones - sample.size) ** 2 / sample.size))
        assert statistic <= limit, f"{what}: chi-square {statistic:.6g}, {8 * width} bits, limit {limit:.6g}."

    as_bytes = x.view(np.uint8).reshape(n, width)
    counts = np.stack([np.bincount(as_bytes[:, i], minlength=256) for i in range(width)])
    expected = n / 256
    statistic = float(np.sum((counts - expected) ** 2 / expected))
    limit = float(stats.chi2.isf(level, 255 * width))
    assert statistic <= limit, f"bytes: chi-square {statistic:.6g} over {width} positions, limit {limit:.6g}."


def _ones_by_position(words: NDArray[Any]) -> NDArray[np.int64]:
    """How many words have each bit set, shape ``(bits,)``."""
    bits = np.arange(8 * words.dtype.itemsize, dtype=words.dtype)
    return np.array([int(np.count_nonzero(words >> b & words.dtype.type(1))) for b in bits], dtype=np.int64)
