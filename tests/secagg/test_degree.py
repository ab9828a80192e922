"""Degree and threshold: tails against exact integers, bounds against drawn rings, and servers that cheat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from secagg import graph
from secagg.graph import (
    draw,
    failure_bound,
    is_crowd,
    is_exclusive,
    plan,
    privacy_bound,
    smallest_sum,
    threshold,
)
from tests.statistical import ALPHA, assert_rejects


def exact_tail(population: int, marked: int, drawn: int, least: int) -> Fraction:
    """Probability that `drawn` of a population hold `least` marked ones or more, in integers."""
    ways = sum(
        math.comb(marked, i) * math.comb(population - marked, drawn - i)
        for i in range(max(0, least), drawn + 1)
    )
    return Fraction(ways, math.comb(population, drawn))


def log2(number: Fraction) -> float:
    """Of numbers too small for a float."""
    return math.log2(number.numerator) - math.log2(number.denominator)


@given(data=st.data(), population=st.integers(1, 3000))
def test_tails_are_those_of_exact_integers(data: st.DataObject, population: int) -> None:
    marked = data.draw(st.integers(0, population))
    drawn = data.draw(st.integers(0, min(population, 200)))
    least = data.draw(st.integers(-2, drawn + 2))
    exact = exact_tail(population, marked, drawn, least)
    ours = graph._log_tail(population, marked, drawn, least)
    if exact in (0, 1):
        assert ours == (0.0 if exact else -math.inf)
    else:
        assert ours / math.log(2) == pytest.approx(log2(exact), rel=1e-11, abs=1e-11)


def test_tails_far_below_the_smallest_float_do_not_vanish() -> None:
    exact = exact_tail(10**6, 10**4, 900, 800)
    assert log2(exact) < -3000
    assert graph._log_tail(10**6, 10**4, 900, 800) / math.log(2) == pytest.approx(log2(exact), rel=1e-11)


@pytest.mark.parametrize(
    ("n", "k", "t", "colluders"), [(1000, 164, 125, 0.2), (10**5, 240, 181, 0.2), (400, 60, 50, 0.05)]
)
def test_the_bound_is_the_one_that_is_derived(n: int, k: int, t: int, colluders: float) -> None:
    corrupt = round(n * colluders)
    both = (n - corrupt) * exact_tail(n - 1, corrupt, k, 2 * t - k - 1)
    place = exact_tail(n, corrupt, k // 2, t - k // 2 - 1)
    exact = 2**10 * (both + Fraction(n * (n - 1), 2) * place**2)
    assert privacy_bound(n, k, t, colluders, draws=2**10) == pytest.approx(float(exact), rel=1e-9)
    corrupt_or_lost = corrupt + n // 10
    many = (n - corrupt) * exact_tail(n - 1, corrupt, k, t)
    cut = Fraction(n * (n - 1), 2) * exact_tail(n, corrupt_or_lost, k // 2, k // 2) ** 2
    honest = privacy_bound(n, k, t, colluders, malicious=False, dropout=0.1, draws=1)
    assert honest == pytest.approx(float(many + cut), rel=1e-9)


@pytest.mark.parametrize(("n", "k", "t"), [(1000, 164, 125), (60, 20, 16)])
def test_the_failure_bound_counts_survivors_and_the_dropped(n: int, k: int, t: int) -> None:
    lost = n // 10
    # Of the others in a closed neighbourhood, a survivor needs t - 1; one who dropped out needs t.
    few = 1 - exact_tail(n - 1, n - 1 - lost, k, t - 1)
    fewer = 1 - exact_tail(n - 1, n - lost, k, t)
    assert failure_bound(n, k, t, 0.1) == pytest.approx(float((n - lost) * few + lost * fewer), rel=1e-9)
    assert failure_bound(n, k, t, 0.0) == 0.0


@pytest.mark.parametrize(
    ("n", "colluders", "dropout"), [(100, 0.1, 0.2), (1000, 0.2, 0.1), (10**4, 0.1, 0.05), (300, 0.05, 0.05)]
)
@pytest.mark.parametrize("malicious", [True, False])
def test_a_plan_meets_both_targets_with_the_smallest_degree(
    n: int, colluders: float, dropout: float, malicious: bool
) -> None:
    targets: dict[str, Any] = {"colluders": colluders, "malicious": malicious, "dropout": dropout}
    found = plan(n, **targets)

    def weakest(degree: int, t: int) -> float:
        """Of all rosters that are left when at most `dropout` does not advertise, the whole one first."""
        bounds = []
        for size in range(n, max(n - int(dropout * n + 1e-9), degree + 2) - 1, -1):
            bounds.append(privacy_bound(size, degree, t, **targets))
            if bounds[0] > 2**-40:
                break
        return max(bounds)

    assert found.privacy == (weakest(found.degree, found.threshold) if found.degree else 0.0) <= 2**-40
    assert found.failure == failure_bound(n, found.degree, found.threshold, dropout) <= 2**-20
    holders = found.degree + 1 if found.degree else n
    assert threshold(found.fraction, holders) == found.threshold
    # Nothing smaller does, whatever the threshold.
    for degree in range(2, found.degree or n // 2 + 1, 2):
        private = (t for t in range(1, degree + 2) if weakest(degree, t) <= 2**-40)
        t = next(private, None)
        assert t is None or failure_bound(n, degree, t, dropout) > 2**-20


@pytest.mark.parametrize(
    ("n", "colluders", "left"), [(446, 0.1, 440), (216, 0.05, 205), (168, 0.1, 160), (446, 0.02, 402)]
)
def test_a_policy_accepts_the_planned_graph_where_not_everybody_advertised(
    n: int, colluders: float, left: int
) -> None:
    """As many colluders, rounded down, are a larger part of fewer; planned for n alone it is refused."""
    found = plan(n, colluders=colluders, dropout=0.1)
    names = [f"c{i:03}" for i in range(left)]
    ring = draw(names, found.degree, b"beacon")
    assert ring.degree == found.degree > 0
    found.policy().verify_graph(1, ring, ring.threshold(found.fraction))


@given(n=st.integers(33, 500), colluders=st.floats(0.001, 0.2), dropout=st.floats(0, 0.3))
def test_a_plan_keeps_its_bound_for_whatever_part_of_the_roster_advertises(
    n: int, colluders: float, dropout: float
) -> None:
    found = plan(n, colluders=colluders, dropout=dropout)
    fewest = n - int(dropout * n + 1e-9)
    for size in range(fewest, n + 1):
        if found.degree and size >= found.degree + 2:
            assert privacy_bound(size, found.degree, found.threshold, colluders) <= found.privacy <= 2**-40
        else:  # joined completely
            assert is_exclusive(size, threshold(found.fraction, size), int(colluders * size + 1e-9))


def test_no_plan_for_small_cohorts_is_sparse() -> None:
    for n in range(5, 33):
        found = plan(n, malicious=True, privacy=0.5, failure=0.5)
        assert found.degree == 0
        assert (found.privacy, found.failure) == (0.0, 0.0)
        assert is_exclusive(n, found.threshold, int(0.2 * n))
        assert not is_exclusive(n, found.threshold - 1, int(0.2 * n))
        assert threshold(found.fraction, n) == found.threshold


@given(
    n=st.integers(3, 400),
    colluders=st.floats(0, 0.6),
    dropout=st.floats(0, 0.6),
    malicious=st.booleans(),
)
def test_a_plan_is_sound_or_refused(n: int, colluders: float, dropout: float, malicious: bool) -> None:
    try:
        found = plan(n, colluders=colluders, dropout=dropout, malicious=malicious)
    except ValueError:
        corrupt, lost = int(colluders * n + 1e-9), int(dropout * n + 1e-9)
        least = (n + corrupt) // 2 + 1 if malicious else corrupt + 1
        assert max(least, corrupt + 2) > n - lost
        return
    assert found.privacy <= 2**-40
    assert found.failure <= 2**-20
    assert is_crowd(found.smallest_sum, 0) or found.degree or not malicious
    # An offer names the fraction; a roster too small for the ring is joined completely, and as safely.
    for fewer in (33, n):
        t = threshold(found.fraction, fewer)
        assert not malicious or is_exclusive(fewer, t, int(colluders * fewer + 1e-9)) or fewer > n


def test_more_rounds_cost_in_proportion() -> None:
    once, often = (privacy_bound(1000, 164, 125, 0.2, draws=draws) for draws in (1, 1000))
    assert often == pytest.approx(1000 * once, rel=1e-12)


def test_a_sum_of_two_survivors_besides_the_colluders_is_a_crowd() -> None:
    assert is_crowd(5, 3)
    assert not is_crowd(5, 4)
    assert smallest_sum(10, 0, 7, 0.2) == 5
    assert smallest_sum(100, 20, 16) == 6 * 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plan(2), "num_clients >= 3"),
        (lambda: plan(10, draws=0), "draws >= 1"),
        (lambda: plan(10, privacy=0), "privacy=0"),
        (lambda: plan(10, failure=1), "failure=1"),
        (lambda: plan(10, colluders=1.0), r"colluders in \[0, 1\), got 1.0"),
        (lambda: plan(10, dropout=-0.1), r"dropout in \[0, 1\), got -0.1"),
        (lambda: plan(100, colluders=0.5, dropout=0.3), "Lower colluders=0.5 or dropout=0.3"),
        (lambda: privacy_bound(100, 3, 2, 0.1), "got 3 for n=100"),
        (lambda: privacy_bound(100, 99, 2, 0.1), "got 99 for n=100"),
        (lambda: privacy_bound(100, 10, 12, 0.1), r"1\.\.11 holders, got 12"),
        (lambda: privacy_bound(100, 10, 0, 0.1), "got 0"),
    ],
)
def test_what_cannot_be_planned_is_refused(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


# --- Rings drawn at random, at targets that can be seen to fail ---------------------------------------


def marked_rings(n: int, marked: int, rings: int, seed: int) -> NDArray[np.int32]:
    """Rows of 0 and 1, each with `marked` ones in random order."""
    rows = np.zeros((rings, n), np.int32)
    rows[:, :marked] = 1
    return np.random.default_rng(seed).permuted(rows, axis=1)


def windows(rings: NDArray[np.int32], width: int) -> NDArray[np.int32]:
    """Sum over `width` positions in a row, from each position on."""
    around = np.concatenate([np.zeros((len(rings), 1), np.int32), rings, rings[:, : width - 1]], axis=1)
    total = np.cumsum(around, axis=1, dtype=np.int32)
    return total[:, width:] - total[:, :-width]


def has_both_secrets(rings: NDArray[np.int32], k: int, t: int) -> NDArray[np.bool_]:
    """Whether some honest client's closed neighbourhood lets both of its secrets out."""
    around = np.roll(windows(rings, k + 1), k // 2, axis=1)
    return ((around >= 2 * t - k - 1) & (rings == 0)).any(axis=1)


def has_two_places(rings: NDArray[np.int32], k: int, t: int) -> NDArray[np.bool_]:
    """Whether two disjoint runs of k / 2 positions are as full of colluders as a cut needs."""
    n, half = rings.shape[1], k // 2
    heavy = windows(rings, half) >= t - half - 1
    # Two starts of heavy runs, at least k / 2 apart on either side.
    found = np.zeros(len(rings), np.bool_)
    for row in np.flatnonzero(heavy.any(axis=1)):
        starts = np.flatnonzero(heavy[row])
        gaps = (starts[:, None] - starts[None, :]) % n
        found[row] = ((gaps >= half) & (n - gaps >= half)).any()
    return found


def assert_rarer_than(found: NDArray[np.bool_], probability: float) -> None:
    """Exact binomial test at level ALPHA."""
    limit = stats.binom.isf(ALPHA, found.size, probability)
    assert found.sum() <= limit, f"{found.sum()} of {found.size}, at most {limit} expected"


RINGS = 20_000
TARGET = 2**-10


@pytest.mark.parametrize(("n", "colluders"), [(200, 0.1), (300, 0.2)])
def test_rings_of_a_plan_are_as_private_as_it_says(n: int, colluders: float) -> None:
    found = plan(n, colluders=colluders, dropout=0.05, privacy=TARGET, failure=TARGET, draws=1)
    assert found.degree
    rings = marked_rings(n, int(n * colluders), RINGS, seed=n)

    def violates(k: int, t: int) -> NDArray[np.bool_]:
        return has_both_secrets(rings, k, t) | has_two_places(rings, k, t)

    assert_rarer_than(violates(found.degree, found.threshold), TARGET)
    # Power: six neighbours fewer, with a threshold lower by as many, are found to be too few.
    assert_rejects(assert_rarer_than, violates(found.degree - 6, found.threshold - 6), TARGET)


@pytest.mark.parametrize(("n", "dropout"), [(200, 0.1), (300, 0.25)])
def test_rings_of_a_plan_fail_as_rarely_as_it_says(n: int, dropout: float) -> None:
    found = plan(n, colluders=0.05, dropout=dropout, privacy=TARGET, failure=TARGET, draws=1)
    assert found.degree
    rings = marked_rings(n, int(n * dropout), RINGS, seed=n)

    def fails(t: int) -> NDArray[np.bool_]:
        return (found.degree + 1 - windows(rings, found.degree + 1) < t).any(axis=1)

    assert_rarer_than(fails(found.threshold), TARGET)
    assert_rejects(assert_rarer_than, fails(found.threshold + 4), TARGET)


def test_bounds_of_each_kind_hold_and_are_not_idle() -> None:
    n, corrupt, k = 150, 30, 30
    rings = marked_rings(n, corrupt, RINGS, seed=1)
    both = (n - corrupt) * exact_tail(n - 1, corrupt, k, 2 * 22 - k - 1)
    two = Fraction(n * (n - 1), 2) * exact_tail(n, corrupt, k // 2, 24 - k // 2 - 1) ** 2
    # Windows next to each other overlap, so sums over all of them are above the truth, by up to a factor.
    for found, bound, factor in (
        (has_both_secrets(rings, k, 22), float(both), 5),
        (has_two_places(rings, k, 24), float(two), 200),
    ):
        assert_rarer_than(found, bound)
        assert_rejects(assert_rarer_than, found, bound / factor)


# --- Servers that cheat -------------------------------------------------------------------------------


@dataclass
class Scheme:
    """What a malicious server makes of a ring; positions are clients, sets are of positions.

    Attributes:
        corrupt: Clients that work with it.
        degree: Number of neighbours k.
        threshold: Shares t that give a secret back.
        counted: For each client, whose boxes it gets, and itself: those with whom it masks.
        survivors: For each client, the set that it is asked to sign, or None.
        asked: Clients that are then asked to unmask.
    """

    corrupt: frozenset[int]
    degree: int
    threshold: int
    counted: list[set[int]]
    survivors: list[frozenset[int] | None]
    asked: set[int]

    def near(self, client: int) -> list[int]:
        """Its closed neighbourhood."""
        half = self.degree // 2
        return [(client + step) % len(self.counted) for step in range(-half, half + 1)]

    def unmasking(self) -> dict[int, frozenset[int]]:
        """Honest clients that unmask, with the set they agreed to; what they check is all here."""
        signed = {}
        for u, chosen in enumerate(self.survivors):
            if u in self.corrupt or chosen is None or len(self.counted[u]) < self.threshold:
                continue
            if u in chosen and chosen.intersection(self.near(u)) <= self.counted[u]:
                signed[u] = chosen
        return {
            u: chosen
            for u, chosen in signed.items()
            if u in self.asked
            and sum(w in chosen and (w in self.corrupt or signed.get(w) == chosen) for w in self.near(u))
            >= self.threshold
        }

    def secrets(self, receipts: bool) -> tuple[set[int], set[int]]:
        """Honest clients whose self mask is lifted, and those whose mask key is known."""
        unmasking = self.unmasking()
        lifted, known = set(), set()
        for v in set(range(len(self.counted))) - self.corrupt:
            near = self.near(v)
            theirs = sum(w in self.corrupt for w in near)
            shares = [u for u in near if u in unmasking]
            alive = sum(v in unmasking[u] and (not receipts or u in self.counted[v]) for u in shares)
            lost = sum(v not in unmasking[u] and v in self.counted[u] for u in shares)
            if alive + theirs >= self.threshold and len(self.counted[v]) >= self.threshold:
                lifted.add(v)
            if lost + theirs >= self.threshold:
                known.add(v)
        return lifted, known

    def sums(self, receipts: bool = True) -> list[set[int]]:
        """Sets of honest clients whose sums the server can read.

        Of a lifted vector, what is left are masks with honest clients whose mask keys are not known. They
        cancel where both have counted each other and both are lifted; one that does not hides everything
        that hangs together.
        """
        lifted, known = self.secrets(receipts)
        left, found = lifted - known, []
        while left:
            part, hidden, todo = set(), False, [left.pop()]
            while todo:
                x = todo.pop()
                part.add(x)
                for w in self.counted[x] - self.corrupt - known - {x}:
                    if w not in lifted or x not in self.counted[w]:
                        hidden = True
                    elif w in left:
                        left.remove(w)
                        todo.append(w)
            if not hidden:
                found.append(part)
        return found

    def is_bound_to_hold(self) -> bool:
        """Neither event of the bound: both secrets of a client, or two places for a cut."""
        ring = np.zeros((1, len(self.counted)), np.int32)
        ring[0, list(self.corrupt)] = 1
        k, t = self.degree, self.threshold
        return not (has_both_secrets(ring, k, t) | has_two_places(ring, k, t))[0]


def honest_scheme(n: int, corrupt: frozenset[int], degree: int, t: int) -> Scheme:
    """A server that follows the protocol, and nobody drops out."""
    scheme = Scheme(corrupt, degree, t, [set() for _ in range(n)], [frozenset(range(n))] * n, set(range(n)))
    scheme.counted = [set(scheme.near(u)) for u in range(n)]
    return scheme


def by_sides(sides: list[str], corrupt: frozenset[int], degree: int, t: int) -> Scheme:
    """Cut the ring into sides that never hear of each other; those on no side drop out unseen."""
    n = len(sides)
    scheme = honest_scheme(n, corrupt, degree, t)
    members = {side: {p for p in range(n) if sides[p] == side} | corrupt for side in set(sides) - {""}}
    for u in range(n):
        mine = members.get(sides[u], set())
        scheme.counted[u] &= mine
        scheme.survivors[u] = frozenset(mine) if mine else None
    return scheme


def cut(corrupt: frozenset[int], n: int, degree: int, t: int) -> Scheme:
    """Take out k / 2 positions where colluders are most frequent, and again as far as possible from there."""
    half = degree // 2
    ring = np.zeros((1, n), np.int32)
    ring[0, list(corrupt)] = 1
    counts = windows(ring, half)[0]
    first = int(counts.argmax())
    apart = (np.arange(n) - first) % n
    far = np.where((apart >= half + t) & (n - apart >= half + t), counts, -1)
    second = int(far.argmax())
    sides = [
        ""
        if (p - first) % n < half or (p - second) % n < half
        else "AB"[(p - first) % n < (second - first) % n]
        for p in range(n)
    ]
    return by_sides(sides, corrupt, degree, t)


def test_an_honest_server_learns_one_sum_of_all() -> None:
    corrupt = frozenset({3, 7, 20})
    assert honest_scheme(60, corrupt, 12, 9).sums() == [set(range(60)) - corrupt]


def test_a_ring_is_cut_only_where_two_places_are_full_of_colluders() -> None:
    n, degree, t = 120, 16, 13
    rng = np.random.default_rng(5)
    held = broken = 0
    for _ in range(200):
        corrupt = frozenset(rng.permutation(n)[:24].tolist())
        scheme = cut(corrupt, n, degree, t)
        parts = scheme.sums()
        if scheme.is_bound_to_hold():
            assert len(parts) <= 1
            held += 1
        broken += len(parts) == 2
    # The bound is not idle: the same server cuts most of the rings of which it says nothing.
    assert held > 20
    assert broken > (200 - held) / 2


def made_up(rng: np.random.Generator, n: int, corrupt: frozenset[int], degree: int, t: int) -> Scheme:
    """Sides with gaps between them, where colluders are many if it can be, and lies at random."""
    half, ring = degree // 2, np.zeros((1, n), np.int32)
    ring[0, list(corrupt)] = 1
    weights = np.exp(rng.choice([0.0, 4.0]) * windows(ring, half)[0])
    gaps = np.sort(rng.choice(n, size=int(rng.integers(1, 5)), replace=False, p=weights / weights.sum()))
    names = [*"ABAC"][: len(gaps)] if rng.random() < 0.7 else rng.choice([*"ABC"], len(gaps)).tolist()
    sides = [names[int(np.searchsorted(gaps, p, "right")) % len(gaps)] for p in range(n)]
    for gap in gaps:
        for step in range(rng.choice([half, int(rng.integers(0, half + 2))], p=[0.7, 0.3])):
            sides[(gap + step) % n] = ""
    scheme = by_sides(sides, corrupt, degree, t)
    lost = frozenset(p for p in range(n) if not sides[p])
    known_lost, crossing, whole = rng.random() < 0.5, rng.random() < 0.5, rng.random() < 0.2
    for u in range(n):
        near = set(scheme.near(u))
        if not sides[u]:
            continue
        if known_lost:  # They shared, and then dropped out: their mask keys are asked for.
            scheme.counted[u] |= near & lost
        if (crossing and sides[u] == "C") or (whole and rng.random() < 0.95):
            # It counts in those who may not have counted it, and is told that all survived.
            scheme.counted[u] = near if known_lost else near - lost
            scheme.survivors[u] = frozenset(range(n)) - lost
    if rng.random() < 0.5:
        scheme.asked -= set(rng.permutation(n)[: int(rng.integers(0, n // 6))].tolist())
    return scheme


@pytest.mark.parametrize(("n", "degree", "t"), [(30, 8, 7), (40, 10, 8), (60, 12, 9)])
def test_no_scheme_that_is_made_up_learns_two_sums_or_a_small_one(n: int, degree: int, t: int) -> None:
    rng = np.random.default_rng(n)
    held = learned = broken = 0
    for _ in range(600):
        corrupt = frozenset(rng.permutation(n)[: int(rng.integers(0, n // 3))].tolist())
        scheme = made_up(rng, n, corrupt, degree, t)
        parts = scheme.sums()
        lifted, known = scheme.secrets(receipts=True)
        if scheme.is_bound_to_hold():
            held += 1
            learned += bool(parts)
            assert not lifted & known
            assert len(parts) <= 1
            assert all(len(part) >= smallest_sum(n, degree, t) for part in parts)
        else:
            broken += len(parts) > 1 or bool(lifted & known)
    # Schemes do learn sums, and the same schemes break rings with too many colluders.
    assert held > 100
    assert learned > 10
    assert broken > 5


def test_without_receipts_a_server_alone_takes_sums_apart() -> None:
    """Why a client lifts a self mask only of a peer that shows that it counted that client in.

    Two sides X and Y, and between them clients O that count everyone in and are counted in by nobody but each
    other. They lift the masks at the edges of X and Y, whose own holders are too few; their own vectors
    stay masked, which costs the server nothing. Between them some drop out, to fill the neighbourhoods.
    """
    degree, t = 40, 26
    edge = t - degree // 2 - 1
    layout: list[tuple[str, bool]] = []  # side, and whether asked to unmask
    for side in "XY":
        around = [("O", False)] * edge, [("", False)] * edge, [(side, False)] * edge
        layout += [*around[0], *around[1], *around[2], *[(side, True)] * 30]
        layout += [*around[2], *around[1], *around[0], *[("O", True)] * 40]
    sides = [side for side, _ in layout]
    n = len(sides)
    scheme = by_sides(sides, frozenset(), degree, t)
    lost = {p for p in range(n) if not sides[p]}
    for u, side in enumerate(sides):
        near = set(scheme.near(u))
        if side:
            scheme.counted[u] |= near & lost
        if side == "O":
            scheme.counted[u] = near
            scheme.survivors[u] = frozenset(range(n)) - lost
    scheme.asked = {p for p, (_, asked) in enumerate(layout) if asked}
    assert is_exclusive(degree + 1, t, colluders=0)
    assert scheme.is_bound_to_hold()
    assert [len(part) for part in scheme.sums(receipts=False)] == [40, 40]
    assert scheme.sums(receipts=True) == []
