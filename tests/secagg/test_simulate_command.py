"""The command `python -m secagg.simulate`, its curves and its chart."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from secagg import Policy
from secagg.simulate import __main__ as command
from secagg.simulate import outcome
from secagg.simulate.chart import Line, page, panel
from secagg.simulate.curves import COSTS, draw, fit, measure
from secagg.simulate.outcome import PROTECTS_NOBODY

SMALL = ["--clients", "12", "--entries", "5"]


def test_it_prints_what_was_summed_and_whom_it_protects(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(SMALL) == 0
    out, err = capsys.readouterr()
    assert out.startswith("exact sum    11 of 12 clients, 5 entries in 5 words; lost: 1 at advert\n")
    assert out.endswith(PROTECTS_NOBODY + "\n")
    assert err == ""  # progress is for terminals


def test_it_says_that_it_assumes_fewer_colluders_than_a_policy_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    usual = Policy().colluders
    command.main(SMALL)
    assert f"\nassumed      5% colluders; Policy's default is {usual:.0%}, " in capsys.readouterr().out
    command.main([*SMALL, "--colluders", str(usual)])
    assert "assumed" not in capsys.readouterr().out
    assert re.search(rf"Policy and\s+secagg.plan\s+assume\s+{usual},", command._options().format_help())


def test_json_holds_every_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([*SMALL, "--dropout", "0.2", "--lost-at", "unmask", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["correct"], found["clients"], found["survivors"], found["degree"]) == (True, 12, 12, 0)
    assert found["lost"] == {"advert": 0, "shares": 0, "vector": 0, "consistency": 0, "unmask": 2}
    assert found["warning"] == PROTECTS_NOBODY
    assert found["computed"] == outcome.COMPUTED["machines"]
    stages = {"advert", "shares", "delivery", "vector", "consistency", "unmask"}
    assert set(found["client"]["seconds"]) == stages


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--clients", "4"], 2, "clients=4"),
        (["--bits", "1"], 2, "bits"),
        (["--degree", "4"], 2, "threshold together"),
        (["--clients", "20", "--degree", "10", "--threshold", "8"], 2, "degree=10: up to 32 everybody"),
        (["--degree", "20", "--threshold", "9"], 3, "threshold=9. Give 11"),
        (["--clients", "20", "--degree", "0", "--threshold", "10"], 3, "threshold=10. Give 11"),
        (["--clients", "150", "--degree", "4", "--threshold", "3"], 3, "graph"),
        (["--clients", "20", "--dropout", "0.7"], 3, "Lower colluders=0.05 or dropout=0.7"),
        (["--clients", "20", "--degree", "0", "--threshold", "18", "--dropout", "0.3"], 4, "after"),
        (["--plot", "/nonexistent/cost.svg"], 5, "/nonexistent/cost.svg"),
    ],
)
def test_what_cannot_be_done_has_a_code_and_a_reason(
    arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("secagg.simulate: ")
    assert says in err
    assert code in command.EXIT_CODES


def test_an_unknown_argument_is_refused_in_one_paragraph(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["--lost-at", "lunch"])
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--plot", "cost.pdf"], "ends in .svg, got cost.pdf"),
        (["--plot", "cost.svg", "--clients", "50", "--lost-at", "vector"], "also --clients, --lost-at"),
    ],
)
def test_a_chart_refuses_what_it_would_not_show(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert says in capsys.readouterr().err


def test_a_wrong_sum_has_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("secagg.simulate.parties.np.array_equal", lambda a, b: False)
    assert command.main(SMALL) == 1
    assert capsys.readouterr().out.startswith("WRONG SUM")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        command.main(["--help"])
    text = capsys.readouterr().out
    assert PROTECTS_NOBODY in text
    assert all(f"{code}  {meaning}" in text for code, meaning in command.EXIT_CODES.items())
    # Every example is a command that parses.
    examples = re.findall(r"^  python -m secagg\.simulate(.*?)(?:   |\||$)", text, re.MULTILINE)
    assert len(examples) >= 6
    for example in examples:
        command._options().parse_args(example.split())


def test_it_runs_as_a_module_with_workers() -> None:
    arguments = ["--clients", "160", "--entries", "5", "--colluders", "0.01", "--processes", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "secagg.simulate", *arguments, "--no-estimate"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("exact sum    150 of 160 clients")
    assert outcome.COMPUTED["segments"] in done.stdout
    assert done.stderr == ""


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    line = f"{sys.executable} -m secagg.simulate {' '.join(SMALL)} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stderr == ""


# --- curves -----------------------------------------------------------------------------------------------


def test_a_power_law_is_found_exactly() -> None:
    assert fit([1, 10, 100], [5, 5 * 10**1.5, 5 * 10**3]) == (pytest.approx(1.5), pytest.approx(0, abs=1e-9))


def test_slope_and_standard_error_are_those_of_least_squares() -> None:
    random = np.random.default_rng(8)
    x = [3.0, 7.0, 20.0, 55.0, 300.0]
    y = [2 * a**1.2 * float(np.exp(random.normal(0, 0.2))) for a in x]
    slope, error = fit(x, y)
    known = stats.linregress(np.log(x), np.log(y))
    assert (slope, error) == (pytest.approx(known.slope), pytest.approx(known.stderr))


def test_measured_bytes_grow_as_the_protocol_says() -> None:
    curves = measure(0.1, clients=(8, 16, 32), entries=(20_000, 80_000))
    assert [p.clients for p in curves.by_clients] == [8, 16, 32]
    assert [p.entries for p in curves.by_entries] == [20_000, 80_000]
    power = {(e.cost, e.of): e.value for e in curves.exponents}
    assert set(power) == {(cost, of) for cost in COSTS for of in ("clients", "entries")}
    # Every client gets every advert; a vector's words are most of what it sends.
    assert 1.7 < power["server_bytes", "clients"] <= 2
    assert 0.7 < power["client_bytes", "entries"] < 1
    assert "grow as clients to the power" in str(curves)
    assert json.loads(json.dumps(curves.to_dict()))["warning"] == PROTECTS_NOBODY
    ET.fromstring(draw(curves))


def test_a_chart_is_one_well_formed_file_with_every_point_inside() -> None:
    lines = [Line("a < b", [(1.0, 0.002), (1000.0, 50.0)]), Line("c", [(10.0, 1.0)])]
    text = page("both", [panel("one & two", lines, "x", "y"), panel("again", lines, "x", "y")])
    root = ET.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    circles = list(root.iter(f"{space}circle"))
    assert len(circles) == 6
    for circle in circles:
        assert 0 < float(circle.attrib["cx"]) < 560
        assert 0 < float(circle.attrib["cy"]) < 340
    xs = [float(circle.attrib["cx"]) for circle in circles[:3]]
    assert xs[2] - xs[0] == pytest.approx(
        (xs[1] - xs[0]) / 3, abs=0.2
    )  # 10 between 1 and 1000, in logarithms
    texts = [element.text for element in root.iter(f"{space}text")]
    assert {"one & two", "a < b", "1", "10", "100", "1,000", "0.01"} <= set(texts)
    assert "prefers-color-scheme:dark" in text


def test_values_that_have_no_logarithm_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        panel("t", [Line("a", [(1.0, 0.0)])], "x", "y")


def test_the_plot_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("secagg.simulate.curves.CLIENTS", (8, 12))
    monkeypatch.setattr(
        "secagg.simulate.curves.measure", lambda *_, **__: measure(0.1, clients=(8, 12), entries=(10, 40))
    )
    assert command.main(["--plot", str(tmp_path / "cost.svg"), "--format", "json"]) == 0
    ET.parse(tmp_path / "cost.svg")
    found = json.loads(capsys.readouterr().out)
    assert len(found["exponents"]) == 8
    assert all(math.isfinite(e["value"]) for e in found["exponents"])
