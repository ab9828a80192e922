"""Simulated rounds: what they release is the clear sum, and what they say they cost is what was sent."""

from __future__ import annotations

from typing import Any

import pytest

from secagg import (
    Client,
    ClientPhase,
    CohortError,
    EncodingError,
    Identity,
    MemoryRegister,
    PhaseError,
    Policy,
    PolicyError,
    Roster,
    Schema,
    Server,
    ServerPhase,
    summed,
)
from secagg.simulate import STAGES, Costs, run_round

SCHEMA = Schema(x=summed(1000, shape=(3,)))


def parties(n: int, policy: Policy, degree: int = 0) -> tuple[Server, list[Client]]:
    boss = Identity.generate("server")
    people = [Identity.generate(f"c{i:02}") for i in range(n)]
    roster = Roster(boss.public_key, {p.name: p.public_key for p in people})
    clients = [Client(p, roster, SCHEMA, policy=policy, register=MemoryRegister()) for p in people]
    return Server(boss, roster, SCHEMA, policy=policy, degree=degree), clients


def values(n: int) -> list[dict[str, Any]]:
    """Powers of two tell from a sum whose values are in it."""
    return [{"x": [2**i, 0, -(2**i)]} for i in range(n)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_client_lost_at_any_stage_leaves_the_sum_of_those_whose_vectors_came(stage: str) -> None:
    server, clients = parties(8, Policy(colluders=1))
    result = run_round(server, clients, values(8), drops={"c03": stage})
    counted = stage in ("consistency", "unmask")
    total = 2**8 - 1 - (0 if counted else 2**3)
    assert result.values["x"].tolist() == [total, 0, -total]
    # Who never advertised was never in the round that it could drop from.
    assert result.dropped == (("c03",) if stage in ("shares", "vector") else ())
    assert len(result.survivors) == (8 if counted else 7)


def test_costs_are_those_of_every_stage_and_every_client() -> None:
    costs = Costs()
    server, clients = parties(6, Policy(colluders=1))
    run_round(server, clients, values(6), drops={"c00": "vector", "c05": "unmask"}, costs=costs)
    stages = {"advert", "shares", "delivery", "vector", "consistency", "unmask"}
    assert set(costs.client_seconds["c05"]) == stages
    assert set(costs.client_seconds["c00"]) == {"advert", "shares", "delivery", "vector"}
    assert set(costs.server_seconds) >= {"offer", "result", *stages - {"delivery"}}
    assert all(s >= 0 for by_stage in costs.client_seconds.values() for s in by_stage.values())
    assert len({costs.bytes_up[f"c{i:02}"] for i in range(1, 6)}) == 1
    assert costs.bytes_up["c00"] < costs.bytes_up["c01"]
    assert costs.bytes_down["c00"] < costs.bytes_down["c01"]


def test_too_many_drops_fail_the_round_as_a_whole() -> None:
    server, clients = parties(6, Policy(colluders=1))
    with pytest.raises(CohortError):
        run_round(server, clients, values(6), drops={f"c{i:02}": "unmask" for i in range(3)})


def test_a_sparse_round_needs_its_beacon_and_gives_the_same_sum() -> None:
    policy = Policy(colluders=0, sparse=True, threshold_fraction=9 / 13)
    server, clients = parties(40, policy, degree=12)
    small = [{"x": [i, 0, -i]} for i in range(40)]
    result = run_round(server, clients, small, drops={"c07": "vector"}, beacon=bytes(range(32)))
    assert result.values["x"].tolist() == [40 * 39 // 2 - 7, 0, 7 - 40 * 39 // 2]


def test_values_and_drops_that_do_not_fit_are_refused() -> None:
    server, clients = parties(6, Policy(colluders=1))
    with pytest.raises(ValueError, match="each of 6 clients"):
        run_round(server, clients, values(5))
    with pytest.raises(ValueError, match=r"\['c1'\]"):
        run_round(server, clients, values(6), drops={"c1": "vector"})
    with pytest.raises(ValueError, match=r"\['c01'\]"):
        run_round(server, clients, values(6), drops={"c01": "lunch"})


def test_an_error_names_the_client_and_leaves_nobody_in_the_round() -> None:
    server, clients = parties(6, Policy(colluders=1))
    given = values(6)
    given[2] = {"x": [float("nan"), 0, 0]}
    with pytest.raises(EncodingError) as caught:
        run_round(server, clients, given)
    assert any("client 'c02'" in note for note in caught.value.__notes__)
    assert server.phase is ServerPhase.IDLE
    assert {client.phase for client in clients} == {ClientPhase.IDLE}
    assert run_round(server, clients, values(6), round=2).values["x"].tolist() == [63, 0, -63]


def test_a_server_that_gives_up_lets_the_clients_out_too() -> None:
    server, clients = parties(6, Policy(colluders=1))
    with pytest.raises(CohortError):
        run_round(server, clients, values(6), drops={f"c{i:02}": "vector" for i in range(3)})
    assert {client.phase for client in clients} == {ClientPhase.IDLE}


def test_a_round_that_somebody_else_opened_goes_on() -> None:
    server, clients = parties(6, Policy(colluders=1))
    clients[0].receive(server.open(1))
    with pytest.raises(PhaseError):
        run_round(server, clients, values(6), round=2)
    assert server.phase is ServerPhase.ADVERTS
    assert clients[0].phase is ClientPhase.ADVERTISED


def test_a_client_that_refused_the_offer_stays_in_the_round_that_it_is_in() -> None:
    boss, people = Identity.generate("server"), [Identity.generate(f"c{i:02}") for i in range(6)]
    roster = Roster(boss.public_key, {p.name: p.public_key for p in people})
    lax, strict = Policy(colluders=1), Policy(colluders=1, min_clients=6)
    clients = [
        Client(p, roster, SCHEMA, policy=policy, register=MemoryRegister())
        for p, policy in zip(people, [lax] * 5 + [strict], strict=True)
    ]
    clients[5].receive(Server(boss, roster, SCHEMA, policy=strict).open(1))
    with pytest.raises(PolicyError) as caught:
        run_round(Server(boss, roster, SCHEMA, policy=lax), clients, values(6))
    assert any("client 'c05'" in note for note in caught.value.__notes__)
    assert clients[5].phase is ClientPhase.ADVERTISED
    assert {client.phase for client in clients[:5]} == {ClientPhase.IDLE}


def test_a_missing_beacon_is_noticed_before_the_round_is_opened() -> None:
    policy = Policy(colluders=0, sparse=True, threshold_fraction=9 / 13)
    server, clients = parties(40, policy, degree=12)
    small = [{"x": [i, 0, -i]} for i in range(40)]
    with pytest.raises(ValueError, match="beacon= for a round of 40 clients"):
        run_round(server, clients, small)
    assert server.phase is ServerPhase.IDLE
    # 32 adverts make a complete graph, which needs none; the number 1 is still to be had.
    lost = {f"c{i:02}": "advert" for i in range(8)}
    assert len(run_round(server, clients, small, drops=lost).survivors) == 32


def test_clients_and_values_by_name_are_refused() -> None:
    server, clients = parties(6, Policy(colluders=1))
    by_name: Any = {client.name: client for client in clients}
    with pytest.raises(TypeError, match=r"list\(clients.values\(\)\)"):
        run_round(server, by_name, values(6))
    named: Any = dict(zip(by_name, values(6), strict=True))
    with pytest.raises(TypeError, match="Expected values as a sequence"):
        run_round(server, clients, named)
