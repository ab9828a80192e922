"""The audit: a real run passes, and each thing that does not hold is found, named, and ends with 6."""

import json
import shutil

import pytest

import dp
from privopt.cli import main
from privopt.report.audit import audit_run
from privopt.report.folder import RunFolderError
from privopt.report.ledgerfile import audit_export
from privopt.setup.config import load

ROUNDS, STEPS, CLIENTS = 3, 2, 5


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A real run, small: trained once, copied for each test."""
    from privopt.federation.run import train

    folder = tmp_path_factory.mktemp("audited") / "run"
    keys = ["data.name=breast_cancer", f"data.clients={CLIENTS}", f"rounds={ROUNDS}", "twin=false"]
    train(load(None, [*keys, f"client.effort.steps={STEPS}"]), folder=folder)
    return folder


@pytest.fixture
def run(original, tmp_path):
    return shutil.copytree(original, tmp_path / "run")


def edited(path, change):
    """Write what `change` makes of a file's JSON: what it returns, or the object that it changed."""
    found = json.loads(path.read_text())
    path.write_text(json.dumps(change(found) or found))


def edited_round(run, number, change):
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines[number - 1])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def ledger(run, client="clinic-1"):
    return run / "ledgers" / f"{client}.json"


def assert_fault(run, capsys, *, client, record, says):
    """The audit names the fault first, and the command ends with 6."""
    found = audit_run(run)
    assert not found.ok
    first = found.faults[0]
    assert (first.client, first.record) == (client, record), str(found)
    assert says in first.what
    assert main(["audit", str(run)]) == 6
    printed = capsys.readouterr()
    assert f"First fault: {first}" in printed.out
    assert "Traceback" not in printed.out + printed.err


# --- what holds -------------------------------------------------------------------------------------------


def test_a_run_passes_and_every_client_has_the_price_of_its_releases(run, capsys):
    found = audit_run(run)
    assert found.faults == []
    assert [one.client for one in found.clients] == [f"clinic-{i}" for i in range(CLIENTS)]
    plan = json.loads((run / "run.json").read_text())["dp"]
    event = dp.events.Poisson(plan["sample_rate"], dp.events.Gaussian(plan["noise_multiplier"]))
    for one in found.clients:
        assert one.events == ROUNDS * STEPS
        assert (one.chain, one.signature, one.matches) == (True, True, True)
        # The oracle prices what run.json declares, not what the ledger holds.
        expected = dp.epsilon(dp.events.Repeated(event, ROUNDS * STEPS), plan["delta"])
        assert one.epsilon["PLD"] == pytest.approx(expected, rel=1e-6)
        assert one.epsilon["PLD"] <= plan["epsilon"]
        assert one.epsilon["PLD"] <= one.epsilon["RDP"]
        assert abs(one.epsilon["PRV"] - one.epsilon["PLD"]) <= 0.01 * one.epsilon["PLD"] + 0.011
    assert main(["audit", str(run)]) == 0
    text = capsys.readouterr().out
    assert "ε (PLD)" in text
    assert "Disclosed without a price: sample counts" in text


def test_json_holds_what_the_table_tells(run, capsys):
    assert main(["audit", str(run), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["problems"], len(found["clients"])) == (True, [], CLIENTS)
    assert set(found["clients"][0]["epsilon"]) == {"PLD", "RDP", "PRV"}


def test_a_run_without_dp_has_nothing_to_price(tmp_path, capsys):
    from privopt.federation.run import train

    train(load(None, ["rounds=1", "twin=false", "dp.enabled=false"]), folder=tmp_path / "run")
    assert main(["audit", str(tmp_path / "run")]) == 0
    text = capsys.readouterr().out
    assert "dp was off" in text
    assert "noised values" not in text


# --- ledgers that were tampered with ----------------------------------------------------------------------


def test_an_altered_record_is_named(run, capsys):
    def change(export):
        record = next(r for r in export["records"] if r["kind"] == "reserve")
        record["event"]["event"]["event"]["noise_multiplier"] *= 2
        return export

    number = next(
        r["sequence"] for r in json.loads(ledger(run).read_text())["records"] if r["kind"] == "reserve"
    )
    edited(ledger(run), change)
    assert_fault(run, capsys, client="clinic-1", record=number, says="altered")


def test_a_removed_record_is_named(run, capsys):
    edited(ledger(run), lambda export: export["records"].pop(3) and export)
    assert_fault(run, capsys, client="clinic-1", record=4, says="in its place")


def test_a_ledger_that_was_cut_off_is_named(run, capsys):
    last = len(json.loads(ledger(run).read_text())["records"])
    edited(ledger(run), lambda export: {**export, "records": export["records"][:-2]})
    assert_fault(run, capsys, client="clinic-1", record=last - 1, says="is missing")


def test_a_signature_that_was_swapped_is_named(run, capsys):
    other = json.loads(ledger(run, "clinic-2").read_text())["head"]["signature"]
    last = len(json.loads(ledger(run).read_text())["records"])
    edited(ledger(run), lambda export: export["head"].update(signature=other))
    assert_fault(run, capsys, client="clinic-1", record=last, says="signature")


def test_another_clients_ledger_in_its_place_is_found(run):
    shutil.copy(ledger(run, "clinic-2"), ledger(run))
    found = audit_run(run)
    assert any(fault.client == "clinic-1" and "pinned" in fault.what for fault in found.faults)
    assert {one.client: one.signature for one in found.clients}["clinic-1"] is False


@pytest.mark.parametrize("content", ["", "{}", "[]", "\0" * 99, "null", '{"records": 3}'])
def test_whatever_stands_in_a_ledgers_place_is_a_fault_and_no_crash(run, capsys, content):
    ledger(run).write_text(content)
    assert_fault(run, capsys, client="clinic-1", record=None, says="export")


def test_a_missing_ledger_is_a_fault_that_says_how_to_get_it(run, capsys):
    ledger(run).unlink()
    assert_fault(run, capsys, client="clinic-1", record=None, says="--resume")


# --- runs that tell otherwise than their ledgers ----------------------------------------------------------


def test_a_release_that_the_run_did_not_record_is_named(run, capsys):
    edited_round(run, 2, lambda line: line["releases"].pop("clinic-1"))
    reserved = [
        r["sequence"] for r in json.loads(ledger(run).read_text())["records"] if r["kind"] == "reserve"
    ]
    assert_fault(run, capsys, client="clinic-1", record=reserved[1], says="the run did not record")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 1),
        ("sample_rate", 0.1),
        ("noise_multiplier", 9.0),
        ("clip_norm", 7.0),
        ("sampler", "shuffle"),
    ],
)
def test_a_release_that_is_recorded_otherwise_is_named(run, capsys, name, value):
    edited_round(run, 2, lambda line: line["releases"]["clinic-1"][0].update({name: value}))
    reserved = [
        r["sequence"] for r in json.loads(ledger(run).read_text())["records"] if r["kind"] == "reserve"
    ]
    assert_fault(run, capsys, client="clinic-1", record=reserved[1], says="recorded")


def test_a_price_that_was_told_too_low_is_found(run, capsys):
    edited_round(run, ROUNDS, lambda line: line["clients"]["clinic-1"].update(epsilon=0.5))
    assert_fault(run, capsys, client="clinic-1", record=None, says="the run told ε = 0.5")


def test_a_budget_below_what_was_spent_is_found(run):
    edited(run / "run.json", lambda facts: facts["dp"].update(epsilon=1.0))
    faults = [str(fault) for fault in audit_run(run).faults]
    assert any("config.json says epsilon 8.0, run.json 1.0" in fault for fault in faults)
    assert sum("of at most 1" in fault for fault in faults) == CLIENTS


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda facts: facts["dp"].update(unit="client"), "per sample"),
        (lambda facts: facts["dp"].update(planned_steps=1), "1 were planned"),
        (lambda facts: facts["clients"][1].update(dataset="icu"), "on 'icu'"),
        (lambda facts: facts["clients"][1].update(ledger_key=None), "pins no key"),
        (lambda facts: facts["clients"][1].update(ledger_key="00" * 32), "pinned"),
        (lambda facts: facts["clients"].pop(1) and None, "which run.json does not name"),
        (lambda facts: facts.update(id="another"), "not of 'another'"),
    ],
)
def test_a_run_json_that_was_changed_is_found(run, change, says):
    edited(run / "run.json", change)
    faults = [str(fault) for fault in audit_run(run).faults]
    assert any(says in fault for fault in faults), faults


def test_a_round_that_was_taken_out_is_found(run):
    path = run / "metrics.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[1:]))
    assert "tells round 2 where round 1 belongs" in str(audit_run(run).faults[0])


def test_a_folder_that_is_no_run_is_told(tmp_path):
    with pytest.raises(RunFolderError, match=r"run\.json"):
        audit_run(tmp_path)


# --- privopt ledger ---------------------------------------------------------------------------------------


def test_ledger_show_tells_every_record_and_what_was_spent(run, capsys):
    assert main(["ledger", "show", str(ledger(run))]) == 0
    text = capsys.readouterr().out
    assert "run-budget" in text
    assert text.count("poisson(q=0.2") == ROUNDS
    assert main(["ledger", "show", str(ledger(run)), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"][0]["reservations"] == ROUNDS
    assert found["records"][0]["kind"] == "create"


def test_ledger_verify_takes_a_key_that_was_pinned_elsewhere(run, capsys):
    keys = [client["ledger_key"] for client in json.loads((run / "run.json").read_text())["clients"]]
    assert main(["ledger", "verify", str(ledger(run)), "--key", keys[1]]) == 0
    assert "No key was pinned" not in capsys.readouterr().out
    assert main(["ledger", "verify", str(ledger(run)), "--key", keys[2]]) == 6
    assert "First fault" in capsys.readouterr().out
    assert main(["ledger", "verify", str(ledger(run)), "--key", "abc"]) == 2
    assert main(["ledger", "verify", str(run / "absent.json")]) == 7


def test_a_holder_may_show_the_live_ledger_and_it_stays_as_it_was(run):
    home = run / "homes" / "clinic-1"
    found = audit_export(home / "ledger.sqlite")
    assert found.ok
    assert len(found.checked.export.records) == len(json.loads(ledger(run).read_text())["records"])
    (home / "ledger.key").unlink()
    with pytest.raises(dp.LedgerError, match=r"ledger\.key"):
        audit_export(home / "ledger.sqlite")
