"""Local DP in a federation: what leaves is a function of noised gradients, budgets hold, runs resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from msgspec.structs import replace

import dp
import secagg
from privopt import Vector
from privopt.federation import run as runs
from privopt.federation.client import Client
from privopt.federation.federation import Federation
from privopt.federation.home import Home
from privopt.federation.messages import unverified
from privopt.federation.parts import Parts
from privopt.report.audit import audit_run
from privopt.report.folder import RunFolderError
from privopt.setup import config as configs
from tests.privopt.federated import STAGES, last_sent

SMALL = ["data.clients=5", "rounds=3", "client.effort.steps=2", "twin=false"]


def config(*overrides: str) -> configs.Config:
    return configs.load(None, [*SMALL, *overrides])


def federation(
    folder: Path, *overrides: str, swap: bool = False, seed: int = 5, **options: Any
) -> tuple[Federation, Parts]:
    parts = Parts(config(*overrides))
    if swap:
        victim = parts.data.clients[1]
        victim.x[3], victim.y[3] = 1.0 - victim.x[3], (victim.y[3] + 1) % 10
    found, _ = parts.federation(
        "run",
        lambda name: folder / name,
        folder / "server",
        dp.random.insecure_source(seed),
        options.get("transport"),
    )
    return found, parts


class Recorded:
    """A client's private gradient whose draws are written down, or replayed from another's notes."""

    def __init__(self, inner: dp.PrivateGradient, notes: list[Any], replay: bool) -> None:
        self.inner, self.notes, self.replay, self.position = inner, notes, replay, 0

    def draw(self, stream: Any) -> Any:
        own = self.inner.draw(stream)
        if not self.replay:
            self.notes.append(own)
            return own
        self.position += 1
        return self.notes[self.position - 1]


def sent(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, **options: Any) -> dict[str, Any]:
    """Everything that leaves client 1 in a run of three rounds, and what it encodes under the masks."""
    notes, replay = options.pop("notes", []), options.pop("replay", False)
    seen: dict[str, Any] = {"messages": [], "opened": [], "words": [], "notes": notes}

    def transport(client: Client, message: bytes) -> bytes | None:
        if client.id != "clinic-1":
            return client.handle(message)
        with monkeypatch.context() as patch:
            encode = secagg.Encoding.encode

            def recording(self: Any, values: Any, rounding: Any) -> Any:
                words = encode(self, values, rounding)
                seen["words"].append(words.copy())
                return words

            patch.setattr(secagg.Encoding, "encode", recording)
            answer = client.handle(message)
        seen["messages"].append(answer)
        seen["opened"].append(None if answer is None else unverified(answer))
        return answer

    found, _ = federation(folder, *overrides, transport=transport, **options)
    privacy = found.clients["clinic-1"].privacy
    assert privacy is not None
    privacy.gradient = Recorded(privacy.gradient, notes, replay)
    assert [r.status for r in found.run(3)] == ["ok"] * 3
    return seen


@pytest.mark.parametrize("masks", [True, False])
def test_what_leaves_is_a_function_of_the_noised_gradients_and_public_constants_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, masks: bool
) -> None:
    """One sample is swapped and the noised gradients are made equal: then all that leaves is equal."""
    setting = f"masks.enabled={str(masks).lower()}"
    first = sent(tmp_path / "a", monkeypatch, setting)
    again = sent(tmp_path / "b", monkeypatch, setting, swap=True, replay=True, notes=first["notes"])
    differs = sent(tmp_path / "c", monkeypatch, setting, swap=True)
    assert [len(m) for m in first["messages"]] == [len(m) for m in again["messages"]]
    if masks:
        assert len(first["words"]) == 3
        for a, b in zip(first["words"], again["words"], strict=True):
            assert np.array_equal(a, b), "update, control variate, counts: one encoded vector"
        assert not all(np.array_equal(a, b) for a, b in zip(first["words"], differs["words"], strict=True))
    else:
        a, b, c = (
            [replace(message, session=bytes(16)) for message in found["opened"]]  # drawn by the server
            for found in (first, again, differs)
        )
        assert a == b
        assert a != c, "the swapped sample must matter before the release"


def test_the_training_loss_of_private_data_stays_unless_it_is_disclosed(tmp_path: Path) -> None:
    closed, _ = federation(tmp_path / "a")
    assert "metrics.loss" not in closed.server.schema
    assert all("metrics.loss" not in c.schema for c in closed.clients.values())
    opened, _ = federation(tmp_path / "b", 'dp.disclose=["loss"]')
    assert "metrics.loss" in opened.server.schema
    report = opened.run_round()
    assert report.status == "ok"


def test_a_clients_budget_stops_it_while_the_others_go_on(tmp_path: Path) -> None:
    found, parts = federation(tmp_path, "data.clients=6", "rounds=4")
    plan = parts.plan
    assert plan is not None
    victim = found.clients["clinic-2"].privacy
    assert victim is not None
    # What two rounds cost by the filter of a dataset's budget, and a little more.
    allowed = dp.epsilon(plan.event(2 * parts.steps), plan.delta, by="RDP") * 1.02
    victim.ledger.set_budget(victim.dataset, epsilon=allowed, delta=plan.delta)
    reports = list(found.run(4))
    status = [r.clients["clinic-2"].status for r in reports]
    assert status[0] == "ok"
    assert status[-1] == "stopped"
    assert [r.status for r in reports] == ["ok"] * 4
    assert all(r.clients["clinic-0"].status == "ok" for r in reports)
    assert float(victim.ledger.spent(victim.dataset, plan.delta).value) <= allowed


def test_no_client_can_pass_the_epsilon_of_the_plan(tmp_path: Path) -> None:
    found, parts = federation(tmp_path)
    assert parts.plan is not None
    reports = list(found.run(10))
    assert [r.round for r in reports][:3] == [1, 2, 3]
    assert {c.status for c in reports[-1].clients.values()} == {"stopped"}
    for client in found.clients.values():
        assert client.privacy is not None
        assert client.privacy.spent() <= parts.plan.epsilon
    assert len(reports) < 10, "a run without budgets left ends"


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> Any:
    return Vector.build(safetensors.numpy.load_file(folder / "model.safetensors"))


class StopError(Exception):
    pass


def stopping(round_number: int, stage: str | None) -> Callable[[Client, bytes], bytes | None]:
    """A transport that dies in a round: before anybody hears of it, or when a client has answered a stage."""

    def transport(client: Client, message: bytes) -> bytes | None:
        opened = unverified(message)
        if opened.round == round_number and stage is None:
            raise StopError
        answer = client.handle(message)
        if opened.round == round_number and last_sent(client) == stage:
            raise StopError
        return answer

    return transport


@pytest.mark.parametrize("private", [True, False])
def test_a_run_stopped_between_rounds_resumes_to_the_same_weights_bit_for_bit(
    tmp_path: Path, private: bool
) -> None:
    wanted = config(f"dp.enabled={str(private).lower()}", "rounds=4")
    source = dp.random.insecure_source(11)
    runs.train(wanted, folder=tmp_path / "run", source=source)
    with pytest.raises(StopError):
        runs.train(wanted, folder=tmp_path / "other" / "run", source=source, transport=stopping(3, None))
    outcome = runs.resume(tmp_path / "other" / "run", source=source)
    assert outcome["rounds"] == 4
    assert weights(tmp_path / "run").equals(weights(tmp_path / "other" / "run"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_without_dp_stopped_within_a_round_resumes_bit_for_bit(tmp_path: Path, stage: str) -> None:
    wanted = config(
        "dp.enabled=false", "rounds=4", 'client.optimizer.modules=["scaffold-client", "momentum"]'
    )
    runs.train(wanted, folder=tmp_path / "run")
    with pytest.raises(StopError):
        runs.train(wanted, folder=tmp_path / "other" / "run", transport=stopping(3, stage))
    runs.resume(tmp_path / "other" / "run")
    assert weights(tmp_path / "run").equals(weights(tmp_path / "other" / "run"))


def test_a_release_that_may_have_left_is_spent_recorded_and_drawn_afresh(tmp_path: Path) -> None:
    wanted, source = config("rounds=4"), dp.random.insecure_source(11)
    folder = tmp_path / "run"
    with pytest.raises(StopError):
        runs.train(wanted, folder=folder, source=source, transport=stopping(2, "vector"))
    runs.resume(folder, source=source)
    found = lines(folder)
    second = found[1]["releases"]["clinic-0"]
    assert len(second) == 2, "the lost draw of round 2 and the one that counts are both on record"
    assert second[0]["ledger_sequence"] < second[1]["ledger_sequence"]
    # The plan allows four rounds; one was lost, so the last one is refused rather than overspent.
    assert found[-1]["clients"]["clinic-0"]["status"] == "stopped"
    assert found[-1]["clients"]["clinic-0"]["epsilon"] <= wanted.dp.epsilon


def test_a_failed_set_up_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(dp.PrivacyParameterError, match="clinic-"):
        runs.train(config("dp.delta=0.02"), folder=tmp_path / "run")
    with pytest.raises(ValueError, match="adamm"):
        runs.train(config('client.optimizer.modules=["adamm"]'), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_folder_holds_what_the_docs_say_and_no_secret(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    outcome = runs.train(config(), folder=folder)
    assert outcome["rounds"] == 3
    assert {p.name for p in folder.iterdir()} == {
        "checkpoint",
        "config.json",
        "homes",
        "ledgers",
        "lock",
        "metrics.jsonl",
        "model.safetensors",
        "report.html",
        "run.json",
    }
    assert len(list((folder / "ledgers").iterdir())) == 5
    secrets = [p.read_bytes() for p in (folder / "homes").rglob("*.key")]
    assert len(secrets) == 11, "an identity each, the server's included, and a ledger key a client"
    public = [p for p in folder.rglob("*") if p.is_file() and "homes" not in p.parts]
    for path in public:
        data = path.read_bytes()
        for secret in secrets:
            assert secret not in data
            assert secret.hex().encode() not in data
    for path in (folder / "homes").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0 or path.name.endswith(("-wal", "-shm")), path


def test_a_data_holders_own_policy_refuses_a_weaker_plan(tmp_path: Path) -> None:
    (tmp_path / "clinic-3").mkdir()
    (tmp_path / "clinic-3" / "policy.json").write_text('{"epsilon": 2.0}')
    with pytest.raises(dp.PrivacyParameterError, match=r"epsilon of at most 2.0 by the policy of 'clinic-3'"):
        federation(tmp_path)
    (tmp_path / "clinic-3" / "policy.json").write_text('{"epsilonn": 2.0}')
    with pytest.raises(ValueError, match=r"policy.json"):
        federation(tmp_path)


def test_a_run_that_no_budget_allows_is_an_error_and_no_model(tmp_path: Path) -> None:
    homes = str(tmp_path / "homes" / "{id}")
    wanted = config(f'client.home="{homes}"', "rounds=2")
    for number in range(5):
        home = Home(tmp_path / "homes" / f"clinic-{number}", f"clinic-{number}")
        with home.ledger() as ledger:
            ledger.set_budget(f"digits/clinic-{number}", epsilon=0.1, delta=1e-4)
    with pytest.raises(dp.PrivacyBudgetExceeded, match="Nothing was trained"):
        runs.train(wanted, folder=tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_two_runs_may_share_homes_and_a_folders_name(tmp_path: Path) -> None:
    wanted = config(f'client.home="{tmp_path / "homes" / "{id}"}"', "rounds=1")
    for place in ("a", "b"):
        assert runs.train(wanted, folder=tmp_path / place / "run")["rounds"] == 1


def test_a_run_in_progress_is_not_resumed_a_second_time(tmp_path: Path) -> None:
    seen: list[str] = []

    def transport(client: Client, message: bytes) -> bytes | None:
        if not seen:
            with pytest.raises(RunFolderError, match="another process is training") as caught:
                runs.resume(tmp_path / "run")
            seen.append(str(caught.value))
        return client.handle(message)

    runs.train(config("rounds=1", "dp.enabled=false"), folder=tmp_path / "run", transport=transport)
    assert seen
    assert runs.resume(tmp_path / "run")["rounds"] == 1, "a finished run may be resumed, and does nothing"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("server.optimizer.modules=[]", "counterpart on the server"),
        ('server.optimizer.modules=["scaffold-client"]', "is the client's half"),
        ('client.optimizer.modules=["scaffold-server"]', "is the server's half"),
        ('client.optimizer.modules=["adam"]', "server's 'scaffold-server', got .*'adam'"),
    ],
)
def test_halves_of_a_method_that_do_not_fit_are_refused(override: str, words: str) -> None:
    with pytest.raises(configs.ConfigError, match=words):
        Parts(config(override))


def test_a_release_whose_answer_was_lost_in_the_last_round_is_recorded(tmp_path: Path) -> None:
    def transport(client: Client, message: bytes) -> bytes | None:
        answer = client.handle(message)
        if client.id == "clinic-4" and unverified(message).round == 3:
            raise ConnectionError("the answer is lost")
        return answer

    folder = tmp_path / "run"
    runs.train(config("data.clients=6", "masks.min_clients=5"), folder=folder, transport=transport)
    assert len(lines(folder)[-1]["releases"]["clinic-4"]) == 1
    audit = audit_run(folder)
    assert audit.ok, str(audit)
