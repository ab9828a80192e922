"""``privopt plan``: figures that keep to the budget, other samplers' prices, a drawing, exit codes."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

import dp
from dp.events import Gaussian, Poisson, Repeated
from privopt.cli import main

PLAN = ["plan", "--samples", "2000", "--epsilon", "3", "--batch", "200", "--epochs", "4"]


def planned(capsys: pytest.CaptureFixture[str], *more: str) -> Any:
    assert main([*PLAN, *more, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_plan_keeps_to_its_budget_with_hardly_any_room(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys)
    assert (plan["num_steps"], plan["sample_rate"], plan["delta"]) == (40, 0.1, 1e-5)
    step = Poisson(0.1, Gaussian(plan["noise_multiplier"]))
    assert plan["epsilon"]["PLD"] == dp.epsilon(Repeated(step, 40), 1e-5) <= 3
    assert plan["epsilon"]["PLD"] > 2.9
    assert plan["epsilon"]["RDP"] > plan["epsilon"]["PLD"]
    assert abs(plan["epsilon"]["PRV"] - plan["epsilon"]["PLD"]) < 0.01 * 3 + 0.011
    # Delta is the user's where it is given, and a smaller one needs more noise.
    smaller = planned(capsys, "--delta", "1e-8")
    assert smaller["delta"] == 1e-8
    assert smaller["noise_multiplier"] > plan["noise_multiplier"]


def test_shuffled_batches_cost_one_release_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys)
    others = {other["sampler"]: other for other in plan["others"]}
    noise = Gaussian(plan["noise_multiplier"])
    assert others["shuffled"]["epsilon"] == dp.epsilon(Repeated(noise, 4), 1e-5)
    needed = Gaussian(others["shuffled"]["noise_multiplier"])
    assert dp.epsilon(Repeated(needed, 4), 1e-5) <= 3 < others["shuffled"]["epsilon"]
    assert plan["epsilon"]["PLD"] <= others["truncated Poisson"]["epsilon"] < others["shuffled"]["epsilon"]
    assert others["fixed size"]["epsilon"] > plan["epsilon"]["RDP"]


def test_the_text_and_the_drawing_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys)
    path = tmp_path / "plan.svg"
    assert main([*PLAN, "--plot", str(path)]) == 0
    text = capsys.readouterr().out
    for said in (f"{plan['noise_multiplier']:.3f}", "PLD", "RDP", "PRV", "shuffled", "fixed size", str(path)):
        assert said in text
    drawing = ElementTree.parse(path).getroot()
    charts = [element for element in drawing if element.tag.endswith("svg")]
    assert [chart.get("aria-label") for chart in charts] == ["ε against noise", "ε against steps"]
    told = [title.text or "" for title in drawing.iter() if title.tag.endswith("title")]
    at_plan = [float(text.split(": ")[1]) for text in told if ", % 100:" in text]
    assert at_plan == [pytest.approx(plan["epsilon"]["PLD"], rel=0.01)] * 2


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (["--batch", "2001"], 2, "--batch"),
        (["--samples", "0"], 2, "--samples"),
        (["--epochs", "0"], 2, "--epochs"),
        (["--epsilon", "-1"], 4, "epsilon=-1"),
        (["--delta", "0.1"], 4, "delta=0.1"),
        (["--plot", "/nowhere/at/all.svg"], 7, "nowhere"),
    ],
)
def test_what_cannot_be_planned_has_its_exit_code(
    change: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*PLAN, *change]) == code
    assert said in capsys.readouterr().err


def test_help_teaches_by_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    said = capsys.readouterr().out
    assert "--epsilon 3 --batch 4096 --epochs 30" in said
    assert "jq" in said
