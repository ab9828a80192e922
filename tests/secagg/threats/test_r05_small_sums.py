"""R5: sums of too few, and sums whose difference is one client."""

from __future__ import annotations

import numpy as np
import pytest

from secagg import Client, CohortError, MemoryRegister, Policy, PolicyError, RoundReused, Server, explain
from tests.secagg.parties import make_parties, run_round
from tests.secagg.threats.attacker import SCHEMA, THREE, Attacker, assert_is_sum, secret_values


class Pair(Policy):
    """A policy that is content with two."""

    __slots__ = ()

    def __post_init__(self):
        pass


def rest_of_the_sum(found, own) -> dict:
    """What one of two knows when it takes its own value off the sum."""
    return {"n": found["n"] - own["n"], "x": np.asarray(found["x"]) - own["x"]}


def test_one_of_two_knows_the_other_where_two_are_allowed():
    """Server and clients are honest; c1 does a subtraction."""
    parties = Attacker(2, policy=Pair(min_clients=2, colluders=0, threshold_fraction=1.0))
    values = secret_values(parties.names)
    parties.run(values, parties.names)
    found = rest_of_the_sum(parties.learn(parties.names), values["c1"])
    assert found["n"] == values["c0"]["n"]
    assert np.abs(found["x"] - values["c0"]["x"]).max() <= 2 * SCHEMA["x"].quantum * (1 + 1e-9)


def test_two_are_refused_and_three_only_by_consent():
    with pytest.raises(PolicyError, match="got 2: a sum over two clients tells each of them the other's"):
        Policy(min_clients=2, allow_three=True)
    with pytest.raises(PolicyError, match="got 3: any two clients that collude, or one and the server, lea"):
        Policy(min_clients=3)
    assert Policy(min_clients=3, allow_three=True).min_clients == 3


class Forgetful(Policy):
    """Does not hold the server to what it offered."""

    __slots__ = ()

    def verify_survivors(self, round, survivors, size, promised=0):
        super().verify_survivors(round, survivors, size)


def undercut(parties: Attacker, values) -> dict:
    """c0 insists on six and is never asked; the others, content with three, sign that five survived."""
    parties.advertise(parties.offer(min_clients=6))
    parties.share()
    parties.deliver()
    parties.submit(values)
    chosen, asked = parties.names[:5], parties.names[1:5]
    for name in asked:
        parties.ask(name, chosen)
    for name in asked:
        parties.unmask(name, chosen)
    return parties.learn(chosen)


SIX = Policy(min_clients=6, colluders=0)


def test_a_smallest_cohort_is_undercut_where_the_others_forget_what_was_offered():
    loose = Forgetful(min_clients=3, allow_three=True, colluders=0)
    parties = Attacker(6, policy=loose, policies={"c0": SIX})
    values = secret_values(parties.names)
    assert_is_sum(undercut(parties, values), [values[name] for name in parties.names[:5]])


def test_every_client_holds_the_server_to_the_smallest_cohort_of_its_offer():
    parties = Attacker(6, policy=THREE, policies={"c0": SIX})
    message = (
        r"^Round 1 has 5 survivors of 6 clients, expected at least 6 \(min_clients=6, colluders=0 and two "
        r"more\)\. Nothing is released\.$"
    )
    with pytest.raises(CohortError, match=message):
        undercut(parties, secret_values(parties.names))


def test_as_many_honest_survivors_as_hide_each_other_are_asked_for():
    policy = Policy(min_clients=4, colluders=3)
    with pytest.raises(CohortError, match="4 survivors of 9 clients, expected at least 5"):
        policy.verify_survivors(1, 4, 9)
    policy.verify_survivors(1, 5, 9)


def without_c0_the_second_time(parties: Attacker, values, second: int) -> dict:
    """One round with everybody, one without c0, with the same values: what is left is c0."""
    parties.run(values, parties.names)
    whole = parties.learn(parties.names)
    rest = parties.names[1:]
    parties.advertise(parties.offer(second), rest)
    parties.share()
    parties.deliver()
    parties.submit(values, rest)
    for name in rest:
        parties.ask(name, rest)
    for name in rest:
        parties.unmask(name, rest)
    return rest_of_the_sum(whole, parties.learn(rest))


class Unregistered(MemoryRegister):
    def claim(self, session, round):
        pass


def test_a_round_that_is_done_again_without_one_client_gives_its_value_where_rounds_are_not_registered():
    parties = Attacker(5, registers={f"c{i}": Unregistered() for i in range(5)})
    values = secret_values(parties.names)
    found = without_c0_the_second_time(parties, values, second=1)
    assert found["n"] == values["c0"]["n"]
    assert np.abs(found["x"] - values["c0"]["x"]).max() <= 9 * SCHEMA["x"].quantum * (1 + 1e-9)


def test_a_round_number_is_used_once():
    parties = Attacker(5)
    with pytest.raises(RoundReused, match=r"^Round 1 of session 61747461… was already used here"):
        without_c0_the_second_time(parties, secret_values(parties.names), second=1)
    honest = make_parties(4, SCHEMA)
    run_round(honest, list(secret_values(honest.names()).values()), 3)
    for number in (3, 2):
        with pytest.raises(RoundReused, match=rf"^Round {number} is not after round 3, which was opened"):
            honest.server.open(number)


def test_rounds_whose_cohorts_differ_by_one_client_give_its_value_and_explain_says_so():
    """No mask helps against that: it is named, and noise is for it."""
    parties = Attacker(5)
    values = secret_values(parties.names)
    found = without_c0_the_second_time(parties, values, second=2)
    assert found["n"] == values["c0"]["n"], "two releases, exact both: their difference is too"
    text = " ".join(str(explain(SCHEMA, 5)).split())
    assert "unless all the others of its round pool theirs" in text
    assert "rounds whose cohorts differ by one client" in text


def test_the_server_counts_survivors_again_when_vectors_are_missing():
    parties = make_parties(6, SCHEMA, policy=SIX)
    assert isinstance(parties.server, Server)
    assert isinstance(parties.clients[0], Client)
    values = list(secret_values(parties.names()).values())
    with pytest.raises(CohortError, match="Round 1 has 5 clients after submitting, expected at least 6"):
        run_round(parties, values, drops={"c2": "vector"})
