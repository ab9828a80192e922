from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

import dp
import secagg
from privopt import Optimizer
from privopt.checkpoint import dump_state, load_state
from privopt.federation import EarlyStop, Selection
from privopt.federation.client import Client
from privopt.federation.federation import Transport
from privopt.federation.messages import Masking, Ready, Stopped, sealed, unverified
from tests.contracts import same_state
from tests.privopt.federated import STAGES, Quadratic, federation, last_sent, quadratics

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
        optimizer = lambda: Optimizer(0.4, modules=["scaffold-client"] if scaffold else [])  # noqa: E731
        found = federation(tmp_path / name, quadratics(), masks=False, scaffold=scaffold, client=optimizer)
        for client in found.clients.values():
            client._sample_rate = 1.0
        list(found.run(30))
        return float(np.abs(found.server.weights.coefs["w"] - optimum).max())

    assert distance("scaffold", True) < 1e-6
    assert distance("fedavg", False) > 1e-2


@pytest.mark.parametrize("stage", STAGES)
def test_a_round_that_too_few_survive_is_aborted_and_training_goes_on(tmp_path: Path, stage: str) -> None:
    """Of five clients, five must be in the sum, and four must unmask it."""
    gone = {"c1"} if stage in ("advert", "shares", "vector") else {"c1", "c3"}

    def transport(client: Client, message: bytes) -> bytes | None:
        answer = client.handle(message)
        if client.id in gone and (client._round, last_sent(client)) == (3, stage):
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


@pytest.mark.parametrize("stage", STAGES)
def test_an_aborted_round_leaves_the_clients_as_if_it_had_not_been(tmp_path: Path, stage: str) -> None:
    """Same weights as a run in which that round number was never trained at all."""

    def losing(number: int, stage: str | None) -> Transport:
        def transport(client: Client, message: bytes) -> bytes | None:
            current = unverified(message).round == number
            if stage is None and current:
                raise ConnectionError("nobody hears of the round")
            answer = client.handle(message)
            if current and last_sent(client) == stage:
                raise ConnectionError("all that is sent in this stage is lost")
            return answer

        return transport

    trained = federation(tmp_path / "a", transport=losing(2, stage), client=_momentum)
    absent = federation(tmp_path / "b", transport=losing(2, None), client=_momentum)
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
    assert (report.clients["c2"].status, report.clients["c2"].dropped) == ("dropped", "advert")
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
        client.handle(sealed(Stopped(bytes(16), 1, "budget", [], None), server))


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
    with pytest.raises(ValueError, match="no message of a masked round of 'c0' now"):
        server.receive(sealed(Masking(1, b""), c0, "c0"))
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


def test_the_clipping_norm_travels_and_moves_alike_in_clear_and_under_masks(tmp_path: Path) -> None:
    norms = []
    for masks in (True, False):
        found = federation(
            tmp_path / str(masks),
            masks=masks,
            client=lambda: Optimizer(0.1, modules=["adaptive-clipping-client"]),
            server=Optimizer(1.0, modules=[("adaptive-clipping-server", {"max_norm": 0.8})]),
            sample_rate=1.0,
        )
        assert found.run_round().status == "ok"
        # Full batches of a quadratic: the norms of its gradients follow from the distance to the mean.
        below = 0
        for problem in quadratics().values():
            distance, curvature = np.linalg.norm(problem.points.mean(axis=0)), problem.scale**2
            for _ in range(4):
                norm = curvature * distance
                below += norm <= 0.8
                distance -= 0.1 * min(norm, 0.8)
        assert 0 < below < 20
        norms.append(found.server.optimizer.modules[0].norm)
        assert norms[-1] == pytest.approx(0.8 * np.exp(-0.2 * (below / 20 - 0.5)), rel=1e-12)
        assert found.run_round().status == "ok"
        assert {client.optimizer.modules[0].norm for client in found.clients.values()} == {norms[-1]}
    assert norms[0] == norms[1]


# ---- settings: who takes part, how long, until when --------------------------------------------------------


def test_round_robin_asks_each_client_as_often_and_in_turn() -> None:
    samples = dict.fromkeys("abcde", 10)
    chosen = [Selection("round-robin", 2).choose(number, samples) for number in range(1, 6)]
    assert chosen == [("a", "b"), ("c", "d"), ("a", "e"), ("b", "c"), ("d", "e")]


def test_a_uniform_selection_asks_each_client_as_likely() -> None:
    samples = dict(zip("abcde", (1, 100, 3, 50, 7), strict=True))
    counts = dict.fromkeys(samples, 0)
    for number in range(1, 4001):
        chosen = Selection("uniform", 2, seed=5).choose(number, samples)
        assert len(set(chosen)) == 2
        for name in chosen:
            counts[name] += 1
    # Each is in a round with probability 2/5: a binomial count of standard deviation 31.
    assert max(abs(count - 1600) for count in counts.values()) < 5 * 31


def test_a_weighted_selection_draws_one_after_the_other_by_samples() -> None:
    samples = {"a": 1, "b": 2, "c": 5, "empty": 0}
    pairs: dict[tuple[str, ...], int] = {}
    rounds = 8000
    for number in range(1, rounds + 1):
        chosen = Selection("weighted", 2, seed=1).choose(number, samples)
        pairs[chosen] = pairs.get(chosen, 0) + 1
    for first, second in (("a", "b"), ("a", "c"), ("b", "c")):
        p, q = samples[first] / 8, samples[second] / 8
        chance = p * q / (1 - p) + q * p / (1 - q)
        deviation = np.sqrt(rounds * chance * (1 - chance))
        assert abs(pairs[first, second] - rounds * chance) < 5 * deviation
    assert sum(pairs.values()) == sum(n for pair, n in pairs.items() if "empty" not in pair)


def test_a_selection_follows_from_public_values_alone() -> None:
    samples = dict.fromkeys("abcdefgh", 3)
    twice = [[Selection(how, 3, seed=9).choose(4, samples) for how in ("uniform", "weighted")] for _ in "ab"]
    assert twice[0] == twice[1]
    assert Selection("uniform", 3).choose(1, dict.fromkeys("ab", 1)) == ("a", "b")
    assert Selection().choose(1, samples) == tuple("abcdefgh")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("some", 3), "got 'some'"),
        (("uniform",), "'uniform' with clients=None"),
        (("uniform", 0), "clients=0"),
        (("all", 3), "'all' with clients=3"),
    ],
)
def test_a_selection_that_says_too_little_or_too_much_is_refused(arguments: tuple, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Selection(*arguments)


@pytest.mark.parametrize("masks", [True, False])
def test_only_the_selected_clients_train_and_all_states_keep_fitting(tmp_path: Path, masks: bool) -> None:
    found = federation(tmp_path, quadratics(7), masks=masks, selection=Selection("round-robin", 5))
    reports = list(found.run(4))
    for report in reports:
        statuses = [client.status for client in report.clients.values()]
        assert (report.status, statuses.count("ok"), statuses.count("idle")) == ("ok", 5, 2)
    assert [n for n, c in reports[1].clients.items() if c.status == "idle"] == ["c3", "c4"]
    server = found.server.optimizer.modules[0]
    assert server.clients == 7
    controls = []
    for name, client in found.clients.items():
        client._settle(found.server.accepted[name])
        controls.append(client.optimizer.modules[0].control.flatten())
    expected = np.mean(controls, axis=0)
    np.testing.assert_allclose(server.collect_aux_var().control.flatten(), expected, rtol=1e-10, atol=1e-12)


def test_a_client_that_was_not_asked_cannot_answer(tmp_path: Path) -> None:
    found = federation(tmp_path, quadratics(6), masks=False)
    begin = found.server.begin(["c0", "c1"])
    answer = found.clients["c5"].handle(begin)
    assert answer is not None
    with pytest.raises(ValueError, match="no answer of 'c5', which round 1 did not ask"):
        found.server.receive(answer)
    assert found.server.receive(found.clients["c1"].handle(begin) or b"") == "c1"
    found.server.abort("seen enough")
    for nobody in ([], ["c9"]):
        with pytest.raises(ValueError, match="clients of the roster to ask"):
            found.server.begin(nobody)


def test_a_selection_passes_over_clients_whose_budget_is_spent(tmp_path: Path) -> None:
    def transport(client: Client, message: bytes) -> bytes | None:
        if client.id in ("c0", "c3"):
            return client._stopped(unverified(message), "budget")
        return client.handle(message)

    found = federation(tmp_path, masks=False, selection=Selection("round-robin", 2), transport=transport)
    reports = list(found.run(6))
    assert found.out == {"c0", "c3"}
    asked = [sorted(n for n, c in r.clients.items() if c.status == "ok") for r in reports[-3:]]
    assert all(len(names) == 2 for names in asked)
    assert {n for n, c in reports[-1].clients.items() if c.status == "stopped"} == {"c0", "c3"}


def test_masks_need_as_many_clients_as_the_policy_says(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a selection of at least 5 clients, got 4"):
        federation(tmp_path, quadratics(8), selection=Selection("uniform", 4))


@pytest.mark.parametrize(("limit", "taken"), [(2.5, 3), (0.0, 1), (100.0, 6)])
def test_time_ends_a_round_after_at_least_one_step(tmp_path: Path, limit: float, taken: int) -> None:
    """A clock of our own: each look at it takes a second, and so each step; six steps are the most."""
    found = federation(
        tmp_path, masks=False, scaffold=False, client=lambda: Optimizer(0.1), steps=6, seconds=limit
    )
    steps: dict[str, int] = dict.fromkeys(found.clients, 0)
    for name, client in found.clients.items():
        ticks = iter(range(100))
        client._clock = lambda ticks=ticks: float(next(ticks))  # type: ignore[misc]
        gradient = client.problem.gradient

        def counted(*given: object, name: str = name, gradient: object = gradient) -> object:
            steps[name] += 1
            return gradient(*given)  # type: ignore[operator]

        client.problem.gradient = counted  # type: ignore[method-assign]
    assert found.run_round().status == "ok"
    assert set(steps.values()) == {taken}


def test_a_client_refuses_a_round_of_another_time(tmp_path: Path) -> None:
    found = federation(tmp_path, masks=False, seconds=5.0)
    found.server.seconds = 500.0
    assert {c.status for c in found.run_round().clients.values()} == {"refused"}
    with pytest.raises(ValueError, match='weights that are known before a round, got "steps" with seconds'):
        federation(tmp_path / "steps", masks=False, seconds=5.0, weighting="steps")


def test_under_dp_a_round_cannot_end_by_time(tmp_path: Path) -> None:
    from privopt.federation import PrivacyPlan

    plan = PrivacyPlan(8.0, 1e-5, 1.0, 0.5, 40, 1.0)
    with pytest.raises(dp.PrivacyParameterError, match="reserved before it starts"):
        federation(tmp_path, masks=False, plan=plan, seconds=5.0)


@pytest.mark.parametrize(
    ("metric", "values", "ends"),
    [
        ("accuracy", [0.1, 0.3, 0.3, 0.2], False),
        ("accuracy", [0.1, 0.3, 0.3, 0.2, 0.3], True),
        ("accuracy", [0.1, 0.3, 0.3, 0.2, 0.4], False),
        ("loss", [3.0, 2.0, 2.5, 2.1, 2.2], True),
        ("loss", [3.0, None, 2.0, 2.5, 2.1], False),
        ("training_loss", [3.0, 2.99, 2.98, 2.97], True),
        ("loss", [], False),
    ],
)
def test_a_run_ends_when_its_metric_has_not_improved_for_as_long_as_its_patience(
    metric: str, values: list[float | None], ends: bool
) -> None:
    change = 0.05 if metric == "training_loss" else 0.0
    assert EarlyStop(metric, patience=3, min_change=change).reached(values) is ends  # type: ignore[arg-type]


def test_an_early_stop_without_patience_or_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="'accuracy', 'loss' or 'training_loss', got 'f1'"):
        EarlyStop("f1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="patience=0"):
        EarlyStop("loss", patience=0)


def test_a_run_ends_early_by_its_record_and_its_resumption_does_not_go_on(tmp_path: Path) -> None:
    from privopt.federation.run import resume, train
    from privopt.setup.config import load

    settings = [
        "data.clients=3",
        "data.name=breast_cancer",
        "rounds=30",
        "dp.enabled=false",
        "masks.enabled=false",
        "client.effort.seconds=0.0001",
        "server.selection={how='round-robin', clients=2}",
        "server.stop={metric='accuracy', patience=2, min_change=0.5}",
        "server.aggregator=fednova",
    ]
    done = train(load(None, settings), folder=tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    # No accuracy can improve by more than one half twice.
    assert done["rounds"] == len(lines) <= 4
    accuracies = [line["accuracy"] for line in lines]
    assert max(accuracies[-2:]) <= max(accuracies[:-2]) + 0.5
    for line in lines:
        assert sorted(c["status"] for c in line["clients"].values()) == ["idle", "ok", "ok"]
        assert {c["steps"] for c in line["clients"].values()} == {None}, "only a client knows its steps"
    model = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert resume(tmp_path / "run")["rounds"] == done["rounds"]
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == model
