from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import secagg
from privopt import Optimizer
from privopt.checkpoint import dump_state, load_state
from privopt.federation.client import Client
from privopt.federation.messages import Ready, Stopped, Submit, sealed, unverified
from tests.contracts import same_state
from tests.privopt.federated import Quadratic, federation, quadratics

ROUNDS = 10


@pytest.mark.parametrize("scaffold", [False, True], ids=["fedavg", "scaffold"])
@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_masked_and_clear_rounds_give_the_same_weights_within_the_declared_precision(
    tmp_path: Path, scaffold: bool, weighting: str
) -> None:
    clear = federation(tmp_path / "clear", masks=False, scaffold=scaffold, weighting=weighting)
    masked = federation(tmp_path / "masked", masks=True, scaffold=scaffold, weighting=weighting)
    samples = [p.num_samples for p in quadratics().values()]
    # A change counts by its client's share of the largest weight, a power of two: so does its rounding.
    share = np.mean(samples) / 64 if weighting == "samples" else 1.0
    budget = 0.0
    for a, b in zip(clear.run(ROUNDS), masked.run(ROUNDS), strict=True):
        assert (a.status, b.status) == ("ok", "ok")
        assert not any(b.clipped.values()), "no value may have been clipped for the claim to hold"
        # One quantum of each carried field a round; the local steps contract, so errors do not grow.
        quanta = {name: bound / (2**15 - 1) for name, bound in b.bounds.items()}
        budget += quanta["update"] + quanta.get("scaffold.delta", 0.0) / share
        gap = np.abs(clear.server.weights.flatten() - masked.server.weights.flatten()).max()
        assert gap <= budget
    assert gap > 0, "masked values are rounded: bitwise equality would mean that nothing was masked"
    if scaffold:
        exact, carried = (f.server.optimizer.modules[0] for f in (clear, masked))
        everybody = sum(samples) if weighting == "samples" else len(clear.clients)
        assert exact.clients == carried.clients == everybody
        error = np.abs(
            exact.collect_aux_var().control.flatten() - carried.collect_aux_var().control.flatten()
        )
        assert error.max() <= budget


def test_scaffolds_server_state_is_the_mean_of_the_clients_control_variates(tmp_path: Path) -> None:
    """Exactly, although values are rounded and, with these curvatures, clipped at first: what was not carried
    in one round goes with the next."""
    points = {n: p.points for n, p in quadratics().items()}
    found = federation(tmp_path, {n: Quadratic(4 * x, 1.5) for n, x in points.items()}, masks=True)
    reports = list(found.run(ROUNDS))
    assert reports[0].clipped["scaffold.delta"] > 0
    controls = []
    for client in found.clients.values():
        client._settle(ROUNDS)
        controls.append(client.optimizer.modules[0].control.flatten())
    server = found.server.optimizer.modules[0].collect_aux_var().control.flatten()
    np.testing.assert_allclose(server, np.mean(controls, axis=0), rtol=1e-12, atol=1e-12)
    assert np.abs(server).max() > 0.01, "or the comparison would show nothing"


def test_scaffold_reaches_the_optimum_where_averaging_stalls(tmp_path: Path) -> None:
    """Full batches, clients of different curvature: the minimizer of the mean loss is known."""
    problems = quadratics()
    scales = np.array([p.scale**2 for p in problems.values()])
    means = np.array([p.points.mean(axis=0) for p in problems.values()])
    optimum = (scales[:, None] * means).sum(axis=0) / scales.sum()

    def distance(name: str, scaffold: bool) -> float:
        optimizer = lambda: Optimizer(0.1, modules=["scaffold-client"] if scaffold else [])  # noqa: E731
        found = federation(tmp_path / name, quadratics(), masks=False, scaffold=scaffold, client=optimizer)
        for client in found.clients.values():
            client._sample_rate = 1.0
        list(found.run(150))
        return float(np.abs(found.server.weights.coefs["w"] - optimum).max())

    assert distance("scaffold", True) < 1e-6
    assert distance("fedavg", False) > 1e-2


def test_a_client_that_fails_after_its_advert_aborts_that_round_and_training_goes_on(tmp_path: Path) -> None:
    lost = {"round": 3}

    def transport(client: Client, message: bytes) -> bytes | None:
        answer = client.handle(message)
        sent = unverified(answer) if client.id == "c1" and answer is not None else None
        if isinstance(sent, Submit) and sent.round == lost["round"]:
            raise ConnectionError("on purpose")
        return answer

    found = federation(tmp_path, transport=transport)
    reports = [found.run_round() for _ in range(2)]
    before = dump_state(found.server.get_state()["optimizer"]), found.server.weights.copy()
    reports.append(found.run_round())
    assert reports[2].status == "aborted"
    assert "c1" in str(reports[2].reason)
    assert found.server.weights.equals(before[1]), "an aborted round must release nothing"
    assert dump_state(found.server.get_state()["optimizer"]) == before[0]
    reports += [found.run_round() for _ in range(2)]
    assert [r.status for r in reports] == ["ok", "ok", "aborted", "ok", "ok"]


def test_an_aborted_round_leaves_the_clients_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Same weights as a run in which that round number was never trained at all."""

    def losing(number: int, kind: type) -> object:
        def transport(client: Client, message: bytes) -> bytes | None:
            opened = unverified(message)
            if kind is object and opened.round == number:
                raise ConnectionError("nobody hears of the round")
            answer = client.handle(message)
            if (
                kind is Submit
                and answer
                and isinstance(unverified(answer), Submit)
                and opened.round == number
            ):
                raise ConnectionError("the vector is lost")
            return answer

        return transport

    trained = federation(tmp_path / "a", transport=losing(2, Submit), client=_momentum)
    absent = federation(tmp_path / "b", transport=losing(2, object), client=_momentum)
    first, second = list(trained.run(5)), list(absent.run(3)) or []
    while absent.server.round < 5:
        second.append(absent.run_round())
    assert [r.status for r in first] == ["ok", "aborted", "ok", "ok", "ok"]
    assert trained.server.weights.equals(absent.server.weights)


@pytest.mark.parametrize("masks", [True, False])
def test_after_an_interrupt_the_next_round_can_be_run(tmp_path: Path, masks: bool) -> None:
    stopped: list[str] = []

    def transport(client: Client, message: bytes) -> bytes | None:
        if client.id == "c3" and not stopped:
            stopped.append(client.id)
            raise KeyboardInterrupt
        return client.handle(message)

    found = federation(tmp_path, masks=masks, transport=transport)
    with pytest.raises(KeyboardInterrupt):
        found.run_round()
    assert [found.run_round().status for _ in range(2)] == ["ok", "ok"]
    assert found.server.round == 3


def _momentum() -> Optimizer:
    return Optimizer(0.05, modules=["scaffold-client", "momentum"])


def test_a_client_that_fails_before_its_advert_costs_nobody_else_the_round(tmp_path: Path) -> None:
    def transport(client: Client, message: bytes) -> bytes | None:
        if client.id == "c2":
            raise ConnectionError("off")
        return client.handle(message)

    problems = quadratics(6)
    found = federation(tmp_path, problems, transport=transport)
    report = found.run_round()
    assert report.status == "ok"
    assert {n: c.status for n, c in report.clients.items()}["c2"] == "failed"
    assert found.server.optimizer.modules[0].clients == 5
    few = federation(tmp_path / "few", quadratics(5), transport=transport)
    assert few.run_round().status == "aborted", "five are wanted, four are there"


def test_a_client_refuses_a_round_of_another_run_an_older_round_and_a_switch_to_clear(tmp_path: Path) -> None:
    found = federation(tmp_path)
    client = found.clients["c0"]
    begin = found.server.begin()
    client.handle(begin)
    server = found.server._identity
    opened = unverified(begin)
    with pytest.raises(ValueError, match="run 'test'"):
        client.handle(sealed(replace(opened, run="other"), server))
    with pytest.raises(ValueError, match="as the client's policy says, got no offer"):
        client.handle(sealed(replace(opened, offer=None, round=2), server))
    with pytest.raises(ValueError, match="new to client 'c0', got round 1"):
        client.handle(begin)
    client._round = 5
    with pytest.raises(ValueError, match="new to client 'c0', got round 2"):
        client.handle(sealed(replace(opened, round=2), server))
    with pytest.raises(ValueError, match="message of a federated round"):
        client.handle(b"\x00" * 10)
    with pytest.raises(ValueError, match="message for a client"):
        client.handle(sealed(Stopped(1, "budget", [], None), server))


def test_a_client_answers_nobody_but_the_pinned_server(tmp_path: Path) -> None:
    found = federation(tmp_path)
    begin = unverified(found.server.begin())
    client = found.clients["c0"]
    before = dump_state(client.optimizer.get_state())
    for forger in (secagg.Identity.generate("server"), found.clients["c1"].home.identity()):
        with pytest.raises(ValueError, match="Expected a signed message"):
            client.handle(sealed(begin, forger))
    good = sealed(begin, found.server._identity)
    for position in range(0, len(good), 97):
        damaged = bytearray(good)
        damaged[position] ^= 1
        with pytest.raises(ValueError, match="Expected a signed message"):
            client.handle(bytes(damaged))
    assert dump_state(client.optimizer.get_state()) == before
    assert client.handle(good)


def test_a_round_of_other_steps_or_weaker_masks_is_refused_before_training(tmp_path: Path) -> None:
    found = federation(tmp_path)
    client = found.clients["c0"]
    begin = unverified(found.server.begin())

    def forbidden(*_: object) -> None:
        raise AssertionError("the client trained on a round that it refuses")

    client.problem.gradient = forbidden  # type: ignore[method-assign]
    answer = unverified(client.handle(sealed(replace(begin, steps=400), found.server._identity)))
    assert isinstance(answer, Stopped)
    assert answer.reason == "refused"


def test_a_client_refuses_weaker_masks_than_its_policy(tmp_path: Path) -> None:
    found = federation(tmp_path)
    for client in found.clients.values():
        client._masks = secagg.Policy(min_clients=50)
    report = found.run_round()
    assert report.status == "aborted"
    assert {c.status for c in report.clients.values()} == {"refused"}


def test_the_server_refuses_what_a_round_does_not_expect(tmp_path: Path) -> None:
    found = federation(tmp_path)
    server = found.server
    begin = server.begin()
    ready = unverified(found.clients["c0"].handle(begin))
    assert isinstance(ready, Ready)
    c0, c1 = (found.clients[name].home.identity() for name in ("c0", "c1"))
    for sender in ("nobody", "c1", ""):
        with pytest.raises(ValueError, match="Expected a signed message"):
            server.receive(sealed(ready, c0, sender))
    with pytest.raises(
        secagg.MessageError, match="'c1' delivered: expected its own signature, got that of 'c0'"
    ):
        server.receive(sealed(ready, c1, "c1"))
    with pytest.raises(ValueError, match="no masked vector of 'c0' now"):
        server.receive(sealed(Submit(1, b""), c0, "c0"))
    with pytest.raises(ValueError, match="answer in round 1"):
        server.receive(sealed(replace(ready, round=2), c0, "c0"))
    with pytest.raises(secagg.MessageError):
        server.receive(sealed(replace(ready, advert=ready.advert[:-1]), c0, "c0"))


def test_paired_modules_must_stand_on_both_sides(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="server module with aux_name 'scaffold'"):
        federation(tmp_path, scaffold=False, client=lambda: Optimizer(1.0, modules=["scaffold-client"]))


def test_server_and_clients_resume_bitwise_from_what_is_on_disk(tmp_path: Path) -> None:
    whole = federation(tmp_path / "whole", client=_momentum)
    list(whole.run(6))
    first = federation(tmp_path / "stopped", client=_momentum)
    list(first.run(3))
    saved = dump_state(first.server.get_state())
    # A kill in the middle of round 4: the clients have trained and their states are on disk.
    begin = first.server.begin()
    for client in first.clients.values():
        client.handle(begin)
    again = federation(tmp_path / "stopped", client=_momentum)
    again.server.set_state(load_state(saved))
    reports = list(again.run(6))
    assert [r.status for r in reports] == ["ok"] * 3
    assert again.server.weights.equals(whole.server.weights)
    assert same_state(again.server.optimizer.get_state(), whole.server.optimizer.get_state())


def test_the_masked_vector_has_one_length_whatever_the_values(tmp_path: Path) -> None:
    sizes = []
    for seed in range(3):
        found = federation(tmp_path / str(seed), quadratics(seed=seed))
        sizes.append(found.run_round().bytes_up)
    assert len(set(sizes)) == 1


def test_a_problem_with_no_samples_sends_zero(tmp_path: Path) -> None:
    problems = quadratics()
    problems["c0"] = Quadratic(np.zeros((0, 12)))
    found = federation(tmp_path, problems, weighting="samples")
    assert found.run_round().status == "ok"
