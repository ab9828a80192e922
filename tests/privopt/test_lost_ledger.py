"""A ledger that is lost or put back to an older state is noticed before anything more is spent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from privopt.federation import run as runs
from privopt.report.folder import RunFolderError
from tests.privopt.test_private_run import StopError, config, federation, stopping


def stopped(folder: Path) -> Path:
    with pytest.raises(StopError):
        runs.train(config("rounds=4"), folder=folder, transport=stopping(3, None))
    return folder


@pytest.mark.parametrize(
    "lost", ["homes/clinic-1/ledger.sqlite", "homes/clinic-1/ledger.key", "homes/clinic-1/identity.key"]
)
def test_a_run_is_not_resumed_with_keys_or_ledgers_made_anew(tmp_path: Path, lost: str) -> None:
    folder = stopped(tmp_path / "run")
    (folder / lost).unlink()
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(RunFolderError, match="clinic-1 with the keys and the ledger"):
        runs.resume(folder)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before, "nothing is made anew"


def test_a_run_is_not_resumed_with_another_participants_keys(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "run")
    facts = json.loads((folder / "run.json").read_text())
    for who in ("server", "clinic-2"):
        other = json.loads(json.dumps(facts))
        entry = other["server"] if who == "server" else other["clients"][2]
        entry["public_key"] = "00" * 32
        (folder / "run.json").write_text(json.dumps(other))
        with pytest.raises(RunFolderError, match=who):
            runs.resume(folder)
    (folder / "run.json").write_text(json.dumps(facts))
    assert runs.resume(folder)["rounds"] == 4


def test_a_client_goes_no_further_with_an_older_ledger(tmp_path: Path) -> None:
    found, _ = federation(tmp_path)
    found.run_round()
    found.close()
    shutil.copy(tmp_path / "clinic-1" / "ledger.sqlite", tmp_path / "old.sqlite")
    again, _ = federation(tmp_path)
    again.server.set_state(found.server.get_state())
    assert again.run_round().status == "ok"
    again.close()
    for path in (tmp_path / "clinic-1").glob("ledger.sqlite*"):
        path.unlink()
    shutil.copy(tmp_path / "old.sqlite", tmp_path / "clinic-1" / "ledger.sqlite")
    last, _ = federation(tmp_path)
    last.server.set_state(again.server.get_state())
    client = last.clients["clinic-1"]
    with pytest.raises(ValueError, match="in the ledger of 'clinic-1', which the server was told of"):
        client.handle(last.server.begin())
    assert client.privacy is not None
    assert len(client.privacy.releases(0)) == 1, "nothing more was reserved"
    last.close()
