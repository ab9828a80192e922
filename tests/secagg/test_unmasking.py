"""Unmasking: what survivors' shares give back is exactly what is left on the sum, or nothing is released."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import RoundAborted, shamir, unmasking
from secagg.graph import Graph, threshold
from secagg.keys import Secret
from secagg.sharing import SHARE_BYTES
from secagg.unmasking import Unmasking
from tests.secagg.test_sharing import BINDING, Dealt, dealt, names

WORDS = 20


class Sum:
    """A masked sum over `survivors` of those who shared, with the plain one beside it."""

    def __init__(
        self,
        made: Dealt,
        shared: Collection[str],
        survivors: Collection[str],
        *,
        hybrid: bool = False,
        cipher: Any = "AES-128",
    ) -> None:
        self.made = made
        self.survivors = frozenset(survivors)
        made.deliver(shared)
        rng = self.lies = np.random.default_rng(5)
        self.plain = np.zeros(WORDS, np.uint64)
        self.total = np.zeros(WORDS, np.uint64)
        for name in sorted(survivors):
            words = rng.integers(0, 2**64, WORDS, dtype=np.uint64)
            self.plain += words
            made.clients[name].masks().apply(words)
            self.total += words
        self.unmasking = Unmasking(
            made.graph,
            made.threshold,
            frozenset(shared),
            self.survivors,
            made.publics,
            made.hashes,
            BINDING,
            cipher,
            hybrid,
            lambda sender, receiver: made.boxes[sender, receiver],
        )

    def shares_of(self, holder: str) -> bytes:
        return self.made.clients[holder].unmask(self.survivors)

    def take(self, holder: str, wrong: Collection[str] = ()) -> None:
        """The holder gives its shares; of `wrong` owners altered ones."""
        shares = np.frombuffer(self.shares_of(holder), "<u4").reshape(-1, shamir.LIMBS).copy()
        for place, peer in enumerate(self.unmasking.peers(holder)):
            if peer in wrong:
                shares[place] = self.lies.integers(0, shamir.PRIME, shamir.LIMBS)
        assert self.unmasking.take(holder, shares) is None

    def removed(self) -> np.ndarray:
        total = self.total.copy()
        self.unmasking.remove(total)
        return total


def simple(n: int = 6, t: int = 4, dropped: Collection[str] = ("c01",), **kwargs: Any) -> Sum:
    """A complete graph where all shared and `dropped` sent no vector."""
    made = dealt(Graph.complete(names(n)), t, kwargs.get("hybrid", False), kwargs.get("cipher", "AES-128"))
    return Sum(made, names(n), [name for name in names(n) if name not in dropped], **kwargs)


GRAPHS = st.one_of(
    st.integers(3, 9).map(lambda n: Graph.complete(names(n))),
    st.tuples(st.integers(8, 16), st.sampled_from([2, 4, 6]), st.binary(min_size=4, max_size=4)).map(
        lambda drawn: Graph.harary(names(drawn[0]), drawn[1], drawn[2])
    ),
)


def check(graph: Graph, fraction: float, seed: int, hybrid: bool = False) -> bool:
    """Random dropouts at three stages; whether the sum came out, which is exact whenever it does."""
    rng = np.random.default_rng(seed)
    keep = float(rng.choice([1.0, 0.9, 0.7]))
    t = threshold(fraction, len(graph.holders(graph.names[0])))
    cipher = "AES-256" if seed % 7 == 0 else "AES-128"

    def some(of: Collection[str]) -> list[str]:
        return [name for name in sorted(of) if rng.random() < keep]

    shared = some(graph.names)
    survivors = some(shared)
    case = Sum(dealt(graph, t, hybrid, cipher), shared, survivors, hybrid=hybrid, cipher=cipher)
    answered = some(survivors)
    for name in rng.permutation(answered).tolist():
        case.take(name)
    assert case.unmasking.answered == frozenset(answered)
    # By the book: self masks of survivors and pair masks of the dropped with a survivor are left.
    needed = {
        name
        for name in shared
        if name in survivors or any(peer in survivors for peer in graph.neighbours(name))
    }
    there = {name: sum(holder in answered for holder in graph.holders(name)) for name in needed}
    few = {name: count for name, count in there.items() if count < t}
    assert case.unmasking.lacking() == few
    if few:
        return False
    assert np.array_equal(case.removed(), case.plain)
    assert case.unmasking.faulty == set()
    if survivors:
        assert not np.array_equal(case.total, case.plain), "there was something to take off"
    return True


@given(GRAPHS, st.sampled_from([0.3, 0.6, 0.8]), st.integers(0, 2**32))
@settings(max_examples=60)
def test_all_masks_that_are_left_come_off_where_enough_shares_are_there(graph, fraction, seed):
    check(graph, fraction, seed)


@given(GRAPHS, st.sampled_from([0.3, 0.6]), st.integers(0, 2**32))
@settings(max_examples=15)
def test_hybrid_masks_come_off_too(graph, fraction, seed):
    check(graph, fraction, seed, hybrid=True)


@pytest.mark.slow
@given(GRAPHS, st.sampled_from([0.3, 0.6, 0.8]), st.integers(0, 2**32), st.booleans())
@settings(max_examples=800)
def test_many_sums_come_out_exactly(graph, fraction, seed, hybrid):
    check(graph, fraction, seed, hybrid=hybrid and seed % 3 == 0)


def test_the_drawn_cases_hold_both_outcomes():
    graphs = [Graph.complete(names(6)), Graph.harary(names(12), 4, b"seed")]
    outcomes = [check(graphs[seed % 2], 0.6, seed) for seed in range(24)]
    assert 6 <= sum(outcomes) <= 22


@pytest.mark.parametrize("cipher", ["AES-128", "AES-256"])
def test_without_shares_of_any_one_client_something_stays_masked(cipher, monkeypatch):
    """Each mask is needed: a sum with one of them left on is not the plain one."""
    for left_out in names(5):
        case = simple(5, 3, ("c02",), cipher=cipher)
        for name in sorted(case.survivors):
            case.take(name)
        others = [name for name in names(5) if name != left_out]
        monkeypatch.setattr(Unmasking, "_needed", lambda self, others=others: iter(others))
        assert not np.array_equal(case.removed(), case.plain), left_out


def test_a_dropped_client_without_surviving_neighbours_is_not_looked_at():
    """On a ring of degree 2, who stands between two that dropped too has left no mask behind."""
    graph = Graph.harary(names(9), 2, b"ring")
    ring = graph._ring
    dropped = set(ring[:3])
    case = Sum(dealt(graph, 1), graph.names, [name for name in graph.names if name not in dropped])
    assert set(case.unmasking._needed()) == set(graph.names) - {ring[1]}
    for name in sorted(case.survivors):
        case.take(name)
    assert case.unmasking.lacking() == {}
    assert np.array_equal(case.removed(), case.plain)


# What holders may send.


def test_shares_of_another_length_or_range_are_refused_and_change_nothing():
    case = simple()
    good = case.shares_of("c00")
    assert len(good) == 6 * SHARE_BYTES
    for bad in (b"", good[:-1], good[:-SHARE_BYTES], good + b"\0", good + good):
        assert f"expected 6 shares of 36 bytes, got {len(bad)} bytes" == case.unmasking.take("c00", bad)
    for place in (0, 53):
        words = np.frombuffer(good, "<u4").copy()
        words[place] = shamir.PRIME
        assert case.unmasking.take("c00", words) == "a share is out of its range"
    assert case.unmasking.answered == frozenset()
    for data in (bytearray(good), memoryview(good), np.frombuffer(good, "<u4")):
        assert case.unmasking.take("c00", data) is None


def test_peers_are_those_holders_that_shared():
    graph = Graph.harary(names(9), 4, b"ring")
    shared = [name for name in graph.names if name != "c03"]
    case = Sum(dealt(graph, 3), shared, shared)
    for name in shared:
        assert case.unmasking.peers(name) == [p for p in sorted(graph.holders(name)) if p != "c03"]


# Wrong shares.


@pytest.mark.parametrize("wrong", [("c00",), ("c04",), ("c00", "c03"), ("c04", "c06")])
def test_half_as_many_wrong_shares_as_there_are_spare_ones_are_found_and_named(wrong):
    """Nine holders less one that dropped, threshold 4: four spare shares, two errors.

    The first four, c00, c02, c03 and c04, are used; what the others gave is looked at if those do not fit.
    """
    for owner in ("c01", "c02"):  # one that dropped, one that survived
        case = simple(9, 4)
        for name in sorted(case.survivors):
            case.take(name, {owner} if name in wrong else ())
        assert np.array_equal(case.removed(), case.plain)
        assert case.unmasking.faulty == set(wrong)


def test_holders_that_alter_everything_are_named_once_where_their_shares_are_used():
    for liar, faulty in (("c03", {"c03"}), ("c07", set())):
        case = simple(9, 4)
        for name in sorted(case.survivors):
            case.take(name, names(9) if name == liar else ())
        assert np.array_equal(case.removed(), case.plain)
        assert case.unmasking.faulty == faulty


@pytest.mark.parametrize("owner", ["c01", "c02"])
def test_more_wrong_shares_than_can_be_told_apart_release_nothing_or_the_right_sum(owner):
    """Whatever the number of liars, a sum that comes out is the right one."""
    released = []
    for liars in range(9):
        case = simple(9, 4)
        for place, name in enumerate(sorted(case.survivors)):
            case.take(name, {owner} if place < liars else ())
        try:
            assert np.array_equal(case.removed(), case.plain)
            released.append(liars)
        except RoundAborted as error:
            assert error.blame == (owner,)  # noqa: PT017
            assert f"shares of {owner!r} do not give its secret back" in str(error)  # noqa: PT017
    assert released[:3] == [0, 1, 2]
    assert 5 not in released, "three right shares are fewer than the threshold"


@given(st.binary(min_size=4, max_size=4), st.sampled_from([2, 4, 256]), st.data())
@settings(max_examples=25)
def test_on_a_ring_wrong_shares_are_found_and_named_where_they_are_used(seed, at_once, data):
    """Nine holders, threshold 4, of each owner up to two wrong shares: decoding corrects as many."""
    graph = Graph.harary(names(14), 8, seed)
    survivors = [name for name in names(14) if name not in ("c01", "c05")]
    case = Sum(dealt(graph, 4), names(14), survivors)
    answering = {owner: [h for h in graph.holders(owner) if h in survivors] for owner in names(14)}
    owners = data.draw(st.sets(st.sampled_from(names(14)), max_size=5))
    wrong = {
        owner: data.draw(st.sets(st.sampled_from(answering[owner]), min_size=1, max_size=2))
        for owner in sorted(owners)
        if len(answering[owner]) >= 8
    }
    for name in survivors:
        case.take(name, {owner for owner, liars in wrong.items() if name in liars})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unmasking, "_AT_ONCE", at_once)
        assert np.array_equal(case.removed(), case.plain)
    faulty: set[str] = set()
    for owner in names(14):
        # Four are used, of those that gave a wrong share before as few as can be; if they do not fit, all are
        # looked at.
        used = sorted(answering[owner], key=lambda holder: holder in faulty)[:4]
        if wrong.get(owner, set()) & {*used}:
            faulty |= wrong[owner]
    assert case.unmasking.faulty == faulty


def test_a_liar_is_searched_for_once_and_not_for_each_client(monkeypatch):
    """Random shares of one holder of 40 had cost a search for each client: hours for some thousand."""
    searched = []
    search = shamir.reconstruct_verified
    monkeypatch.setattr(shamir, "reconstruct_verified", lambda *given: searched.append(0) or search(*given))
    case = simple(40, 27)
    for name in sorted(case.survivors):
        case.take(name, names(40) if name == "c02" else ())
    assert np.array_equal(case.removed(), case.plain)
    assert case.unmasking.faulty == {"c02"}
    assert len(searched) == 1


def test_a_liar_about_one_client_makes_nobody_search_for_the_others(monkeypatch):
    searched = []
    search = shamir.reconstruct_verified
    monkeypatch.setattr(shamir, "reconstruct_verified", lambda *given: searched.append(0) or search(*given))
    case = simple(20, 12)
    for name in sorted(case.survivors):
        case.take(name, {"c19"} if name == "c02" else ())
    assert np.array_equal(case.removed(), case.plain)
    assert case.unmasking.faulty == {"c02"}
    assert len(searched) == 1


@pytest.mark.parametrize("owner", ["c01", "c02"])
def test_on_a_ring_whoever_dealt_shares_of_something_else_is_named(owner):
    """One that dropped, and one that survived."""
    graph = Graph.harary(names(14), 8, b"ring")
    case = Sum(dealt(graph, 4), names(14), [name for name in names(14) if name != "c01"])
    if owner == "c01":
        case.made.publics[owner] = dealt(Graph.complete(names(3)), 2).publics["c00"]
    else:
        case.made.hashes[owner] = bytes(32)
    for name in sorted(case.survivors):
        case.take(name)
    with pytest.raises(RoundAborted, match=f"{owner!r} do not give its secret back") as info:
        case.removed()
    assert info.value.blame == (owner,)


def test_whoever_dealt_shares_of_something_else_is_named():
    """Its shares fit each other, and give a secret that is not the one that it announced."""
    for owner, dropped in (("c02", ("c01",)), ("c01", ("c01",))):
        case = simple(6, 4, dropped)
        if owner in dropped:
            stranger = dealt(Graph.complete(names(3)), 2)
            case.made.publics[owner] = stranger.publics["c00"]
        else:
            case.made.hashes[owner] = bytes(32)
        for name in sorted(case.survivors):
            case.take(name)
        with pytest.raises(RoundAborted, match=f"{owner!r} do not give its secret back") as info:
            case.removed()
        assert info.value.blame == (owner,)


@pytest.mark.parametrize("at", [0, 1100])
def test_a_contribution_that_its_dropped_receiver_cannot_open_is_blamed_on_its_sender(at):
    """Hybrid: c03 sealed something else for c01, which dropped before it could say so."""
    case = simple(5, 3, ("c01",), hybrid=True)
    box = bytearray(case.made.boxes["c03", "c01"])
    box[at] ^= 1
    case.made.boxes["c03", "c01"] = bytes(box)
    for name in sorted(case.survivors):
        case.take(name)
    with pytest.raises(RoundAborted, match="'c03' sealed no usable contribution for 'c01'") as info:
        case.removed()
    assert info.value.blame == ("c03",)


def test_an_unmasking_is_a_secret():
    assert issubclass(Unmasking, Secret)
    assert repr(simple().unmasking) == "<Unmasking: secret>"
