"""The command line: each mistake is one paragraph with its remedy and an exit code, and leaves nothing."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from privopt import checkpoint
from privopt.cli import commands as cli
from privopt.cli import main
from privopt.cli.console import Console
from privopt.cli.failures import EXIT_CODES, exit_code, told
from privopt.report.text import percent, small, table
from privopt.setup.config import Config, load
from tests.privopt import made_up_run

ROOT = Path(__file__).parents[2]
COMMANDS = ["train", "audit", "explain", "init", "modules", "report", "ledger"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fails(capsys, arguments, code, says):
    """`main` ends with `code`, says one paragraph with `says` on standard error, and leaves no file."""
    before = sorted(path for path in Path().rglob("*") if path.is_file())
    try:
        found = main(arguments)
    except SystemExit as error:
        found = error.code
    printed = capsys.readouterr()
    assert found == code, printed.err
    assert says in printed.err
    assert printed.err.startswith("privopt: ")
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert sorted(path for path in Path().rglob("*") if path.is_file()) == before


# --- help -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_teaches_by_examples_that_parse(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    examples = [line.split("  ")[0] for line in map(str.strip, text.partition("examples:\n")[2].splitlines())]
    assert examples
    import shlex

    for example in examples:
        if example.startswith(f"privopt {command}"):
            cli._options(shlex.split(example.partition("|")[0])[1:])


def test_the_help_lists_every_exit_code(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for code, meaning in EXIT_CODES.items():
        assert f"{code}  {meaning}" in text


def test_help_is_quick_and_loads_no_framework():
    script = (
        "import sys, privopt.cli\n"
        "try: privopt.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "bad = {'torch', 'sklearn', 'opacus', 'dp_accounting', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {bad}' if bad else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


# --- mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "privopt --help"),
        (["trian"], 2, "invalid choice"),
        (["train", "--bogus"], 2, "--bogus"),
        (["train", "dp.epsilonn=4"], 2, "Did you mean dp.epsilon"),
        (["train", "rounds=many"], 2, "a whole number for rounds"),
        (["train", "a.toml", "b.toml"], 2, "one configuration file"),
        (["train", "rounds=2", "--resume", "runs/x"], 2, "--resume alone"),
        (["train", 'client.optimizer.modules=["adan"]'], 2, "Did you mean 'adam'"),
        (["train", 'client.optimizer.modules=[["adam", {beta=1}]]'], 2, "client.optimizer"),
        (["train", 'client.optimizer.modules=[["adam", {beta_1="x"}]]'], 2, "a number"),
        (["train", 'client.optimizer.regularizers=["lasoo"]'], 2, "lasso"),
        (["train", "model.name=resnet"], 2, "linear, mlp, cnn"),
        (["modules", "adan"], 2, "Did you mean adam"),
        (["modules", "lasoo"], 2, "Did you mean lasso"),
        (["modules", "cosin"], 2, "Did you mean cosine"),
        (["modules", "masked_mean"], 2, "Did you mean masked-mean"),
        (["modules", "warm"], 2, "Did you mean warmup?"),
        (["modules", "mime"], 2, "Did you mean mime-lite-client or mime-lite-server?"),
        (["modules", "sgd"], 2, "Plain SGD is an optimizer without modules"),
        (["train", "data.clients=2000"], 3, "2000 clients"),
        (["train", "dp.epsilon=0"], 4, "dp.epsilon = 0"),
        (["train", "dp.epsilon=-2"], 4, "dp.epsilon = -2"),
        (["train", "dp.delta=1.5"], 4, "dp.delta = 1.5"),
        (["train", "dp.delta=0.5"], 4, "0.5"),
        (["train", "data.clients=1"], 5, "masks.enabled=false"),
        (["train", "data.clients=2"], 5, "masks.enabled=false"),
        (["train", "data.clients=2", "masks.min_clients=2"], 5, "masks.enabled=false"),
        (["train", "absent.toml"], 7, "privopt init"),
        (["train", "--resume", "absent"], 7, "run.json"),
        (["audit", "absent"], 7, "run.json"),
        (["report", "absent"], 7, "run.json"),
        (["init", "absent/my.toml"], 7, "absent/my.toml, got: No such file or directory. Check the path"),
    ],
)
def test_mistakes_end_in_one_paragraph_and_their_code(capsys, arguments, code, says):
    fails(capsys, arguments, code, says)


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("age,ill\n1,no\n", 3, "'sick' in north.csv, got columns age, ill"),
        ("age,sick\nnan,no\n", 3, "NaN or infinity in north.csv, line 2, column 'age'"),
        (None, 7, "north.csv: No such file"),
    ],
)
def test_mistakes_in_ones_own_data(capsys, text, code, says):
    if text is not None:
        Path("north.csv").write_text(text)
    keys = [
        'data.clients=["north.csv"]',
        "data.target=sick",
        'data.classes=["no", "yes"]',
        "data.bounds.age=[0,9]",
    ]
    fails(capsys, ["train", *keys, "masks.enabled=false"], code, says)


def test_a_disk_that_is_full_leaves_no_half_written_file(capsys, monkeypatch):
    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", no_space)
    fails(capsys, ["init", "my.toml"], 7, "Free some space")
    fails(capsys, ["train", "rounds=1"], 7, "Free some space")


def test_a_limit_on_file_size_is_met_by_the_real_system_call():
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "from privopt.cli import main; sys.exit(main(['init', 'my.toml']))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, list(Path().iterdir())) == (7, [])
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_extra_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    fails(capsys, ["train"], 8, "pip install 'privopt[run]'")


def test_errors_of_privopt_itself_are_not_told_as_the_users():
    assert exit_code(ValueError("x")) == exit_code(KeyError("x")) == 1
    assert exit_code(ModuleNotFoundError("x", name="privopt.absent")) == 1
    assert exit_code(ModuleNotFoundError("x", name="torch")) == 8
    assert "privopt[run]" in told(ModuleNotFoundError("No module named 'torch'", name="torch"))


def test_a_mistake_of_privopt_itself_keeps_its_traceback(monkeypatch):
    def broken(options):
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_init", broken)
    with pytest.raises(ZeroDivisionError):
        main(["init"])


def test_debug_shows_the_traceback_of_a_told_error():
    with pytest.raises(ValueError, match="absent"):
        main(["report", "absent", "--debug"])


def test_warnings_of_ours_are_told_once_a_kind_and_others_as_python_does(capsys, monkeypatch):
    from dp.errors import PrivacyWarning

    def warning(options):
        for client in range(3):
            warnings.warn(f"delta is large for clinic-{client}", PrivacyWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(cli, "_init", warning)
    assert main(["init"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "privopt: note: delta is large for clinic-0",
        "privopt: note: 2 more of this kind.",
    ]


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(capsys, monkeypatch):
    from privopt.federation import run

    def interrupted(config, *, observer):
        observer.started(facts())
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", interrupted)
    assert main(["train", "rounds=2"]) == 130
    assert f"privopt train --resume {Path('runs') / 'the-id'}" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error():
    script = "import sys; from privopt.cli import main; sys.exit(main(['modules']))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "{sys.executable}" -c "{script}" | head -n 1'],
        env=env, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


# --- commands ---------------------------------------------------------------------------------------------


def test_init_writes_what_loads_to_the_defaults_and_replaces_only_when_told(capsys):
    assert main(["init", "my.toml"]) == 0
    assert "privopt train my.toml" in capsys.readouterr().out
    assert load("my.toml") == Config()
    fails(capsys, ["init", "my.toml"], 2, "--force")
    assert main(["init", "my.toml", "--force", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": "my.toml"}


def test_modules_lists_every_plug_in_with_parameters_and_defaults(capsys):
    from privopt import registry

    assert main(["modules"]) == 0
    text = capsys.readouterr().out
    assert main(["modules", "--format", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    tables = {
        "module": registry.list_optim_modules(),
        "regularizer": registry.list_optim_regularizers(),
        "schedule": registry.list_rate_schedulers(),
        "aggregator": registry.list_aggregators(),
    }
    expected = [(kind, name) for kind, table in tables.items() for name in table]
    assert [(entry["kind"], entry["name"]) for entry in listed] == expected
    for entry in listed:
        assert f"  {entry['name']}" in text
        assert entry["summary"] in text
        assert "doc" not in entry
    found = {entry["name"]: entry for entry in listed}
    adam = {parameter["name"]: parameter["default"] for parameter in found["adam"]["parameters"]}
    assert adam["beta_1"] == 0.9
    assert found["scaffold-client"]["exchanges"]
    assert not found["adam"]["exchanges"]
    cosine = {parameter["name"]: parameter["default"] for parameter in found["cosine"]["parameters"]}
    assert cosine == {"base": 0.001, "by": "step", "duration": 1000, "final": 0.0}


def test_modules_shows_one_in_full(capsys):
    assert main(["modules", "adam"]) == 0
    text = capsys.readouterr().out
    assert "beta_1: float = 0.9" in text
    assert "scaffold" not in text
    assert main(["modules", "scaffold-client"]) == 0
    assert "Exchanges auxiliary variables." in capsys.readouterr().out
    assert main(["modules", "warmup"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("schedules\n  warmup  (")
    assert "Where the ramp comes from" in text
    assert main(["modules", "warmup", "--format", "json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert "Where the ramp comes from" in entry["doc"]


def test_modules_suggests_plug_ins_of_others_too(capsys, monkeypatch):
    from privopt import OptiModule, registry

    class Soft(OptiModule, register=False):
        name = "soft-thresholding"

    monkeypatch.setattr(registry.OPTI_MODULES, "_classes", {**registry.list_optim_modules(), Soft.name: Soft})
    assert main(["modules", "soft"]) == 2
    assert "Did you mean soft-thresholding?" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"got 'soft'. Did you mean 'soft-thresholding'\?"):
        registry.OPTI_MODULES.find("soft")


def test_modules_says_what_the_parameters_of_every_aggregator_are(capsys):
    from privopt import registry

    for name, cls in registry.list_aggregators().items():
        assert main(["modules", name]) == 0
        text = capsys.readouterr().out
        assert all(f"\n          {hyper.name}: " in text for hyper in cls._hyper), name


def test_modules_breaks_long_lines_between_parameters(capsys):
    assert main(["modules", "reduce-on-plateau"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 120
    assert "\n" + " " * 22 + "threshold: float = 0.0001," in text


def test_a_name_that_two_tables_have_is_shown_from_both(capsys, monkeypatch):
    from privopt.modules import Adam
    from privopt.registry import SCHEDULES

    monkeypatch.setattr(SCHEDULES, "_classes", {**SCHEDULES.table(), "adam": Adam})
    assert main(["modules", "adam", "--format", "json"]) == 0
    assert [entry["kind"] for entry in json.loads(capsys.readouterr().out)] == ["module", "schedule"]


def test_explain_names_every_field_of_the_vector_and_what_masks_hide(capsys):
    assert main(["explain", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["clients"], found["parameters"]) == (8, 650)
    names = {line["field"] for line in found["learned"]}
    assert {"update", "weight"} <= names
    assert any("scaffold" in name for name in names)
    assert main(["explain"]) == 0
    masked = capsys.readouterr().out
    assert "one masked vector a round" in masked
    assert all(name in masked for name in names)
    assert "from all 7 others of its round" in masked
    assert "two rounds whose clients differ by it alone" in masked
    for line in found["learned"]:
        if not line["field"].endswith((" (clipped)", " (peak)")):
            assert re.search(rf"{re.escape(line['colluders'])} +{re.escape(line['difference'])}", masked)
    assert main(["explain", "masks.enabled=false", "dp.enabled=false"]) == 0
    clear = capsys.readouterr().out
    assert "the server sees the vector of each of 8 clients" in clear
    assert "others of its round" not in clear
    assert "dp is off" in clear


def test_settings_may_stand_after_options(capsys):
    assert main(["explain", "--format", "json", "data.clients=6"]) == 0
    assert json.loads(capsys.readouterr().out)["clients"] == 6


def test_report_writes_the_page_again(capsys, tmp_path):
    folder = made_up_run.write(tmp_path / "run")
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").stat().st_size > 10_000
    assert "report.html" in capsys.readouterr().out


# --- what is printed --------------------------------------------------------------------------------------


def facts(**more):
    run = json.loads((made_up_run.write(Path("facts")) / "run.json").read_text())
    return {**run, "id": "the-id", "config": json.loads(Path("facts/config.json").read_text()), **more}


def line(number, **more):
    clients = {"clinic-0": {"status": "ok", "epsilon": 1.5, "steps": 5}}
    return {"round": number, "status": "ok", "accuracy": 0.5, "loss": 1.25, "clients": clients, **more}


def test_a_run_off_a_terminal_is_plain_lines(capsys):
    with Console() as console:
        console.started(facts())
        console.round_done(line(1))
        console.round_done(line(2, status="aborted", reason="clinic-3 was late", accuracy=None))
        console.twin_done({"accuracy": 0.95})
        console.finished(
            {"folder": "runs/x", "accuracy": 0.889, "epsilon": 7.94, "delta": 1e-3, "rounds": 20}
        )
    text = capsys.readouterr().out
    assert text.splitlines()[:3] == [
        "Federation  8 clients · digits (1,437 rows, Dirichlet α=1) · linear, 650 parameters",
        "Privacy     per sample, add-or-remove-one · ε ≤ 8, δ = 1e-3 for every client · Poisson q=0.2 · "
        "clip 0.5 · noise 1.18",
        "Masks       X25519 + AES-CTR, 16 bits a value, 2.7 bytes a value · the server learns 3 sums a round "
        "(privopt explain)",
    ]
    assert "round  1/20  accuracy  50.0 %  loss 1.250  ε 1.50" in text
    assert "round  2/20  aborted: clinic-3 was late" in text
    assert "accuracy 88.9 % · without privacy 95.0 % · ε spent 7.94 at δ = 1e-3" in text
    assert "\x1b" not in text


def test_the_heading_resolves_rates_and_a_bare_schedule_shows_its_defaults(capsys, tmp_path):
    small = ["data.name=breast_cancer", "data.clients=5", "rounds=1", "twin=false", f"out={tmp_path}"]
    rates = ["client.optimizer.lrate=cosine", "client.optimizer.w_decay=0.25", "server.optimizer.lrate=0.5"]
    piecewise = '["piecewise", {boundaries=[2, 4], factors=[0.5, 0.5]}]'
    groups = f'server.optimizer.groups=[{{match=".*bias", lrate={piecewise}, lrate_scale=2.0, w_decay=0.5}}]'
    assert main(["train", *small, *rates, groups]) == 0
    assert (
        "Rates       clients cosine(base=0.001, by=step, duration=1000, final=0), decay 0.25 · server 0.5, "
        "'.*bias' piecewise(base=0.001, by=step, boundaries=[2, 4], factors=[0.5, 0.5], values=[]), "
        "'.*bias' times 2, '.*bias' decay 0.5\n"
    ) in capsys.readouterr().out
    assert main(["train", *small, *rates, "--format", "json"]) == 0
    cosine = ["cosine", {"base": 0.001, "by": "step", "duration": 1000, "final": 0.0}]
    assert json.loads(capsys.readouterr().out)["rates"] == {
        "client": {"lrate": cosine, "w_decay": 0.25, "groups": []},
        "server": {"lrate": 0.5, "w_decay": 0.0, "groups": []},
    }


def test_a_run_with_json_prints_its_outcome_alone(capsys):
    with Console(as_json=True) as console:
        console.started(facts(dp=None, masks=None))
        console.round_done(line(1))
        console.finished({"folder": "runs/x", "accuracy": None})
    assert json.loads(capsys.readouterr().out) == {"folder": "runs/x", "accuracy": None}


def test_a_run_on_a_terminal_has_a_bar_and_ends_it():
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    with Console(out=out) as console:
        console.started(facts(dp=None, masks=None))
        console.round_done(line(1, clients={"a": {"status": "stopped", "epsilon": None}}))
        assert console._bar is not None
    assert console._bar is None
    assert "off: the server sees every client's vector" in out.getvalue()
    assert "out of budget: a" in out.getvalue()


def test_tables_and_numbers_read_well():
    assert table(("a", "n"), [("x", "1"), ("long", "100")], numeric=(1,)).splitlines() == [
        "a       n",
        "x       1",
        "long  100",
    ]
    assert [small(v) for v in (1e-3, 1e-5, 0.00123, 2.5e-7, 0.0, 0.05, 8.0)] == [
        "1e-3", "1e-5", "1.23e-3", "2.5e-7", "0", "0.05", "8",
    ]  # fmt: skip
    assert percent(None) == "–"
