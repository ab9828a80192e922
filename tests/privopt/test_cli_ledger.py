"""`privopt ledger`: budgets are set and shown, older copies are found, each mistake has its exit code."""

import json
import re
import shutil

import pytest

from dp import Ledger, LedgerKey, PrivacyBudgetExceeded
from dp.events import Gaussian, Poisson, Repeated
from dp.heads import HeadKeeper
from privopt.cli import main
from privopt.federation.home import Home
from privopt.federation.run import train
from privopt.report.audit import audit_run
from privopt.setup.config import load

EVENT = Repeated(Poisson(0.2, Gaussian(1.5)), 5)
PEER = LedgerKey.generate()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A holder's home, and what a peer kept: two releases, a copy of the ledger after the first."""
    monkeypatch.chdir(tmp_path)
    key = LedgerKey.generate()
    key.save("ledger.key")
    keeper = HeadKeeper("heads.jsonl", PEER)
    for run in ("r1", "r2"):
        with Ledger.open("ledger.sqlite", key) as ledger:
            ledger.commit(ledger.reserve("icu 2024", EVENT, run=run))
            keeper.keep(ledger.head())
            ledger.export(f"{run}.json")
        shutil.copy("ledger.sqlite", f"{run}.sqlite")
    return key


def opened(key):
    return Ledger.open("ledger.sqlite", key)


def told(capsys, *arguments, code=0):
    assert main(["ledger", *map(str, arguments), "--format", "json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_budget_is_set_and_shown_with_what_is_left(home, capsys):
    found = told(
        capsys, "budget", "ledger.sqlite", "--dataset", "icu 2024", "--epsilon", "9", "--delta", "1e-3"
    )
    (total,) = found["totals"]
    assert (total["limit"], total["delta"], total["runs"], total["reservations"]) == (9.0, 1e-3, 2, 2)
    with opened(home) as ledger:
        spent = ledger.spent("icu 2024", 1e-3).value
    assert total["epsilon"] == spent
    assert spent <= total["filtered"] <= 9
    assert total["left"] == pytest.approx(9 - total["filtered"])
    assert main(["ledger", "budget", "ledger.sqlite"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"dataset\s+icu 2024\s+–\s+2\s+2", text)
    assert main(["ledger", "show", "ledger.sqlite"]) == 0
    assert text.strip() in capsys.readouterr().out


def test_the_command_that_a_refusal_names_raises_the_budget(home, capsys):
    with opened(home) as ledger:
        ledger.set_budget("icu 2024", epsilon=2.0, delta=1e-3)
        with pytest.raises(PrivacyBudgetExceeded) as refusal:
            ledger.reserve("icu 2024", EVENT, run="r3")
    import shlex

    named = shlex.split(str(refusal.value).partition("`")[2].partition("`")[0])
    assert named[0] == "privopt"
    assert main([*named[1:], "--epsilon", "20", "--delta", "1e-3"]) == 0
    assert "ε ≤ 20" in capsys.readouterr().out
    with opened(home) as ledger:
        ledger.reserve("icu 2024", EVENT, run="r3")


def test_a_project_takes_a_data_set_in_and_has_a_budget(home, capsys):
    found = told(capsys, "budget", "ledger.sqlite", "--dataset", "icu 2024", "--project", "sepsis")
    assert [(total["kind"], total["project"]) for total in found["totals"]] == [
        ("project", None),
        ("dataset", "sepsis"),
    ]
    found = told(capsys, "budget", "ledger.sqlite", "--project", "sepsis", "--epsilon", 5, "--delta", "1e-3")
    assert found["totals"][0]["limit"] == 5.0
    shown = told(capsys, "budget", "ledger.sqlite", "--project", "sepsis")["totals"]
    assert [total["name"] for total in shown] == ["sepsis"]
    with opened(home) as ledger, pytest.raises(PrivacyBudgetExceeded, match="project 'sepsis'"):
        ledger.reserve("icu 2024", Gaussian(0.5), run="r3")
    assert main(["ledger", "show", "ledger.sqlite"]) == 0
    assert "in project sepsis" in capsys.readouterr().out


def test_an_older_copy_passes_alone_and_is_found_with_the_heads(home, capsys):
    peer = PEER.public_key.hex()
    for path in ("r1.json", "r1.sqlite"):
        assert told(capsys, "verify", path)["ok"]
        found = told(capsys, "verify", path, "--heads", "heads.jsonl", "--peer", peer, code=6)
        assert (found["chain"], found["signature"], found["heads"]) == (True, True, 1)
        assert found["problems"][0]["record"] == 4
    found = told(capsys, "verify", "r2.json", "--heads", "heads.jsonl", "--peer", peer)
    assert (found["ok"], found["heads"]) == (True, 2)
    other = LedgerKey.generate().public_key.hex()
    assert not told(capsys, "verify", "r2.json", "--heads", "heads.jsonl", "--peer", other, code=6)["ok"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (
            ["budget", "ledger.sqlite", "--dataset", "icu", "--epsilon", "3"],
            2,
            "--epsilon and --delta together",
        ),
        (["budget", "ledger.sqlite", "--epsilon", "3", "--delta", "1e-5"], 2, "--dataset or --project"),
        (["budget", "ledger.sqlite", "--dataset", "i", "--epsilon", "x", "--delta", "1"], 2, "invalid float"),
        (["budget", "ledger.sqlite", "--dataset", "icu", "--order", "7"], 2, "--order together"),
        (["budget", "ledger.sqlite", "--key", "00"], 2, "`privopt ledger show` or `verify`"),
        (["show", "ledger.sqlite", "--dataset", "icu"], 2, "`privopt ledger budget`"),
        (["verify", "r1.json", "--peer", "00"], 2, "--heads"),
        (["verify", "r1.json", "--heads", "heads.jsonl", "--peer", "00"], 2, "64 hexadecimal"),
        (
            ["budget", "ledger.sqlite", "--dataset", "i", "--epsilon", "3", "--delta", "2"],
            4,
            "delta in (0, 1)",
        ),
        (["budget", "r1.json"], 6, "only the holder"),
        (["verify", "r1.json", "--heads", "r1.json"], 6, "line 1"),
        (["budget", "absent.sqlite"], 7, "absent.sqlite"),
        (["verify", "r1.json", "--heads", "absent"], 7, "absent"),
    ],
)
def test_each_mistake_is_one_paragraph_with_its_exit_code(home, capsys, arguments, code, says):
    try:
        found = main(["ledger", *arguments])
    except SystemExit as ended:
        found = ended.code
    printed = capsys.readouterr()
    assert found == code, printed.err
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_the_order_of_a_filter_is_named_with_its_first_budget(home, capsys):
    found = told(
        capsys,
        *("budget", "ledger.sqlite", "--dataset", "lab", "--epsilon", 1, "--delta", "1e-5", "--order", 3.5),
    )
    assert {total["name"]: total["order"] for total in found["totals"]} == {"icu 2024": None, "lab": 3.5}


@pytest.mark.slow
def test_heads_that_are_kept_in_a_runs_folder_are_held_against_its_ledgers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train(
        load(None, ["data.name=breast_cancer", "data.clients=5", "rounds=1", "twin=false"]),
        folder=tmp_path / "run",
    )
    keeper = HeadKeeper(tmp_path / "run" / "heads.jsonl", PEER)
    with Home(tmp_path / "run" / "homes" / "clinic-1", "clinic-1").ledger() as ledger:
        keeper.keep(ledger.head())
        found = audit_run(tmp_path / "run")
        assert found.ok, found.faults
        assert any(note.startswith("clinic-1: 1 kept head vouches") for note in found.notes)
        assert any("clinic-2: No kept head" in note for note in found.notes)
        last = ledger.head().sequence
        ledger.set_project("breast_cancer/clinic-1", "p")
        keeper.keep(ledger.head())
    assert main(["audit", str(tmp_path / "run")]) == 6
    assert f"First fault: clinic-1, record {last + 1}: is missing: a peer kept" in capsys.readouterr().out
    (tmp_path / "run" / "heads.jsonl").write_text("nonsense\n")
    assert "heads.jsonl cannot be read" in str(audit_run(tmp_path / "run").faults[0])


def test_a_ledger_without_anything_says_so(home, capsys, tmp_path):
    (tmp_path / "new").mkdir()
    key = LedgerKey.generate()
    key.save(tmp_path / "new" / "ledger.key")
    Ledger.open(tmp_path / "new" / "ledger.sqlite", key).close()
    assert main(["ledger", "budget", str(tmp_path / "new" / "ledger.sqlite")]) == 0
    assert "no budget is set" in capsys.readouterr().out
