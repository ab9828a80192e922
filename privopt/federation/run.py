"""A run on one machine, from a config to a folder that can be audited and resumed: floor 6.

The folder is written so that a kill at any moment leaves a run that `resume` continues: a round's line
of ``metrics.jsonl`` first, the server's checkpoint after it, and the clients' states before anything is sent.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import safetensors.numpy

import dp
import secagg

from ..checkpoint import read_state, write_atomic, write_state
from ..optimizer import Optimizer
from ..setup import config as configs
from ..setup.disclosed import disclosures
from ..setup.survival import warn_of_dropout
from ..setup.tables import Config
from .federation import Transport
from .observer import Observer, Silent
from .parts import Parts
from .reports import RoundReport

__all__ = ["resume", "train"]

FORMAT = 1


def train(
    config: Config,
    *,
    folder: Path | None = None,
    observer: Observer | None = None,
    source: dp.random.Source | None = None,
    transport: Transport | None = None,
) -> dict[str, Any]:
    """Run a federation on this machine.

    Args:
        config: What to run.
        folder: Where to keep the run; by default a new folder below ``config.out``.
        observer: Told how it goes.
        source: Randomness of batches and noise under DP; the operating system's by default. A test may
            pass `dp.random.insecure_source`; it is written nowhere and must be given again to `resume`.
        transport: Delivers messages to clients (see `Federation`).

    Returns:
        What the observer's `finished` is told: ``folder, rounds, accuracy, twin_accuracy, epsilon, delta``...

    Raises:
        ValueError: If the config, the data or the model cannot be used; nothing was written then.
        dp.PrivacyParameterError: If the privacy parameters cannot, for a client's number of rows.
    """
    configs.check(config)
    warn_of_dropout(config)
    parts = Parts(config)
    _ = parts.plan  # calibrated before anything is written: an epsilon may be out of reach
    path = _new_folder(config) if folder is None else folder
    path.mkdir(parents=True)
    with _locked(path):
        try:
            # Homes may outlive folders: the id is unique where a folder's name may come again.
            name = f"{path.name}-{secrets.token_hex(4)}"
            run = _Run(parts, path, name, observer or Silent(), source, transport)
            run.write_facts()
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return run.go()


def resume(
    folder: Path,
    *,
    observer: Observer | None = None,
    source: dp.random.Source | None = None,
    transport: Transport | None = None,
) -> dict[str, Any]:
    """Continue a run that stopped, from the last round that its server closed.

    Without DP, and with it where the stop fell between two rounds and the source is an insecure
    one, the weights end as those of the run that was never stopped, bit for bit. A round that was under way
    is done again: what it may have released counts as spent, and batches and noise are drawn afresh.

    Raises:
        FileNotFoundError: If the folder holds no run.
        ValueError: If a file in it is damaged.
        RunFolderError: If another process works on it, or a participant's keys or ledger are not those that
            the run began with: a fresh ledger would not know what was spent.
    """
    path = Path(folder)
    with _locked(path):
        config = configs.from_json((path / "config.json").read_bytes())
        facts = json.loads((path / "run.json").read_bytes())
        _verify_homes(config, path, facts)
        run = _Run(Parts(config), path, facts["id"], observer or Silent(), source, transport)
        _verify_keys(path, facts, run.facts)
        run.facts["created"] = facts["created"]
        # The model of an earlier end stays until the next one replaces it.
        run.facts["model"]["sha256"] = facts["model"].get("sha256")
        run.load()
        return run.go()


def _new_folder(config: Config) -> Path:
    """The first free ``<out>/<date>-<data>-<n>``."""
    stem = f"{datetime.datetime.now(datetime.UTC).date().isoformat()}-{config.data.name}"
    number = 1
    while (path := Path(config.out) / f"{stem}-{number}").exists():
        number += 1
    return path


# ---- a run and its folder --------------------------------------------------------------------------------


def _locked(folder: Path) -> IO[str]:
    """An exclusive lock on a run's folder, released when the process ends in whatever way.

    Raises:
        RunFolderError: If another process holds it.
    """
    file = (folder / "lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        from ..report.folder import RunFolderError

        file.close()
        raise RunFolderError(
            f"Expected a run that nobody is working on, got {folder}, which another process is training. "
            "Wait for it to end, or stop it."
        ) from None
    return file


def _home(config: Config, folder: Path, client: str) -> Path:
    homes = config.client.home or str(folder / "homes" / "{id}")
    return Path(homes.replace("{id}", client))


def _verify_homes(config: Config, folder: Path, facts: dict[str, Any]) -> None:
    """Before anything is made anew: raise RunFolderError if a client's keys or ledger are gone."""
    for client in facts["clients"]:
        home = _home(config, folder, client["id"])
        wanted = ["identity.key", *(["ledger.key", "ledger.sqlite"] if client["ledger_key"] else [])]
        if missing := [name for name in wanted if not (home / name).exists()]:
            raise _unfit(folder, client["id"], f"no {' and no '.join(missing)} in {home}")


def _verify_keys(folder: Path, facts: dict[str, Any], found: dict[str, Any]) -> None:
    """Raise RunFolderError unless all participants have the keys that the run began with."""
    if facts["server"] != found["server"]:
        raise _unfit(folder, "the server", "another key")
    for client, now in zip(facts["clients"], found["clients"], strict=True):
        if differing := [name for name in client if client[name] != now[name]]:
            raise _unfit(folder, client["id"], f"another {' and another '.join(differing)}")


def _unfit(folder: Path, who: str, what: str) -> Exception:
    from ..report.folder import RunFolderError

    return RunFolderError(
        f"Expected {who} with the keys and the ledger that the run in {folder} began with, got {what}. A "
        "fresh ledger would not know what was spent: bring the old files back, or start a new run."
    )


@dataclass
class _Evaluated:
    accuracy: float | None
    loss: float | None


class _Run:
    """One federation and the files that it leaves."""

    def __init__(
        self,
        parts: Parts,
        folder: Path,
        run: str,
        observer: Observer,
        source: dp.random.Source | None,
        transport: Transport | None,
    ) -> None:
        self.parts = parts
        self.folder = folder
        self.id = run
        self.observer = observer
        self.last: dict[str, Any] = {}
        config = parts.config
        server_home = Path(config.server.home or folder / "homes" / "server")
        self.federation, self.central = parts.federation(
            run, lambda name: _home(config, folder, name), server_home, source, transport
        )
        self.facts = self._facts()
        self.rounds: list[dict[str, Any]] = []

    def _facts(self) -> dict[str, Any]:
        """What ``run.json`` says; public values only."""
        from .. import __version__

        config, parts, server = self.parts.config, self.parts, self.federation.server
        rows = {client.id: len(client.y) for client in parts.data.clients}
        roster = server.roster_keys
        plan = parts.plan
        return {
            "format": FORMAT,
            "id": self.id,
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "privopt_version": __version__,
            "data": parts.data.description,
            "clients": [
                {
                    "id": name,
                    "public_key": key.hex(),
                    "rows": rows[name],
                    "ledger_key": self._ledger_key(name),
                    "dataset": parts.dataset(name),
                }
                for name, key in roster.clients.items()
            ],
            "server": {"public_key": roster.server.hex()},
            "model": {
                "parameters": self.central.weights.size,
                "layout": self.central.weights.layout.to_json(),
            },
            "rates": {
                "client": _rates(next(iter(self.federation.clients.values())).optimizer),
                "server": _rates(server.optimizer),
            },
            "dp": None
            if plan is None
            else {
                **asdict(plan),
                "steps": parts.steps,
                "rounds": config.rounds,
                "planned_steps": plan.num_steps,
            },
            "masks": self._masks_facts(),
            "disclosed": disclosures(config),
            "twin": None,
        }

    def _ledger_key(self, name: str) -> str | None:
        privacy = self.federation.clients[name].privacy
        return None if privacy is None else privacy.ledger.public_key.hex()

    def _masks_facts(self) -> dict[str, Any] | None:
        if not self.parts.config.masks.enabled:
            return None
        found = secagg.explain(self.federation.server.schema, len(self.federation.clients))
        return {
            "bits": self.parts.config.masks.bits,
            "words": found.words,
            "bytes_per_value": found.bytes_per_value,
            "bytes_per_parameter": 8 * found.words / max(1, self.central.weights.size),
            "explain": found.to_dicts(),
        }

    # ---- files -------------------------------------------------------------------------------------------

    def write_facts(self) -> None:
        """``config.json`` and ``run.json``."""
        write_atomic(self.folder / "config.json", configs.to_json(self.parts.config).encode())
        self._write_run()

    def _write_run(self) -> None:
        write_atomic(self.folder / "run.json", (json.dumps(self.facts, indent=1) + "\n").encode())

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint" / "server.safetensors"

    def load(self) -> None:
        """Go back to the last round that the server closed."""
        if self._checkpoint.exists():
            self.federation.server.set_state(read_state(self._checkpoint))
        done = self.federation.server.round
        metrics = self.folder / "metrics.jsonl"
        lines = metrics.read_bytes().split(b"\n")[:-1] if metrics.exists() else []
        # A line that the checkpoint does not know of belongs to a round that will be done again.
        self.rounds = [line for text in lines[:done] if (line := json.loads(text))["round"] <= done]
        kept = b"".join(text + b"\n" for text in lines[: len(self.rounds)])
        write_atomic(metrics, kept)
        self.last = self.rounds[-1] if self.rounds else {}
        told = self.last.get("clients", {}).items()
        self.federation.out = {name for name, client in told if client["status"] == "stopped"}
        self._write_run()

    def _record(self, report: RoundReport) -> dict[str, Any]:
        scores = self._evaluate()
        plan, steps = self.parts.plan, self.parts.steps
        timed = (
            self.parts.config.client.effort.seconds is not None
        )  # then nobody but a client knows its steps
        line = {
            "round": report.round,
            "status": report.status,
            "reason": report.reason,
            "accuracy": scores.accuracy,
            "loss": scores.loss,
            "training_loss": report.loss,
            "clients": {
                name: {
                    "status": client.status,
                    "dropped": client.dropped,
                    "late": client.late,
                    "epsilon": client.epsilon if client.epsilon is not None else self._epsilon_before(name),
                    "steps": None
                    if timed
                    else self._steps_before(name)
                    + (sum(r["steps"] for r in client.releases) if plan else steps * (client.status == "ok")),
                }
                for name, client in report.clients.items()
            },
            "releases": {name: c.releases for name, c in report.clients.items() if c.releases},
            "clipped": report.clipped,
            "bounds": report.bounds,
            "faulty": report.faulty,
            "bytes_up": report.bytes_up,
            "bytes_down": report.bytes_down,
            "seconds": round(self.federation.seconds, 4),
        }
        with (self.folder / "metrics.jsonl").open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._checkpoint.parent.mkdir(exist_ok=True)
        write_state(self._checkpoint, self.federation.server.get_state())
        self.rounds.append(line)
        self.last = line
        return line

    def _epsilon_before(self, client: str) -> float | None:
        found: float | None = self.last.get("clients", {}).get(client, {}).get("epsilon")
        return found

    def _steps_before(self, client: str) -> int:
        return int(self.last.get("clients", {}).get(client, {}).get("steps", 0))

    def _evaluate(self) -> _Evaluated:
        if self.parts.data.test is None:
            return _Evaluated(None, None)
        return _Evaluated(*self.central.evaluate(*self.parts.data.test))

    # ---- the run -----------------------------------------------------------------------------------------

    def go(self) -> dict[str, Any]:
        """All rounds that are left, then what the folder ends with."""
        config = self.parts.config
        self.observer.started({**self.facts, "config": json.loads(configs.to_json(config))})
        with self.federation:
            for report in () if self._ended() else self.federation.run(config.rounds):
                self.observer.round_done(self._record(report))
                if self._ended():
                    break
            self._record_unheard()
            self._export_ledgers()
        self._verify_result()
        if config.twin and self.parts.data.built_in and (config.dp.enabled or config.masks.enabled):
            rounds = self.federation.server.round if self._ended() else config.rounds
            accuracy = _twin(config, rounds)
            self.facts["twin"] = {"accuracy": accuracy}
            self.observer.twin_done({"accuracy": accuracy})
        return self._finish()

    def _ended(self) -> bool:
        """Whether the rounds so far, as they are recorded, end the run early."""
        stop = self.parts.stop
        if stop is None:
            return False
        return stop.reached([line[stop.metric] for line in self.rounds if line["status"] == "ok"])

    def _record_unheard(self) -> None:
        """Releases whose answer was lost in the last round: no later message tells of them."""
        if not self.rounds:
            return
        line, changed = self.rounds[-1], False
        for name, client in self.federation.clients.items():
            if client.privacy is None:
                continue
            known = [r["ledger_sequence"] for each in self.rounds for r in each["releases"].get(name, [])]
            unheard = client.privacy.releases(max(known, default=0))
            if unheard:
                line["releases"].setdefault(name, []).extend(map(msgspec.to_builtins, unheard))
                line["clients"][name]["steps"] += sum(release.steps for release in unheard)
                line["clients"][name]["epsilon"] = client.privacy.spent()
                # A run that ended early may be resumed when budgets were raised: the next round must not
                # tell again what is on record.
                self.federation.server.recorded[name] = unheard[-1].ledger_sequence
                changed = True
        if changed:
            lines = b"".join(msgspec.json.encode(each) + b"\n" for each in self.rounds)
            write_atomic(self.folder / "metrics.jsonl", lines)
            write_state(self._checkpoint, self.federation.server.get_state())

    def _verify_result(self) -> None:
        """A run without one finished round has no model to keep, and says why."""
        if any(line["status"] == "ok" for line in self.rounds):
            return
        from ..report.page import write_report

        write_report(self.folder)  # it says which round came to nothing, and who had vanished from it
        stopped = [name for name, c in self.last["clients"].items() if c["status"] == "stopped"]
        if stopped:
            raise dp.PrivacyBudgetExceeded(
                f"Expected privacy budget left for at least one round, got none at {', '.join(stopped)}: "
                "their ledgers allow no further release on these datasets. Ask the holders to raise the "
                f"budgets, or run on other data. Nothing was trained; {self.folder} holds the record."
            )
        raise secagg.RoundAborted(
            f"Expected at least one finished round, got {len(self.rounds)} aborted: {self.last['reason']} "
            f"Nothing was trained; {self.folder} holds the record."
        )

    def _export_ledgers(self) -> None:
        ledgers = self.folder / "ledgers"
        ledgers.mkdir(exist_ok=True)
        for client in self.federation.clients.values():
            if client.privacy is not None:
                client.privacy.ledger.export(ledgers / f"{client.id}.json")

    def _finish(self) -> dict[str, Any]:
        from ..report.page import write_report

        weights = self.central.weights.to_numpy()
        # By the model's own names, so that safetensors alone reads it back.
        named = {name: np.asarray(array, order="C") for name, array in weights.coefs.items()}
        model = safetensors.numpy.save(named)
        write_atomic(self.folder / "model.safetensors", model)
        self.facts["model"]["sha256"] = hashlib.sha256(model).hexdigest()
        self._write_run()
        scores = self._evaluate()
        spent = [c["epsilon"] for c in self.last.get("clients", {}).values() if c["epsilon"] is not None]
        outcome = {
            "folder": str(self.folder),
            "rates": self.facts["rates"],
            "rounds": self.federation.server.round,
            "aborted": sum(line["status"] == "aborted" for line in self.rounds),
            "accuracy": scores.accuracy,
            "loss": scores.loss,
            "twin_accuracy": (self.facts["twin"] or {}).get("accuracy"),
            "epsilon": max(spent, default=None),
            "delta": None if self.parts.plan is None else self.parts.plan.delta,
        }
        write_report(self.folder)
        self.observer.finished(outcome)
        return outcome


def _rates(optimizer: Optimizer) -> dict[str, Any]:
    """What an optimizer's rates are, with the parameters that a schedule has by default."""
    config = optimizer.get_config()
    keys = ("match", "lrate", "lrate_scale", "w_decay")
    groups = [{key: group[key] for key in keys} for group in config.get("groups", [])]
    return {"lrate": config["lrate"], "w_decay": config["w_decay"], "groups": groups}


def _twin(config: Config, rounds: int) -> float | None:
    """Accuracy of the same run without privacy: no clipping, no noise, no masks. Public data only."""
    plain = msgspec.structs.replace(
        config,
        dp=msgspec.structs.replace(config.dp, enabled=False),
        masks=msgspec.structs.replace(config.masks, enabled=False),
    )
    parts = Parts(plain)
    with _temporary() as folder:
        federation, central = parts.federation(
            "twin", lambda name: folder / name, folder / "server", None, None
        )
        for _ in federation.run(rounds):
            pass
    return None if parts.data.test is None else central.evaluate(*parts.data.test)[0]


@contextmanager
def _temporary() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="privopt-") as name:
        yield Path(name)
