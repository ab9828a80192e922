"""Rounds that break in the middle: a server stopped in its step, clients that fail, what is told of them."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import dp
import secagg
from privopt import AuxVar, Optimizer, OptiModule, Vector, state, summed
from privopt.aggregators import make_aggregator
from privopt.checkpoint import dump_state, load_state
from privopt.federation import Selection
from privopt.federation import run as runs
from privopt.federation.client import Client, LostAdvert
from privopt.federation.messages import unverified
from privopt.federation.privacy import PrivacyPlan
from privopt.federation.server import Server
from privopt.federation.settings import Dropout
from privopt.setup import config as configs
from tests.contracts import same_state
from tests.privopt.federated import STAGES, Planned, Quadratic, federation, last_sent, quadratics

SAMPLES = {name: problem.num_samples for name, problem in quadratics(8).items()}


# ---- the server's step -------------------------------------------------------------------------------------


class Hears(OptiModule, register=False):
    """Notes what share took part."""

    name = "hears"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._heard: list[float] = []

    def on_participation(self, share: float) -> None:
        self._heard.append(share)

    def run(self, gradients: Vector) -> Vector:
        return gradients


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_the_server_hears_the_share_of_all_clients_weight_that_is_in_the_sum(
    tmp_path: Path, masks: bool, weighting: str
) -> None:
    plan = {
        2: {"c1": Dropout("advert", late=False), "c7": Dropout("vector", late=True)},
        3: {"c0": Dropout("unmask", late=False), "c4": Dropout("shares", late=False)},
    }
    server = Optimizer(1.0, modules=[Hears()])
    found = federation(
        tmp_path,
        quadratics(8),
        masks=masks,
        weighting=weighting,
        scaffold=False,
        server=server,
        dropouts=Planned(plan),
        selection=Selection("round-robin", clients=7),
    )
    weight = SAMPLES if weighting == "samples" else dict.fromkeys(SAMPLES, 1)
    idle = {1: "c7", 2: "c6", 3: "c5"}
    wanted = []
    for number in idle:
        left = {n for n, d in plan.get(number, {}).items() if not d.counts and n != idle[number]}
        assert found.run_round().clients[idle[number]].status == "idle"
        wanted.append(
            sum(weight[n] for n in SAMPLES if n not in left | {idle[number]}) / sum(weight.values())
        )
    assert server.modules[0]._heard == pytest.approx(wanted, rel=1e-12)  # type: ignore[attr-defined]
    assert len(set(wanted)) == 3


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_a_server_made_by_hand_knows_the_share_where_all_count_alike(tmp_path: Path, weighting: str) -> None:
    """Of samples it knows no total unless it is told one, and then says nothing of a share."""
    plan = Planned({1: {"c1": Dropout("advert", late=False)}})
    found = federation(
        tmp_path, quadratics(8), masks=False, weighting=weighting, scaffold=False, dropouts=plan
    )
    made, optimizer = found.server, Optimizer(1.0, modules=[Hears()])
    found.server = Server(
        made._identity,
        made.roster_keys,
        made.weights,
        optimizer,
        Optimizer(0.1, modules=["momentum"]),
        run="test",
        steps=4,
        masks=None,
        aggregator=make_aggregator("mean", weighting),
        most_weight=64,
        loss=True,
    )
    assert [r.status for r in (found.run_round(), found.run_round())] == ["ok", "ok"]
    assert optimizer.modules[0]._heard == ([7 / 8, 1.0] if weighting == "uniform" else [])  # type: ignore[attr-defined]


class Breaks(OptiModule, register=False):
    """Momentum whose code raises, or is interrupted, once: in round 2, at one place."""

    name = "breaks"
    place: str = "run"
    by: str = "error"
    velocity: Vector = state(0.0)
    rounds: int = state(0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._left = [self.by] if self.by else []

    def _at(self, place: str) -> None:
        if self.rounds != 2 or self.place != place or not self._left:
            return
        kind = self._left.pop()
        if kind == "signal":
            os.kill(os.getpid(), signal.SIGINT)
        else:
            raise {"error": ArithmeticError, "interrupt": KeyboardInterrupt}[kind]("on purpose")

    def on_round_start(self) -> None:
        self.rounds += 1
        self._at("start")

    def run(self, gradients: Vector) -> Vector:
        self.velocity = 0.5 * self.velocity + gradients
        self._at("run")
        return self.velocity

    def finish(self, updates: Vector, weights: Vector) -> Vector:
        self._at("finish")
        return updates

    def on_round_end(self, accepted: bool) -> None:
        self._at("end")


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize(
    ("place", "by"), [("start", "error"), ("run", "interrupt"), ("finish", "error"), ("end", "interrupt")]
)
def test_a_servers_step_that_raises_leaves_all_as_if_the_round_had_been_lost(
    tmp_path: Path, place: str, by: str, masks: bool
) -> None:
    def lose(client: Client, message: bytes) -> bytes | None:
        answer = client.handle(message)
        if unverified(message).round == 2 and last_sent(client) == ("unmask" if masks else None):
            raise ConnectionError("all that would have ended the round is lost")
        return answer

    def made(name: str, **options: Any) -> Any:
        # Under masks a bound that adapts would follow the sum that was lost, and rounding the bound.
        modules: list[Any] = [] if masks else ["scaffold-server"]
        server = Optimizer(1.0, modules=[*modules, Breaks(place, "" if name == "b" else by)])
        return federation(
            tmp_path / name, masks=masks, scaffold=not masks, server=server, bound=8.0, **options
        )

    found, wanted = made("a"), made("b", transport=lose)
    assert [f.run_round().status for f in (found, wanted)] == ["ok", "ok"]
    before = dump_state(found.server.get_state()["optimizer"]), found.server.weights.copy()
    with pytest.raises(KeyboardInterrupt if by == "interrupt" else ArithmeticError, match="on purpose"):
        found.run_round()
    assert (found.server.report.status, found.server.round) == ("aborted", 2)
    assert dump_state(found.server.get_state()["optimizer"]) == before[0]
    assert found.server.weights.equals(before[1])
    assert wanted.run_round().status == "aborted"
    for _ in range(2):
        assert [f.run_round().status for f in (found, wanted)] == ["ok", "ok"]
    assert found.server.weights.equals(wanted.server.weights)
    assert same_state(found.server.optimizer.get_state(), wanted.server.optimizer.get_state())


def test_an_interrupt_in_the_servers_step_waits_until_clients_can_be_told_of_it(tmp_path: Path) -> None:
    """The model has moved, so the round counts: for the server, in its report, and for the clients."""
    modules = [["scaffold-server", Breaks("run", by)] for by in ("signal", "")]
    found, wanted = (
        federation(tmp_path / str(i), server=Optimizer(1.0, modules=m)) for i, m in enumerate(modules)
    )
    # A process in the background may have been started deaf to Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        found.run_round()
        with pytest.raises(KeyboardInterrupt):
            found.run_round()
    finally:
        signal.signal(signal.SIGINT, before)
    assert (found.server.report.status, found.server.round) == ("ok", 2)
    assert found.server.accepted == dict.fromkeys(found.clients, 2)
    assert found.run_round().status == "ok"
    assert [r.status for r in wanted.run(3)] == ["ok"] * 3
    assert found.server.weights.equals(wanted.server.weights)


# ---- a server's calls out of turn --------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [True, False])
def test_a_round_is_not_begun_while_one_is_open_which_goes_on(tmp_path: Path, masks: bool) -> None:
    found = federation(tmp_path, masks=masks)
    server = found.server
    found._ask(found.clients, _begun(server), {})
    before = repr(server.report)
    with pytest.raises(secagg.PhaseError, match=r"round 1 in stage '(advert|values)'. End it with finish"):
        server.begin()
    assert (repr(server.report), server.missing) == (before, ())
    while messages := server.advance():
        found._ask({name: found.clients[name] for name in messages}, messages.__getitem__, {})
    assert server.finish().status == "ok"


def _begun(server: Any) -> Any:
    server.begin()
    return server.opening


@pytest.mark.parametrize("masks", [True, False])
def test_a_round_that_was_closed_is_not_aborted_or_finished_again(tmp_path: Path, masks: bool) -> None:
    found = federation(tmp_path, masks=masks)
    with pytest.raises(secagg.PhaseError):
        found.server.finish()
    report = found.run_round()
    before = dump_state(found.server.get_state())
    assert found.server.abort("too late") is report
    with pytest.raises(secagg.PhaseError, match="an open round whose result"):
        found.server.finish()
    assert (report.status, report.reason) == ("ok", None)
    assert dump_state(found.server.get_state()) == before


@pytest.mark.parametrize("masks", [True, False])
def test_a_server_that_goes_back_in_the_middle_of_a_round_forgets_that_round(
    tmp_path: Path, masks: bool
) -> None:
    found, wanted = (federation(tmp_path / name, masks=masks) for name in ("a", "b"))
    found.run_round()
    saved = dump_state(found.server.get_state())
    begin = found.server.begin()
    answers = [client.handle(begin) or b"" for client in found.clients.values()]
    found.server.receive(answers[0])
    found.server.set_state(load_state(saved))
    assert (found.server.stage, found.server.missing, found.server.enough) == (None, (), False)
    for answer in answers:
        with pytest.raises((ValueError, secagg.SecAggError)):
            found.server.receive(answer)
    assert [found.run_round().status for _ in range(2)] == ["ok", "ok"]
    list(wanted.run(3))
    assert found.server.round == wanted.server.round == 3
    assert found.server.weights.equals(wanted.server.weights)


# ---- clients that fail -------------------------------------------------------------------------------------


class Diverges(Quadratic):
    """Its gradient is infinite in the steps of one round; under DP so is what it draws."""

    def __init__(self, points: npt.NDArray[np.float64], rounds: range) -> None:
        super().__init__(points)
        self.steps, self.rounds = 0, rounds

    def _size(self) -> float:
        self.steps += 1
        return np.inf if (self.steps + 3) // 4 in self.rounds else 0.0

    def gradient(self, indices: npt.NDArray[np.int64], seed: int = 0) -> tuple[Vector, float]:
        gradient, loss = super().gradient(indices, seed)
        return gradient + self._size(), loss

    def private_gradient(self, plan: PrivacyPlan) -> Any:
        return self

    def draw(self, stream: Any) -> Mapping[str, Any]:
        return {"w": np.full(12, self._size()), "b": np.zeros(())}


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("private", [True, False])
def test_a_client_whose_update_is_not_finite_says_so_and_what_it_spent(
    tmp_path: Path, masks: bool, private: bool
) -> None:
    problems: Any = {
        name: Diverges(p.points, range(2, 3) if name == "c2" else range(0))
        for name, p in quadratics(6).items()
    }
    plan = PrivacyPlan(8.0, 1e-3, 1.0, 0.5, 40, 2.0) if private else None
    found = federation(tmp_path, problems, masks=masks, scaffold=False, plan=plan)
    with np.errstate(all="ignore"):
        reports = [found.run_round() for _ in range(3)]
    assert [r.status for r in reports] == ["ok"] * 3
    assert [r.clients["c2"].status for r in reports] == ["ok", "failed", "ok"]
    assert reports[1].gone == {}
    if plan is not None:
        assert [len(r.clients["c2"].releases) for r in reports] == [1, 1, 1], "told in the round it was spent"
        price = dp.epsilon(plan.event(8), plan.delta)
        assert reports[1].clients["c2"].epsilon == pytest.approx(price, rel=1e-9)


class Told(OptiModule, register=False):
    """Notes what it is told of its rounds."""

    name = "told"
    steps: int = state(0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._told: list[bool] = []

    def run(self, gradients: Vector) -> Vector:
        self.steps += 1
        return gradients

    def on_round_end(self, accepted: bool) -> None:
        self._told.append(accepted)


@pytest.mark.parametrize("masks", [True, False])
def test_a_round_that_counted_is_told_once_although_the_next_came_to_nothing(
    tmp_path: Path, masks: bool
) -> None:
    problems: Any = {
        name: Diverges(p.points, range(2, 3) if name == "c2" else range(0))
        for name, p in quadratics(6).items()
    }
    found = federation(
        tmp_path, problems, masks=masks, scaffold=False, client=lambda: Optimizer(0.1, modules=[Told()])
    )
    with np.errstate(all="ignore"):
        assert [found.run_round().status for _ in range(4)] == ["ok"] * 4
    modules = {name: client.optimizer.modules[0] for name, client in found.clients.items()}
    assert modules["c2"]._told == [False, True, False, True]  # type: ignore[attr-defined]
    assert modules["c3"]._told == [False, True, True, True]  # type: ignore[attr-defined]
    assert (modules["c2"].steps, modules["c3"].steps) == (12, 16)  # type: ignore[attr-defined]


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_a_restarted_client_costs_the_round_its_answers_and_stops_nobody(tmp_path: Path, stage: str) -> None:
    """Nothing between the client and the federation hides that it refuses: the refusal is no fault."""
    restarted: list[str] = []

    def transport(client: Client, message: bytes) -> bytes | None:
        if client.id == "c1" and last_sent(client) == stage and not restarted:
            restarted.append(stage)
            found.clients["c1"] = client = federation(tmp_path, quadratics(6)).clients["c1"]
            with pytest.raises(LostAdvert):
                client.handle(message)
        return client.handle(message)

    found = federation(tmp_path, quadratics(6), transport=transport)
    report = found.run_round()
    assert report.status == "ok"
    assert report.gone == {"c1": STAGES[STAGES.index(stage) + 1]}
    assert found.run_round().gone == {}


# ---- what is on record -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_was_put_on_record_at_the_end_is_not_told_again_by_a_run_that_goes_on(tmp_path: Path) -> None:
    """An early stop after a lost answer; then its holder takes the rule out, and resumes."""

    def losing(client: Client, message: bytes) -> bytes | None:
        answer = client.handle(message)
        if client.id == "clinic-3" and unverified(message).round == 2:
            raise ConnectionError("the answer is lost")
        return answer

    folder = tmp_path / "run"
    wanted = configs.load(
        None,
        [
            *("data.name=breast_cancer", "data.clients=4", "masks.min_clients=3", "masks.allow_three=true"),
            *("rounds=3", "client.effort.steps=1", "twin=false"),
            "server.stop={metric='loss', patience=1, min_change=1e9}",
        ],
    )
    assert runs.train(wanted, folder=folder, transport=losing)["rounds"] == 2
    asked = json.loads((folder / "config.json").read_text())
    asked["server"]["stop"]["metric"] = None
    (folder / "config.json").write_text(json.dumps(asked))
    assert runs.resume(folder)["rounds"] == 3
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    told = [[r["ledger_sequence"] for r in line["releases"].get("clinic-3", [])] for line in lines]
    assert [len(each) for each in told] == [1, 1, 1]
    assert [line["clients"]["clinic-3"]["steps"] for line in lines] == [1, 2, 3]
    epsilons = [line["clients"]["clinic-3"]["epsilon"] for line in lines]
    assert epsilons == sorted(set(epsilons)), "each round's price shows in its own line"


# ---- what is on disk ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["all of it", "the last round"])
def test_a_client_whose_state_is_older_than_what_the_server_took_goes_no_further(
    tmp_path: Path, lost: str
) -> None:
    """Its control variate would be another than the one that the server's is the mean of."""
    found = federation(tmp_path)
    path = found.clients["c1"].home.folder / "state-test.safetensors"
    found.run_round()
    older = path.read_bytes()
    found.run_round()
    newest = path.read_bytes()
    if lost == "all of it":
        path.unlink()
    else:
        path.write_bytes(older)
    begin = found.server.begin()
    again = federation(tmp_path).clients["c1"]
    with pytest.raises(
        ValueError, match=r"state of 'c1' after round 2, .* got that of round [01]. Bring back"
    ):
        again.handle(begin)
    path.write_bytes(newest)
    assert found.server.receive(federation(tmp_path).clients["c1"].handle(begin) or b"") == "c1"


def test_used_rounds_are_read_once_and_written_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading all of them in each round took as long as they are many."""
    parsed, parse = [], secagg.FileRegister._parsed
    federation(tmp_path).run_round()

    def counting(register: secagg.FileRegister, line: bytes) -> Any:
        parsed.append(line)
        return parse(register, line)

    monkeypatch.setattr(secagg.FileRegister, "_parsed", counting)
    found = federation(tmp_path)
    assert [found.run_round().status for _ in range(4)] == ["ok"] * 4
    assert len(parsed) == len(found.clients)
    for client in found.clients.values():
        register = client.home.folder / "register"
        assert len(register.read_bytes().splitlines()) == 5


def test_a_client_that_keeps_nothing_between_rounds_may_lose_its_state(tmp_path: Path) -> None:
    plain = {"client": lambda: Optimizer(0.1), "scaffold": False}
    found = federation(tmp_path, **plain)
    found.run_round()
    (found.clients["c1"].home.folder / "state-test.safetensors").unlink()
    found.clients["c1"] = federation(tmp_path, **plain).clients["c1"]
    assert found.run_round().status == "ok"


@pytest.mark.slow
def test_a_server_killed_between_a_rounds_line_and_its_checkpoint_does_the_round_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one killed within the line, whose beginning alone is on disk."""
    small = ["data.name=breast_cancer", "data.clients=5", "rounds=4", "client.effort.steps=2", "twin=false"]
    wanted = configs.load(None, [*small, "dp.enabled=false"])
    runs.train(wanted, folder=tmp_path / "whole")
    folder, write, kept = tmp_path / "killed", runs.write_state, []

    def dying(path: Path, *state: Any, **options: Any) -> None:
        kept.append(path)
        if len(kept) == 3:
            raise KeyboardInterrupt("killed")
        write(path, *state, **options)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_state", dying)
        with pytest.raises(KeyboardInterrupt):
            runs.train(wanted, folder=folder)
    metrics = folder / "metrics.jsonl"
    assert [json.loads(line)["round"] for line in metrics.read_text().splitlines()] == [1, 2, 3]
    with metrics.open("ab") as file:
        file.write(b'{"round":4,"status":"o')
    assert runs.resume(folder)["rounds"] == 4
    assert [json.loads(line)["round"] for line in metrics.read_text().splitlines()] == [1, 2, 3, 4]
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


# ---- why a client failed -----------------------------------------------------------------------------------


class Sends(AuxVar, register=False):
    name = "tests-sends"
    x: float = summed(1.0)


class Slips(OptiModule, register=False):
    """Sends something that its declaration does not allow."""

    name = "tests-slips"
    aux_name = "tests-slip"
    aux_var = Sends

    def __post_init__(self) -> None:
        super().__post_init__()
        self._x: Any = 0.5

    def run(self, gradients: Vector) -> Vector:
        return gradients

    def collect_aux_var(self) -> Any:
        return None if self._x is None else Sends(x=self._x)


class Takes(OptiModule, register=False):
    """The server's half: does nothing with it."""

    name = "tests-takes"
    aux_name = "tests-slip"

    def run(self, gradients: Vector) -> Vector:
        return gradients

    def process_aux_var(self, aux_var: AuxVar) -> None:
        pass


@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (float("nan"), r"'tests-slip\.x'.*finite"),
        (np.zeros(3), r"'tests-slip\.x'.*shape"),
        (None, r"value of field 'tests-slip\.x'"),
    ],
)
def test_why_a_client_failed_is_told_in_its_own_process(
    tmp_path: Path, masks: bool, sent: Any, said: str
) -> None:
    found = federation(
        tmp_path,
        masks=masks,
        policy=secagg.Policy(min_clients=4),
        client=lambda: Optimizer(0.1, modules=[Slips()]),
        server=Optimizer(1.0, modules=[Takes()]),
    )
    modules: dict[str, Any] = {name: client.optimizer.modules[0] for name, client in found.clients.items()}
    assert (found.run_round().status, found.errors) == ("ok", {})
    modules["c1"]._x = sent
    report = found.run_round()
    assert (report.status, list(found.errors)) == ("ok", ["c1"])
    assert report.clients["c1"].status == ("failed" if masks else "dropped")
    assert re.search(said, found.errors["c1"])
    for module in modules.values():
        module._x = sent
    report = found.run_round()
    assert report.status == "aborted"
    assert re.search(rf"At client 'c0': .*{said}.* \(4 more in Federation.errors.\)", str(report.reason))
    for module in modules.values():
        module._x = 0.5
    assert (found.run_round().status, found.errors) == ("ok", {})


def test_the_server_hears_that_a_client_failed_and_nothing_else(tmp_path: Path) -> None:
    optimizers = {"client": lambda: Optimizer(0.1, modules=[Slips()])}
    found = federation(tmp_path, **optimizers, server=Optimizer(1.0, modules=[Takes()]))
    client: Any = found.clients["c1"]
    client.optimizer.modules[0]._x = float("nan")
    answer = client.handle(found.server.begin())
    assert "tests-slip" in client.error
    assert b"failed" in answer
    assert b"tests-slip" not in answer
