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
    return trained(tmp_path_factory.mktemp("audited") / "run")


def trained(folder, *overrides, clients=CLIENTS, **options):
    from privopt.federation.run import train

    keys = ["data.name=breast_cancer", f"data.clients={clients}", f"rounds={ROUNDS}", "twin=false"]
    train(load(None, [*keys, f"client.effort.steps={STEPS}", *overrides]), folder=folder, **options)
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


class StopError(Exception):
    pass


def test_a_resumed_run_with_a_lost_round_passes(tmp_path, capsys):
    from privopt.federation.run import resume
    from tests.privopt.federated import last_sent

    def dies(client, message):
        answer = client.handle(message)
        if (last_sent(client), client._round) == ("vector", 2):
            raise StopError
        return answer

    with pytest.raises(StopError):
        trained(tmp_path / "run", transport=dies)
    resume(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines[1]["releases"]["clinic-0"]) == 2
    found = audit_run(tmp_path / "run")
    assert found.faults == []
    assert main(["audit", str(tmp_path / "run")]) == 0
    capsys.readouterr()


def test_a_run_with_an_aborted_round_passes(tmp_path):
    def loses(client, message):
        answer = client.handle(message)
        if client.id == "clinic-3" and client._round == 2:
            raise ConnectionError("lost on its way")  # of five, one advert: min_clients is five
        return answer

    trained(tmp_path / "run", transport=loses)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["status"] for line in lines] == ["ok", "aborted", "ok"]
    # What was drawn in it is spent: the others' stand in that round, the lost one's in the next.
    assert [len(line["releases"].get("clinic-3", [])) for line in lines] == [1, 0, 2]
    assert audit_run(tmp_path / "run").faults == []


def test_a_run_where_a_budget_stopped_one_client_passes(tmp_path):
    from privopt.federation.home import Home

    with Home(tmp_path / "homes" / "clinic-2", "clinic-2").ledger() as ledger:
        ledger.set_budget("breast_cancer/clinic-2", epsilon=9.0, delta=1e-4)
    home = f'client.home="{tmp_path / "homes" / "{id}"}"'
    trained(tmp_path / "run", home, clients=6)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    states = [line["clients"]["clinic-2"]["status"] for line in lines]
    assert (states[0], states[-1]) == ("ok", "stopped")
    assert audit_run(tmp_path / "run").faults == []


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


# --- edits of a run folder, each found and named ----------------------------------------------------------


def facts(change):
    return lambda run: edited(run / "run.json", change)


def config(change):
    return lambda run: edited(run / "config.json", change)


def metrics(change):
    """An edit of all lines, as a list."""

    def edit(run):
        path = run / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        change(lines)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    return edit


def told(number, **values):
    """One client's entry in one round's line, told otherwise."""
    return metrics(lambda lines: lines[number - 1]["clients"]["clinic-1"].update(values))


def all_of(*edits):
    return lambda run: [edit(run) for edit in edits] and None


def moved(lines):
    """The second round's releases into the first, with the steps that fit."""
    lines[0]["releases"]["clinic-1"] += lines[1]["releases"].pop("clinic-1")
    lines[0]["clients"]["clinic-1"].update(lines[1]["clients"]["clinic-1"])


def exchanged(lines):
    first, second = (line["releases"] for line in lines[:2])
    first["clinic-1"], second["clinic-1"] = second["clinic-1"], first["clinic-1"]


def without_dp(run):
    facts(lambda found: found.update(dp=None, disclosed=[]))(run)
    config(lambda found: found["dp"].update(enabled=False))(run)


def bare(run):
    """Without DP by all that it says, but for the files in ledgers/."""
    without_dp(run)
    facts(lambda found: [client.update(ledger_key=None) for client in found["clients"]] and None)(run)
    metrics(
        lambda lines: [
            line.update(releases={}, clients={n: c | {"epsilon": None} for n, c in line["clients"].items()})
            for line in lines
        ]
    )(run)


def without_clients(run):
    """One participant gone from every file but config.json."""
    facts(lambda found: found["clients"].pop(1) and None)(run)
    metrics(lambda lines: [line[key].pop("clinic-1") for line in lines for key in ("clients", "releases")])(
        run
    )
    ledger(run).unlink()


def aborted(reason, **values):
    return metrics(lambda lines: lines[1].update({"status": "aborted", "reason": reason} | values))


def same(key):
    return facts(lambda found: found["clients"][2].update({key: found["clients"][1][key]}))


EDITS = {
    "steps lowered": (told(2, steps=1), "round 2 of metrics.jsonl tells 1 steps, its releases so far are 4"),
    "steps and epsilon lowered": (told(3, steps=1, epsilon=0.1), "round 3 of metrics.jsonl tells 1 steps"),
    "steps null": (told(1, steps=None), "round 1 of metrics.jsonl tells None steps"),
    "epsilon null": (told(2, epsilon=None), "round 2 of metrics.jsonl tells no ε"),
    "epsilon of an early round": (told(1, epsilon=0.25), "the run told ε = 0.25"),
    "epsilon a little lower": (
        metrics(lambda ls: [c["clients"]["clinic-1"].update(epsilon=7.9) for c in ls[2:]]),
        "the run told ε = 7.9,",
    ),
    "client left out": (
        metrics(lambda ls: ls[1]["clients"].pop("clinic-1")),
        "round 2 of metrics.jsonl leaves out client 'clinic-1'",
    ),
    "epsilon raised": (
        all_of(*(f(lambda v: v["dp"].update(epsilon=100.0)) for f in (facts, config))),
        "fixes the run's budget at ε = 8, run.json says 100",
    ),
    "delta raised": (
        all_of(*(f(lambda v: v["dp"].update(delta=5e-4)) for f in (facts, config))),
        "fixes the run's budget at δ = 0.0001",
    ),
    "dp off, ledgers left": (bare, "run.json says that dp was off, and ledgers/clinic-0.json is there"),
    "dp off, keys left": (without_dp, "pins a ledger_key of 'clinic-0'"),
    "dp off, prices left": (
        all_of(without_dp, lambda run: shutil.rmtree(run / "ledgers")),
        "round 1 of metrics.jsonl prices 'clinic-0'",
    ),
    "ledger without participant": (
        lambda run: shutil.copy(ledger(run), ledger(run, "clinic-9")),
        "ledgers/clinic-9.json belongs to no client",
    ),
    "participant without ledger": (lambda run: ledger(run).unlink(), "clinic-1: no export of its ledger"),
    "participant gone": (without_clients, "config.json says number of clients 5, run.json 4"),
    "same ledger_key": (same("ledger_key"), "'clinic-1' and 'clinic-2' the same ledger_key"),
    "same dataset": (same("dataset"), "'clinic-1' and 'clinic-2' the same dataset"),
    "same public_key": (same("public_key"), "'clinic-1' and 'clinic-2' the same public_key"),
    "planned_steps": (facts(lambda v: v["dp"].update(planned_steps=99)), "planned_steps 99, which is not"),
    "num_steps": (facts(lambda v: v["dp"].update(num_steps=99)), "num_steps 99, which is not its 3 rounds"),
    "num_steps gone": (facts(lambda v: v["dp"].pop("num_steps") and None), "num_steps None, which is not"),
    "rounds": (
        facts(lambda v: v["dp"].update(rounds=9, planned_steps=18, num_steps=18)),
        "config.json says rounds 3, run.json 9",
    ),
    "steps": (
        facts(lambda v: v["dp"].update(steps=4, planned_steps=12, num_steps=12)),
        "config.json says steps 2, run.json 4",
    ),
    "rounds of the config": (config(lambda v: v.update(rounds=2)), "config.json says rounds 2, run.json 3"),
    "release moved, told alike": (metrics(moved), "round 2 of metrics.jsonl has it take part and release"),
    "releases exchanged": (metrics(exchanged), "stands in round 2 of metrics.jsonl, after record"),
    "aborted without a reason": (aborted(None), "round 2 of metrics.jsonl is 'aborted' and has none under"),
    "aborted, accuracy moved": (aborted("lost"), "round 2 was aborted, and its"),
    "aborted with a training loss": (aborted("lost", training_loss=1.0), "'aborted' and has a training_loss"),
    "ok with a reason": (metrics(lambda ls: ls[1].update(reason="x")), "is 'ok' and has one under 'reason'"),
    "ok with too few": (told(2, status="failed"), "round 2 of metrics.jsonl is 'ok' with 4 clients"),
    "last line gone": (metrics(lambda ls: ls.pop()), "metrics.jsonl ends at round 2 of 3"),
    "rows for which delta is large": (
        facts(lambda v: v["clients"][1].update(rows=10_000)),
        "clinic-1: run.json: Expected delta < 1/10000",
    ),
    "rows null": (facts(lambda v: v["clients"][1].update(rows=None)), "clinic-1: run.json names no number"),
    "dataset null": (facts(lambda v: v["clients"][1].update(dataset=None)), "clinic-1: run.json names no da"),
    "dataset gone": (facts(lambda v: v["clients"][1].pop("dataset") and None), "clinic-1: run.json names no"),
    "disclosed emptied": (facts(lambda v: v.update(disclosed=[])), "run.json lists as disclosed []"),
    "disclosure asked for": (
        config(lambda v: v["dp"].update(disclose=["loss"])),
        "by config.json it is ['sample counts (declared public)', 'loss (disclosed by the config)']",
    ),
    "noise module put in": (
        config(lambda v: v["server"]["optimizer"]["modules"].append(["gaussian-noise", {"std": 1.0}])),
        "gaussian-noise: gaussian-noise in the chain",
    ),
    "module that nobody knows": (
        config(lambda v: v["server"]["optimizer"]["modules"].append("no-such-module")),
        "what config.json discloses cannot be told",
    ),
    "config that is none": (config(lambda v: v.update(rounds=0)), "config.json: Expected at least one round"),
    "masks off": (config(lambda v: v["masks"].update(enabled=False)), "differ on whether masks are on"),
    "another relation": (
        facts(lambda v: v["dp"].update(neighboring="replace-one")),
        "the run says per sample, replace-one",
    ),
    "clip norm in all files": (
        all_of(
            *(f(lambda v: v["dp"].update(clip_norm=0.1)) for f in (facts, config)),
            metrics(
                lambda ls: [r.update(clip_norm=0.1) for x in ls for rs in x["releases"].values() for r in rs]
            ),
        ),
        "was clipped to 0.5, the run recorded 0.1",
    ),
    "model replaced": (
        lambda run: (run / "model.safetensors").write_bytes(b"another"),
        "model.safetensors has SHA-256",
    ),
    "model gone": (lambda run: (run / "model.safetensors").unlink(), "model.safetensors is missing"),
    "hash gone": (
        facts(lambda v: v["model"].pop("sha256") and None),
        "names no SHA-256 of model.safetensors",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_found_and_named(run, capsys, name):
    edit, says = EDITS[name]
    edit(run)
    found = audit_run(run)
    assert any(says in str(fault) for fault in found.faults), [str(fault) for fault in found.faults]
    assert main(["audit", str(run)]) == 6
    printed = capsys.readouterr()
    assert f"First fault: {found.faults[0]}" in printed.out
    assert "Traceback" not in printed.out + printed.err


def test_the_audit_says_what_it_cannot_find(run, capsys):
    assert main(["audit", str(run)]) == 0
    assert "run.json, config.json and metrics.jsonl are not" in capsys.readouterr().out
    # The run's own word: nothing in the folder contradicts it.
    edited_round(run, 1, lambda line: line.update(accuracy=0.999))
    facts(lambda found: found["clients"][1].update(rows=3))(run)
    assert audit_run(run).ok


def test_a_run_that_has_not_ended_says_that_it_has_no_model(run):
    (run / "model.safetensors").unlink()
    facts(lambda found: found["model"].pop("sha256") and None)(run)
    assert any("No model.safetensors" in note for note in audit_run(run).notes)


# --- a run that its own rule ended ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped_early(tmp_path_factory):
    """No accuracy can improve by more than one half twice: of six rounds it takes three or four."""
    stop = "server.stop={metric='accuracy', patience=2, min_change=0.5}"
    off = ("dp.enabled=false", "masks.enabled=false")
    return trained(tmp_path_factory.mktemp("early") / "run", "rounds=6", stop, *off)


@pytest.fixture
def early(stopped_early, tmp_path):
    return shutil.copytree(stopped_early, tmp_path / "early")


def early_faults(run):
    return [fault.what for fault in audit_run(run).faults]


def test_a_run_that_its_rule_ended_passes(early, capsys):
    assert audit_run(early).ok, early_faults(early)
    assert main(["audit", str(early)]) == 0
    assert "could have gone on" not in capsys.readouterr().out


def settings(change):
    """Edit ``server.stop`` of config.json."""
    return lambda run: edited(run / "config.json", lambda found: change(found["server"]["stop"]) and None)


NOT_ENDED = {
    "no rule": settings(lambda stop: stop.update(metric=None)),
    "more patience": settings(lambda stop: stop.update(patience=5)),
    "every change counts": settings(lambda stop: stop.update(metric="loss", min_change=0.0)),
    "the last round improved": lambda run: edited_round(run, 0, lambda line: line.update(accuracy=9.0)),
    "the last round was aborted": lambda run: edited_round(
        run, 0, lambda line: line.update(status="aborted", reason="clinic-0 was late", training_loss=None)
    ),
    "the last round has no accuracy": lambda run: edited_round(
        run, 0, lambda line: line.update(accuracy=None)
    ),
    "the last round is gone": lambda run: (run / "metrics.jsonl").write_text(
        "".join((run / "metrics.jsonl").read_text().splitlines(keepends=True)[:-1])
    ),
}


@pytest.mark.parametrize("what", NOT_ENDED)
def test_a_run_that_stops_before_its_rule_says_so_is_found(early, capsys, what):
    NOT_ENDED[what](early)
    rounds = len((early / "metrics.jsonl").read_text().splitlines())
    says = f"metrics.jsonl ends at round {rounds} of 6, and {CLIENTS} clients could have gone on"
    assert any(says in fault for fault in early_faults(early)), early_faults(early)
    assert main(["audit", str(early)]) == 6
    assert "First fault: the run: " in capsys.readouterr().out
