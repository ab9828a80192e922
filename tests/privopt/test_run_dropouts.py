"""A run in which clients vanish: what its folder, the console, the report and the audit say of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import dp
import secagg
from privopt.cli import main
from privopt.federation import Dropouts
from privopt.federation.parts import Parts
from privopt.federation.run import train
from privopt.federation.settings import STAGES
from privopt.report.audit import audit_run
from privopt.report.folder import read_run
from privopt.report.page import render
from privopt.setup.config import Config, MasksConfigError, load
from privopt.setup.survival import DropoutWarning

ROUNDS, CLIENTS, SHARE, SEED = 6, 8, 0.3, 3
SMALL = ["data.name=breast_cancer", f"rounds={ROUNDS}", "client.effort.steps=2", "twin=false", f"seed={SEED}"]


def config(*overrides: str) -> Config:
    return load(None, [*SMALL, f"data.clients={CLIENTS}", f"dropout={SHARE}", *overrides])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def gone(folder: Path) -> list[dict[str, tuple[str, bool]]]:
    return [
        {n: (c["dropped"], c["late"]) for n, c in line["clients"].items() if c["dropped"]}
        for line in lines(folder)
    ]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run, and what it printed."""
    from privopt.cli.console import Console

    folder = tmp_path_factory.mktemp("dropouts")
    with (folder / "printed").open("w") as out, Console(out=out) as console:
        train(config(), folder=folder / "run", observer=console)
    return folder / "run", (folder / "printed").read_text()


@pytest.fixture
def run(told: tuple[Path, str], tmp_path: Path) -> Path:
    return shutil.copytree(told[0], tmp_path / "run")


def test_two_of_eight_vanish_in_each_round_as_drawn_and_no_round_fails(run: Path) -> None:
    names = [f"clinic-{i}" for i in range(CLIENTS)]
    drawn = [Dropouts(SHARE, SEED).draw(number, names) for number in range(1, ROUNDS + 1)]
    assert gone(run) == [{n: (d.stage, d.late) for n, d in each.items()} for each in drawn]
    assert all(len(each) == 2 for each in drawn)
    assert len({d.stage for each in drawn for d in each.values()}) == 5, "every stage is met"
    for line, each in zip(lines(run), drawn, strict=True):
        assert line["status"] == "ok"
        for name, client in line["clients"].items():
            assert client["status"] == ("dropped" if name in each and not each[name].counts else "ok")


def test_the_audit_passes_and_prices_what_each_client_trained(run: Path) -> None:
    audit = audit_run(run)
    assert audit.faults == []
    plan = json.loads((run / "run.json").read_text())["dp"]
    names = [f"clinic-{i}" for i in range(CLIENTS)]
    drawn = [Dropouts(SHARE, SEED).draw(number, names) for number in range(1, ROUNDS + 1)]
    event = dp.events.Poisson(plan["sample_rate"], dp.events.Gaussian(plan["noise_multiplier"]))
    for one in audit.clients:
        away = sum(
            name == one.client and (d.stage, d.late) == ("advert", False)
            for e in drawn
            for name, d in e.items()
        )
        assert one.events == 2 * (ROUNDS - away)
        expected = dp.epsilon(dp.events.Repeated(event, one.events), plan["delta"])
        assert one.epsilon["PLD"] == pytest.approx(expected, rel=1e-6)
    assert len({one.events for one in audit.clients}) > 1, "somebody was away before it trained"


def test_the_console_says_who_was_gone_at_which_stage(told: tuple[Path, str]) -> None:
    printed = told[1].splitlines()
    assert printed[0].endswith(" · 30 % vanish from each round")
    rounds = [line for line in printed if line.startswith("round ")]
    for line, each in zip(rounds, gone(told[0]), strict=True):
        left = sum(stage not in ("consistency", "unmask") for stage, _ in each.values())
        said = ", ".join(f"{n} at {stage}{' (late)' if late else ''}" for n, (stage, late) in each.items())
        assert line.endswith(f"  {CLIENTS - left} of 8 in the sum, gone: {said}")


def test_the_report_draws_survivors_and_counts_each_clients_dropouts(run: Path) -> None:
    page = render(read_run(run))
    assert "Clients in the sum by round" in page
    assert f"{2 * ROUNDS} dropouts in {ROUNDS} rounds" in page
    came_late = 0
    for name in (f"clinic-{i}" for i in range(CLIENTS)):
        at = [each[name] for each in gone(run) if name in each]
        late = sum(late for _, late in at)
        counts = [*([stage for stage, _ in at].count(stage) for stage in STAGES), late]
        row = "".join(f'<td class="n">{count or "–"}</td>' for count in counts)
        cells = [
            line.split(f"<td>{name}</td>")[1] for line in page.split("<tr>") if f"<td>{name}</td>" in line
        ]
        assert any(cell.partition("</tr>")[0].endswith(row) for cell in cells), name
        came_late += late
    assert came_late > 0, "or the last column would show nothing"
    clean = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    for client in clean["clients"].values():
        client.update(dropped=None, late=False, status="ok")
    (run / "metrics.jsonl").write_text(json.dumps(clean) + "\n")
    assert "Clients in the sum by round" not in render(read_run(run)), "no section where nobody vanished"


def test_the_same_seed_lets_the_same_clients_vanish_and_resumption_does_not_change_it(tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    class Stopping:
        def __getattr__(self, name: str) -> Any:
            return lambda told: None

        def round_done(self, line: dict[str, Any]) -> None:
            if line["round"] == 3:
                raise StopError

    from privopt.federation.run import resume

    settings = ("dp.enabled=false", "masks.bits=20")
    train(config(*settings), folder=tmp_path / "whole")
    with pytest.raises(StopError):
        train(config(*settings), folder=tmp_path / "stopped", observer=Stopping())
    resume(tmp_path / "stopped")
    assert gone(tmp_path / "whole") == gone(tmp_path / "stopped")
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert one == other


@pytest.mark.parametrize(
    ("client", "change", "says"),
    [
        ("counted", {"dropped": "shares"}, "counts '{}', which was gone at shares"),
        ("left out", {"dropped": None}, "leaves '{}' out, which was gone at None"),
        ("left out", {"dropped": "unmask"}, "leaves '{}' out, which was gone at unmask"),
        (
            "left out",
            {"dropped": None, "status": "ok"},
            "counts '{}', which config.json's dropout takes out at",
        ),
    ],
)
def test_dropouts_that_do_not_hold_are_found_by_the_audit(
    run: Path, client: str, change: dict[str, Any], says: str
) -> None:
    changed = lines(run)
    number = next(
        i for i, line in enumerate(changed) if any(c["status"] != "ok" for c in line["clients"].values())
    )
    out = [n for n, c in changed[number]["clients"].items() if c["status"] == "dropped"]
    whole = [n for n, c in changed[number]["clients"].items() if c["dropped"] is None]
    name = (out if client == "left out" else whole)[0]
    changed[number]["clients"][name].update(change)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))
    faults = [fault.what for fault in audit_run(run).faults if fault.client is None]
    assert any(says.format(name) in what for what in faults), faults


def test_rounds_that_too_few_survive_fail_with_the_reason_and_the_run_says_so(tmp_path: Path) -> None:
    from privopt.cli.console import Console

    folder = tmp_path / "run"
    with (
        pytest.warns(DropoutWarning, match=r"4 of 8 .*about 87 % of the rounds .*2 can be spared .*=0\.25"),
        pytest.raises(secagg.RoundAborted, match=r"got 6 aborted: .*Missing: .*Nothing was trained"),
        (tmp_path / "printed").open("w") as out,
        Console(out=out) as console,
    ):
        train(config("dropout=0.5", "dp.enabled=false"), folder=folder, observer=console)
    found = lines(folder)
    assert {line["status"] for line in found} == {"aborted"}
    assert {c["status"] for line in found for c in line["clients"].values()} == {"aborted", "dropped"}
    assert not (folder / "model.safetensors").exists()
    names, printed, page = [f"clinic-{i}" for i in range(CLIENTS)], (tmp_path / "printed").read_text(), ""
    page = (folder / "report.html").read_text()
    for number, at in enumerate(gone(folder), start=1):
        drawn = Dropouts(0.5, SEED).draw(number, names)
        last = max(STAGES.index(stage) for stage, _ in at.values())
        # Whoever was to vanish at a stage that the round did not reach is still there.
        assert at == {n: (d.stage, d.late) for n, d in drawn.items() if STAGES.index(d.stage) <= last}
        told = ", ".join(f"{n} at {stage}{' (late)' * late}" for n, (stage, late) in at.items())
        assert f"round {number}/6  aborted: " in printed
        assert f"  gone: {told}\n" in printed
        assert f"<td>{told}</td></tr>" in page
    assert audit_run(folder).faults == []


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["dropout=0.75"],
            r"got dropout = 0.75: 6 of 8 vanish .* 2 can be spared at any stage: dropout=0.25",
        ),
        (
            ["dropout=0.5", "data.clients=5"],
            r"2 of 5 vanish .*none can be spared. Ask more clients, or lower",
        ),
        (["dropout=0.5", "server.selection={how='uniform', clients=6}"], r"3 of 6 vanish"),
        (["dropout=0.4", "masks.min_clients=8"], r"3 of 8 vanish .*none can be spared"),
    ],
)
def test_a_dropout_that_no_round_can_outlast_is_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(MasksConfigError, match=says):
        config(*overrides)
    assert config(*overrides, "masks.enabled=false").dropout > 0, "in clear one vector is enough"


def test_a_dropout_that_some_rounds_do_not_outlast_is_told_once_before_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", f"out={tmp_path}", *SMALL, "dp.enabled=false", "rounds=1", "dropout=0.375"]
    assert main(command) in (0, 5)
    said = capsys.readouterr().err
    assert said.count("dropout = 0.375 takes 3 of 8 clients from each round") == 1
    assert "about 51 % of the rounds will be aborted" in said
    assert main(["train", f"out={tmp_path}", *SMALL, "dp.enabled=false", "rounds=1", "dropout=0.3"]) == 0
    assert "dropout" not in capsys.readouterr().err


def test_in_clear_who_vanishes_before_its_vector_is_left_out_too(tmp_path: Path) -> None:
    train(config("masks.enabled=false", "dp.enabled=false"), folder=tmp_path / "run")
    names = [f"clinic-{i}" for i in range(CLIENTS)]
    for number, line in enumerate(lines(tmp_path / "run"), start=1):
        drawn = Dropouts(SHARE, SEED).draw(number, names)
        left = {n: ("values", d.late) for n, d in drawn.items() if not d.counts}
        assert {
            n: (c["dropped"], c["late"]) for n, c in line["clients"].items() if c["status"] != "ok"
        } == left
    assert audit_run(tmp_path / "run").faults == []


# ---- what a configuration may insist on --------------------------------------------------------------------


def test_threshold_colluders_and_hybrid_keys_reach_the_policy_and_a_round(tmp_path: Path) -> None:
    wanted = config(
        "masks.threshold=0.8", "masks.colluders=3", "masks.hybrid=true", "rounds=1", "dropout=0.1"
    )
    policy = Parts(wanted).masks()
    assert policy == secagg.Policy(threshold_fraction=0.8, colluders=3, hybrid=True)
    assert Parts(config()).masks() == secagg.Policy()
    train(wanted, folder=tmp_path / "run")
    plain = config("rounds=1", "dropout=0.1")
    train(plain, folder=tmp_path / "plain")
    hybrid, classic = (lines(tmp_path / name)[0]["bytes_up"] for name in ("run", "plain"))
    assert hybrid > classic + CLIENTS * 2 * 1184, "each advert carries two keys of ML-KEM-768"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["masks.threshold=0.5"], r"a share in \(0.5, 1\], got masks.threshold = 0.5"),
        (["masks.threshold=1.5"], r"got masks.threshold = 1.5"),
        (["masks.colluders=-1"], r"got masks.colluders = -1"),
        (["masks.colluders=1.5"], r"a share below 1, or a number of clients, got masks.colluders = 1.5"),
        (["masks.colluders=4"], r"colluders that 6 of 8 clients can do without, got masks.colluders = 4"),
        (["masks.threshold=0.55"], r"colluders that 5 of 8 .*got masks.colluders = 2"),
        (["masks.threshold=1", "masks.colluders=7"], r"got masks.colluders = 7"),
    ],
)
def test_limits_under_which_no_round_could_succeed_are_refused(overrides: list[str], says: str) -> None:
    more = ["masks.colluders=2"] if overrides == ["masks.threshold=0.55"] else []
    with pytest.raises(MasksConfigError, match=says):
        config(*overrides, *more)


def test_a_dropout_that_is_no_share_is_told_with_its_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "dropout=1.0"]) == 2
    assert "Expected a dropout in [0, 1), got dropout = 1. It is the share" in capsys.readouterr().err
