"""Policies: what protects nobody cannot be written, and no offer can weaken one."""

from __future__ import annotations

import msgspec
import pytest

from secagg import CohortError, Policy, PolicyError
from secagg.graph import Graph, plan, threshold
from tests.secagg.test_messages import OFFER


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_clients": 2}, "min_clients >= 3, got 2: a sum over two"),
        ({"min_clients": 2, "allow_three": True}, "min_clients >= 3, got 2"),
        ({"min_clients": 0}, "got 0"),
        ({"min_clients": 3}, "consent with allow_three=True"),
        ({"max_clients": 4}, r"max_clients in 5 \(min_clients\)..131072, got 4"),
        ({"max_clients": 2**17 + 1}, "got 131073"),
        ({"threshold_fraction": 0.5}, r"in \(0.5, 1\], got 0.5"),
        ({"threshold_fraction": 1.1}, "got 1.1"),
        ({"threshold_fraction": float("nan")}, "got nan"),
        ({"cipher": "AES-64"}, "'AES-64'"),
        ({"colluders": -1}, "a number of clients or a fraction below 1, got -1"),
        ({"colluders": float("nan")}, "got nan"),
        ({"colluders": float("inf")}, "got inf"),
        ({"colluders": True}, "got True"),
        ({"colluders": 2.5}, "whole number of colluders, got 2.5"),
    ],
)
def test_policies_that_protect_nobody_are_refused(arguments, message):
    with pytest.raises(PolicyError, match=message):
        Policy(**arguments)


def test_small_cohorts_take_consent():
    assert Policy(min_clients=4).min_clients == 4
    assert Policy(min_clients=3, allow_three=True).min_clients == 3


def offer(**changes):
    return msgspec.structs.replace(OFFER, **{"capacity": 9, "min_clients": 5, **changes})


@pytest.mark.parametrize(
    ("policy", "changes", "message"),
    [
        ({}, {"min_clients": 4}, "min_clients=4, at least 5 wanted"),
        ({}, {"threshold_fraction": 0.6}, "threshold_fraction=0.600, at least 0.667 wanted"),
        ({}, {"threshold_fraction": float("nan")}, "threshold_fraction=nan"),
        ({"max_clients": 8}, {}, "capacity=9, at most 8 clients wanted"),
        ({}, {"capacity": 4}, "capacity=4, at least 5 clients wanted"),
        ({"cipher": "AES-256"}, {}, "cipher=AES-128, at least AES-256 wanted"),
        ({}, {"degree": 40}, r"degree=40, a complete graph wanted \(this caller has no beacon\)"),
        ({"hybrid": True}, {}, "hybrid=False, X25519 with ML-KEM-768 wanted"),
    ],
)
def test_a_weaker_offer_is_refused_with_its_reason(policy, changes, message):
    Policy().verify_offer(offer())
    with pytest.raises(PolicyError, match=message):
        Policy(**policy).verify_offer(offer(**changes))


def test_all_reasons_are_given_at_once():
    with pytest.raises(PolicyError, match=r"min_clients=1.*; threshold_fraction=0.1.*"):
        Policy().verify_offer(offer(min_clients=1, threshold_fraction=0.1))


def test_a_stronger_offer_is_welcome():
    Policy().verify_offer(offer(min_clients=8, cipher="AES-256", hybrid=True, threshold_fraction=1.0))
    Policy(sparse=True).verify_offer(offer(degree=40))
    Policy(sparse=True).verify_offer(offer())


@pytest.mark.parametrize("size", [0, 4, 10])
def test_rosters_outside_the_limits_are_refused(size):
    with pytest.raises(PolicyError, match=f"roster of 5..9 clients, got {size}"):
        Policy(max_clients=9).verify_cohort(1, size)


@pytest.mark.parametrize(
    ("colluders", "expected"),
    [
        (0, [0, 0, 0, 0, 0]),
        (0.2, [0, 1, 2, 6, 20]),
        (1 / 3, [1, 2, 4, 11, 34]),
        (0.0, [0] * 5),
        (1, [1] * 5),
        (1.0, [1] * 5),
        (7, [7] * 5),
    ],
)
def test_colluders_are_a_number_or_a_fraction_rounded_down(colluders, expected):
    policy = Policy(colluders=colluders)
    assert [policy.colluding(size) for size in (4, 7, 12, 33, 102)] == expected


def test_a_fraction_of_tenths_does_not_lose_a_colluder_to_rounding():
    """0.7 of 10 is 7, though 0.7 * 10 in binary may come out below it."""
    for tenths in range(1, 10):
        assert Policy(colluders=tenths / 10).colluding(10) == tenths
        assert Policy(colluders=tenths / 10).colluding(1000) == 100 * tenths


@pytest.mark.parametrize("size", range(3, 41))
def test_in_a_complete_graph_two_sets_of_survivors_never_both_unmask(size):
    """Honest holders sign one set each and colluders both: 2t <= h + c is what both would take."""
    graph = Graph.complete([f"c{i:02}" for i in range(size)])
    for colluders in range(size):
        for wanted in range(1, size + 1):
            # The attack, counted out: honest holders split between the sets, colluders in both.
            honest = size - colluders
            both = any(
                half + colluders >= wanted and honest - half + colluders >= wanted
                for half in range(honest + 1)
            )
            policy = Policy(colluders=colluders)
            if both:
                with pytest.raises(PolicyError, match=r"2 \* threshold > clients \+ colluders"):
                    policy.verify_graph(1, graph, wanted)
            else:
                policy.verify_graph(1, graph, wanted)


def test_the_defaults_stand_for_every_cohort():
    """Two thirds of the holders withstand a fifth of colluders."""
    for size in range(5, 300):
        graph = Graph.complete([f"c{i:03}" for i in range(size)])
        Policy().verify_graph(1, graph, threshold(2 / 3, size))


def test_a_sparse_graph_is_judged_by_its_bound(monkeypatch):
    graph = Graph.harary([f"c{i:02}" for i in range(40)], 10, bytes(32))
    asked = []

    def bound(*args, **kwargs):
        asked.append((args, kwargs))
        return bounds.pop(0)

    monkeypatch.setattr("secagg.policy.privacy_bound", bound)
    bounds = [2.0**-40, 2.0**-39, float("nan")]
    Policy(sparse=True).verify_graph(1, graph, 8)
    assert asked == [((40, 10, 8), {"colluders": 8 / 40})]
    for said in (r"got 2\^-39.0 with degree=10, threshold=8, 40 clients and colluders=8", "nan"):
        with pytest.raises(PolicyError, match=said):
            Policy(sparse=True).verify_graph(1, graph, 8)


def test_a_sparse_graph_as_planned_passes_and_a_neighbour_less_does_not():
    names = [f"c{i:03}" for i in range(600)]
    planned = plan(600, colluders=0.1, dropout=0.05)
    assert planned.degree, "a cohort for which a sparse graph is worth it"
    policy = Policy(sparse=True, colluders=0.1)
    policy.verify_graph(1, Graph.harary(names, planned.degree, bytes(32)), planned.threshold)
    with pytest.raises(PolicyError, match=r"fails with probability <= 2\^-40"):
        policy.verify_graph(1, Graph.harary(names, planned.degree, bytes(32)), planned.threshold - 1)
    with pytest.raises(PolicyError, match=r"fails with probability <= 2\^-40"):
        Policy(sparse=True, colluders=0.2).verify_graph(
            1, Graph.harary(names, planned.degree, bytes(32)), planned.threshold
        )


def test_a_ring_whose_parts_are_smaller_than_the_policys_cohort_is_refused():
    graph = Graph.harary([f"c{i:02}" for i in range(33)], 4, bytes(32))
    Policy(sparse=True, colluders=0, min_clients=8).verify_graph(1, graph, 4)
    with pytest.raises(PolicyError, match=r"at least min_clients=9 honest clients.*guarantees 8"):
        Policy(sparse=True, colluders=0, min_clients=9).verify_graph(1, graph, 4)


@pytest.mark.parametrize(
    ("policy", "size", "fewest"),
    [
        ({}, 5, 5),
        ({}, 20, 6),
        ({}, 100, 22),
        ({"colluders": 0}, 100, 5),
        ({"colluders": 9}, 20, 11),
        ({"min_clients": 30}, 100, 30),
    ],
)
def test_a_sum_holds_two_more_than_may_collude(policy, size, fewest):
    """R5: with one honest survivor beside the colluders the sum is its value."""
    made = Policy(**policy)
    made.verify_survivors(3, fewest, size)
    for survivors in (fewest - 1, 2, 0):
        with pytest.raises(CohortError, match=f"Round 3 has {survivors} survivors.*at least {fewest} "):
            made.verify_survivors(3, survivors, size)
    made.verify_survivors(3, fewest + 1, size, promised=fewest + 1)
    with pytest.raises(CohortError, match=f"at least {fewest + 1} "):
        made.verify_survivors(3, fewest, size, promised=fewest + 1)
