"""Answers that come late, again, or for another round; clients and servers that restart within a round."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest

import secagg
from privopt.checkpoint import dump_state, load_state
from privopt.federation.client import Client
from privopt.federation.messages import unverified
from privopt.federation.reports import ClientReport
from privopt.federation.settings import Dropout
from tests.contracts import same_state
from tests.privopt.federated import STAGES, Planned, federation, last_sent, quadratics

COUNTS = {"consistency", "unmask"}
"""Stages that come after the vector: who vanishes there is in the sum."""


class Wire:
    """A transport that keeps all bytes that ever travelled, by round, client and stage."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str, bytes]] = []
        self.answers: list[tuple[int, str, str | None, bytes]] = []

    def __call__(self, client: Client, message: bytes) -> bytes | None:
        number = unverified(message).round
        self.asked.append((number, client.id, message))
        answer = client.handle(message)
        if answer is not None:
            self.answers.append((number, client.id, last_sent(client), answer))
        return answer


def test_whatever_comes_again_is_refused_at_every_stage_and_changes_nothing(tmp_path: Path) -> None:
    """The last answers are sent again before each message, to the server; messages to their client."""
    wire, refused = Wire(), 0
    plain = federation(tmp_path / "plain", quadratics(5))
    found = federation(tmp_path / "again", quadratics(5))

    def transport(client: Client, message: bytes) -> bytes | None:
        nonlocal refused
        for _, name, _, answer in wire.answers[-12:]:
            before = dump_state(found.server.get_state()), repr(found.server.report)
            with pytest.raises((ValueError, secagg.SecAggError)):
                found.server.receive(answer)
            assert (dump_state(found.server.get_state()), repr(found.server.report)) == before, name
            refused += 1
        sent = wire(client, message)
        for _, name, asked in wire.asked[-12:]:
            if name == client.id:
                with pytest.raises((ValueError, secagg.SecAggError)):
                    client.handle(asked)
                refused += 1
        return sent

    found._transport = transport
    assert [r.status for r in found.run(2)] == [r.status for r in plain.run(2)] == ["ok", "ok"]
    assert refused > 300
    assert found.server.weights.equals(plain.server.weights)


@pytest.mark.parametrize("stage", STAGES)
def test_a_late_answer_is_refused_and_the_round_is_that_of_a_lost_one(tmp_path: Path, stage: str) -> None:
    founds = []
    for late in (True, False):
        plan = Planned({1: {"c2": Dropout(stage, late)}})
        found = federation(tmp_path / str(late), quadratics(6), dropouts=plan)
        report = found.run_round()
        assert report.status == "ok"
        assert report.clients["c2"] == ClientReport("ok" if stage in COUNTS else "dropped", stage, late)
        assert found.run_round().clients["c2"] == ClientReport("ok"), "the next round is open to it"
        founds.append(found)
    assert founds[0].server.weights.equals(founds[1].server.weights)
    for a, b in zip(founds[0].clients.values(), founds[1].clients.values(), strict=True):
        assert same_state(a.optimizer.get_state(), b.optimizer.get_state())


def test_an_answer_of_the_last_round_is_refused_by_the_next_and_by_a_server_with_none_open(
    tmp_path: Path,
) -> None:
    wire = Wire()
    found = federation(tmp_path, quadratics(5), transport=wire)
    assert found.run_round().status == "ok"
    first = list(wire.answers)
    for _, _, _, answer in first:
        with pytest.raises(ValueError, match="Expected an answer in round 1, got something else"):
            found.server.receive(answer)
    begin = found.server.begin()
    for _, _, _, answer in first:
        with pytest.raises(ValueError, match="Expected an answer in round 2, got something else"):
            found.server.receive(answer)
    for client in found.clients.values():
        assert found.server.receive(client.handle(begin) or b"") == client.id


# ---- a server that need not wait, and wrong shares ---------------------------------------------------------


def test_a_stage_may_end_as_soon_as_enough_have_answered(tmp_path: Path) -> None:
    """Nine clients, each stage ended at once: the five that a sum takes, then four of them."""
    found = federation(tmp_path, quadratics(9))
    server, heard = found.server, []
    assert (server.stage, server.missing, server.enough) == (None, (), False)
    server.begin()
    messages = {name: server.opening(name) for name in found.clients}
    while messages:
        for name, message in messages.items():
            assert server.missing
            server.receive(found.clients[name].handle(message) or b"")
            if server.enough:
                break
        heard.append((server.stage, len(messages) - len(server.missing)))
        messages = server.advance()
    assert heard == [("advert", 5), ("shares", 5), ("vector", 5), ("consistency", 4), ("unmask", 4)]
    report = server.finish()
    assert report.status == "ok"
    assert [c.dropped for c in report.clients.values()] == [None] * 4 + ["consistency"] + ["advert"] * 4
    assert (server.stage, server.missing, server.enough) == (None, (), False)


def test_a_round_that_is_finished_too_early_stays_as_it_was(tmp_path: Path) -> None:
    found = federation(tmp_path)
    server = found.server
    begin = server.begin()
    answers = [client.handle(begin) or b"" for client in found.clients.values()]
    before = repr(server.report)
    with pytest.raises(secagg.PhaseError, match="result"):
        server.finish()
    assert repr(server.report) == before
    for answer in answers:
        server.receive(answer)
    assert server.stage == "advert"
    assert sorted(server.advance()) == sorted(found.clients)
    with pytest.raises(secagg.PhaseError, match="a stage that advance"):
        federation(tmp_path / "other").server.advance()


def test_a_cohort_in_which_colluders_would_be_too_many_is_a_failed_round_and_no_crash(tmp_path: Path) -> None:
    """Three may collude: five clients cannot do without them, eight can."""
    policy = secagg.Policy(min_clients=5, colluders=3)
    away = {f"c{i}": Dropout("advert", late=False) for i in range(3)}
    found = federation(tmp_path, quadratics(8), policy=policy, dropouts=Planned({1: away}))
    report = found.run_round()
    assert report.status == "aborted"
    assert "threshold=4 of 5 clients and colluders=3" in str(report.reason)
    assert {c.status for c in report.clients.values()} == {"dropped", "aborted"}
    assert found.run_round().status == "ok"


def test_wrong_shares_are_corrected_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from secagg.sharing import RoundSecrets

    unmask = RoundSecrets.unmask

    def lying(secrets: RoundSecrets, survivors: Collection[str]) -> bytes:
        shares = bytearray(unmask(secrets, survivors))
        if secrets._name == "c3":
            shares[0] ^= 1
        return bytes(shares)

    plain = federation(tmp_path / "a", quadratics(8))
    plain.run_round()
    monkeypatch.setattr(RoundSecrets, "unmask", lying)
    found = federation(tmp_path / "b", quadratics(8))
    report = found.run_round()
    assert (report.status, report.faulty) == ("ok", ("c3",))
    assert found.server.weights.equals(plain.server.weights)


# ---- restarts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_a_client_restarted_within_a_round_has_dropped_out_of_it_and_joins_the_next(
    tmp_path: Path, stage: str
) -> None:
    """Its process ends after it answered a stage. Whether its vector counts, its files do not know."""
    restarted: list[str] = []

    def transport(client: Client, message: bytes) -> bytes | None:
        if client.id == "c1" and (client._round, last_sent(client)) == (2, stage) and not restarted:
            again = federation(tmp_path / "a", quadratics(6)).clients["c1"]
            found.clients["c1"] = client = again
            restarted.append(stage)
            with pytest.raises(ValueError, match="no advert of it stands"):
                client.handle(message)
            raise ConnectionError
        return client.handle(message)

    found = federation(tmp_path / "a", quadratics(6), transport=transport)
    following = STAGES[STAGES.index(stage) + 1]
    plan = Planned({2: {"c1": Dropout(following, late=False)}})
    wanted = federation(tmp_path / "b", quadratics(6), dropouts=plan)
    reports = [(found.run_round(), wanted.run_round()) for _ in range(4)]
    assert restarted == [stage]
    assert [(a.status, a.clients["c1"]) for a, _ in reports] == [
        (b.status, b.clients["c1"]) for _, b in reports
    ]
    assert reports[1][0].clients["c1"].dropped == following
    assert found.server.weights.equals(wanted.server.weights)
    for a, b in zip(found.clients.values(), wanted.clients.values(), strict=True):
        assert same_state(a.optimizer.get_state(), b.optimizer.get_state())


@pytest.mark.parametrize("stage", STAGES)
def test_a_server_restarted_within_a_round_has_lost_it_and_goes_on(tmp_path: Path, stage: str) -> None:
    """Round 2 stops when somebody answered a stage; a new server from the state of round 1 does it again."""

    class StopError(Exception):
        pass

    def transport(client: Client, message: bytes) -> bytes | None:
        answer = client.handle(message)
        if (client._round, last_sent(client)) == (2, stage) and not stopped:
            stopped.append(client.id)
            raise StopError
        return answer

    stopped: list[str] = []
    found = federation(tmp_path / "a", quadratics(5), transport=transport)
    wanted = federation(tmp_path / "b", quadratics(5))
    found.run_round()
    saved = dump_state(found.server.get_state())
    with pytest.raises(StopError):
        found.run_round()
    other = federation(tmp_path / "a", quadratics(5))
    other.clients = found.clients  # these processes live on
    other.server.set_state(load_state(saved))
    assert [other.run_round().status for _ in range(2)] == ["ok", "ok"]
    list(wanted.run(3))
    assert other.server.round == wanted.server.round == 3
    assert other.server.weights.equals(wanted.server.weights)
    assert same_state(other.server.optimizer.get_state(), wanted.server.optimizer.get_state())
