"""The rounded Gaussian of a release: its bits decide it exactly, whatever the floats on the way say."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtri

from dp.noise import rounded, rounded_gaussian
from dp.random import insecure_source
from tests.statistical import assert_counts, assert_rejects, assert_std, assert_uncorrelated

SQRT_2_PI = Decimal("2.5066282746310005024157652848110452530069867406099383166299235763422936546")


class Recorded:
    """A stream that remembers what it gave."""

    def __init__(self, label: str) -> None:
        self.stream, self.given = insecure_source(3).stream(label), []  # type: ignore[var-annotated]

    def uint64(self, n: int) -> Any:
        words = self.stream.uint64(n)
        self.given.append(words.copy())
        return words


class Zeros:
    """A stream of zeros: the furthest draw there is."""

    def uint64(self, n: int) -> Any:
        return np.zeros(n, np.uint64)


def tail_by_continued_fraction(b: Decimal) -> Decimal:
    """P(X > b) by phi(b) / (b + 1/(b + 2/(b + ...))): nothing is shared with the series of the code."""
    value = b
    for k in range(4000, 0, -1):
        value = b + k / value
    return (-b * b / 2).exp() / SQRT_2_PI / value


@pytest.mark.parametrize(("r", "std"), [(3, 1.0), (4097, 1024.3), (13 * 2**20, 2.0**20), (12, 1.1)])
def test_boundaries_agree_with_another_formula_to_127_bits(r: int, std: float) -> None:
    with localcontext() as context:
        context.prec = 70
        expected = 2 * tail_by_continued_fraction(Decimal(2 * r - 1) / 2 / Decimal(std)) * 2**127
    assert abs(rounded._boundary(r, std) - expected) <= 1


def test_boundaries_agree_with_the_normal_distribution() -> None:
    for std in (0.3, 2.71828, 1e4):
        for r in (1, 2, 3, round(2 * std) + 1, round(7 * std) + 1):
            expected = 2 * stats.norm.sf((r - 0.5) / std)
            assert rounded._boundary(r, std) / 2**127 == pytest.approx(expected, rel=1e-12, abs=1e-38)


@pytest.mark.parametrize("std", [5000.3, 2.0**22 * 1.1, 2.0**27])
def test_floats_never_decide_what_the_bits_do_not(std: float) -> None:
    """Draws taken from a float are what every continuation of their 64 bits gives by integers."""
    stream = Recorded(str(std))
    n = 1 << 17
    draws = rounded_gaussian(n, std, stream)  # type: ignore[arg-type]
    words = np.concatenate(stream.given[:-1])
    assert words.size == n
    sizes = np.abs(draws)
    checked = 0
    for i in np.random.default_rng(0).integers(0, n, 150):
        negative = int(words[i]) < 2**63
        tail = int(words[i]) if negative else int(words[i]) ^ (2**64 - 1)
        least, most = (rounded._exact(tail << 64 | further, std, int(sizes[i])) for further in (2**64 - 1, 0))
        assert least <= sizes[i] <= most
        assert draws[i] <= 0 if negative else draws[i] >= 0
        checked += least == most
    assert checked >= 140
    # Power: the draws do depend on the bits to the last lattice step.
    assert rounded._exact(tail << 64, std + 60, int(sizes[i])) != int(sizes[i])


@pytest.mark.parametrize("degree", [2, 3])
def test_polynomials_are_as_good_as_they_say(degree: int) -> None:
    table, error = rounded._cells(degree)
    half = rounded._CELLS // 2
    rng = np.random.default_rng(degree)
    worst = 0.0
    for _ in range(20):
        part = rng.random(half)
        powers = (1 + part * 2.0 ** (12 - rounded._CELL_BITS)) ** np.arange(degree + 1)[:, None]
        off = np.abs(
            (table[:, :half] * powers).sum(axis=0) - ndtri((np.arange(half) + part) / rounded._CELLS)
        )
        worst = max(worst, float((off / error[:half]).max()))
    assert 0.5 < worst < 1


def test_draws_in_doubt_are_settled_by_integers() -> None:
    # Bits on either side of a boundary: one unit of 2**-127 apart, and a float cannot tell them apart.
    std, r = 2.0**20, 2**20 + 3
    boundary = rounded._boundary(r, std)
    for bits, expected in ((boundary, r - 1), (boundary - 1, r)):
        for sign, word in ((-1, bits >> 64), (1, bits >> 64 ^ (2**64 - 1))):
            given = [np.array([word], np.uint64), np.array([bits % 2**64], np.uint64)]
            stream = type("Fixed", (), {"uint64": lambda self, n, g=given: g.pop(0)})()
            assert rounded_gaussian(1, std, stream)[0] == sign * expected


def test_rounded_draws_have_the_exact_probabilities_of_their_cells() -> None:
    std = 1.3
    draws = rounded_gaussian(200_000, std, insecure_source(1).stream("cells"))
    edges = np.arange(-4.5, 5.0)
    p = np.diff(np.concatenate([[0.0], stats.norm(scale=std).cdf(edges), [1.0]]))
    counts = np.bincount(np.clip(draws, -5, 5) + 5, minlength=11)
    assert_counts(counts, p)
    wrong = rounded_gaussian(200_000, 1.1 * std, insecure_source(1).stream("cells"))
    assert_rejects(assert_counts, np.bincount(np.clip(wrong, -5, 5) + 5, minlength=11), p)


def test_fine_lattices_have_the_distribution_down_to_their_low_bits() -> None:
    std = 2.0**22
    draws = rounded_gaussian(300_000, std, insecure_source(2).stream("fine"))
    assert_std(draws, std)
    assert_rejects(assert_std, 1.1 * draws[:4_000], std)
    edges = stats.norm(scale=std).ppf(np.arange(1, 256) / 256)
    assert_counts(np.bincount(np.searchsorted(edges, draws), minlength=256), np.full(256, 1 / 256))
    # Every residue of the lattice occurs alike: neither cells nor polynomials leave a pattern.
    assert_counts(np.bincount(draws & 255, minlength=256), np.full(256, 1 / 256))
    assert_uncorrelated(draws[:-1], draws[1:])


def test_the_furthest_draw_is_finite() -> None:
    # One half of 2**-128 of probability, two-sided 2**-127.
    [draw] = rounded_gaussian(1, 1000.0, Zeros())  # type: ignore[arg-type]
    assert draw == -round(1000 * stats.norm.isf(2.0**-129))


def test_tiny_noise_rounds_to_zero() -> None:
    assert not rounded_gaussian(10_000, 1e-3, insecure_source(1).stream("x")).any()
    assert math.isclose(
        rounded._boundary(1, 0.04) / 2**127, 2 * stats.norm.sf(12.5), rel_tol=1e-2, abs_tol=1e-38
    )
