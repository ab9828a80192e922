"""The built-in run as a user starts it: its bars, kills at any moment, and what the audit then says."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import dp
from dp.ledger import Ledger, LedgerKey

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def privopt(*arguments: str, folder: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "privopt", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=check,
    )


def test_the_default_run_meets_its_bars_and_passes_its_audit(tmp_path: Path) -> None:
    outcome = json.loads(privopt("train", "--format", "json", folder=tmp_path).stdout)
    assert outcome["accuracy"] >= 0.85
    assert outcome["twin_accuracy"] >= 0.94
    assert outcome["epsilon"] <= 8.0
    assert outcome["rounds"] == 20
    run = tmp_path / outcome["folder"]
    facts = json.loads((run / "run.json").read_text())
    assert all(facts["dp"]["delta"] < 1 / client["rows"] for client in facts["clients"])
    assert facts["masks"] is not None
    audit = json.loads(privopt("audit", str(run), "--format", "json", folder=tmp_path).stdout)
    assert len(audit["clients"]) == 8
    for client in audit["clients"]:
        pld, rdp, prv = (client["epsilon"][by] for by in ("PLD", "RDP", "PRV"))
        assert pld <= 8.0
        assert abs(prv - pld) <= 0.01 * pld + 0.011
        assert pld <= rdp


def test_the_default_run_loses_no_round_to_the_clients_that_vanish_from_it(tmp_path: Path) -> None:
    outcome = json.loads(privopt("train", "dropout=0.3", "--format", "json", folder=tmp_path).stdout)
    assert (outcome["rounds"], outcome["aborted"]) == (20, 0)
    assert outcome["accuracy"] >= 0.82
    run = tmp_path / outcome["folder"]
    for line in lines(run):
        assert sum(client["dropped"] is not None for client in line["clients"].values()) == 2
        assert sum(client["status"] == "ok" for client in line["clients"].values()) >= 6
    assert privopt("audit", str(run), folder=tmp_path, check=False).returncode == 0


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("more", [["data.clients=5"], ["dropout=0.3"]], ids=["five", "dropouts"])
def test_a_run_killed_again_and_again_resumes_and_never_under_counts(tmp_path: Path, more: list[str]) -> None:
    """Each process is killed at a random moment a few rounds after it started to train."""
    rng = random.Random(1)
    settings = ["rounds=16", "client.effort.steps=3", "twin=false", *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments, kills, found = ["train", *settings], 0, []
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-m", "privopt", *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        done = sum(count_lines(p) for p in tmp_path.glob("runs/*/metrics.jsonl"))
        target = done + rng.randint(1, 3)
        while process.poll() is None and done < target:
            time.sleep(0.005)
            done = sum(count_lines(p) for p in tmp_path.glob("runs/*/metrics.jsonl"))
        time.sleep(rng.uniform(0.0, 0.15))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        finished = process.wait() == 0
        found = [p.parent for p in tmp_path.glob("runs/*/run.json")]
        arguments = ["train", "--resume", str(found[0])]
        if finished:
            break
    assert finished
    assert kills >= 3, "the run must have been cut several times for the test to show anything"
    folder = found[0]
    recorded, name = lines(folder), json.loads((folder / "run.json").read_text())["id"]
    assert [line["round"] for line in recorded] == list(range(1, len(recorded) + 1))
    for home in sorted((folder / "homes").glob("clinic-*")):
        with Ledger.open(home / "ledger.sqlite", LedgerKey.load(home / "ledger.key")) as ledger:
            ledger.verify()
            spent = ledger.spent(f"digits/{home.name}", 1e-4)
            assert spent.value <= 8.0
            counted = {found.sequence for found in ledger.releases(name)}
        known = {r["ledger_sequence"] for line in recorded for r in line["releases"].get(home.name, [])}
        assert known <= counted, "a release that the run knows of and the ledger does not"
    audit = privopt("audit", str(folder), folder=tmp_path, check=False)
    assert audit.returncode == 0, audit.stdout + audit.stderr


def test_peak_memory_of_the_default_run(tmp_path: Path) -> None:
    import resource

    privopt("train", "twin=false", folder=tmp_path)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    assert peak < 2048


def test_the_reference_value_of_the_accountant() -> None:
    event = dp.events.Repeated(dp.events.Poisson(0.01, dp.events.Gaussian(1.0)), 1000)
    assert dp.epsilon(event, 1e-5) == pytest.approx(1.828, abs=5e-4)
