"""Benchmarks measure what they say: their arithmetic, their command line, and that both sides do the same."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import curves, families, harness, learning, memory, optimizer, peers, problems
from privopt import Optimizer

SHAPES: list[problems.Shape] = [(3, 4), (5,), ()]


class Clock:
    """A clock that only what is measured moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(harness.time, "perf_counter", lambda: self.now)

    def side(self, *durations: float) -> Any:
        """A function that takes these times in turn, then the last one for good."""
        left = list(durations)

        def run() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


# ---- arithmetic -------------------------------------------------------------------------------------------


def test_a_comparison_is_of_medians_and_of_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    # Two calls warm up; of the five that count one is an outlier.
    ours = clock.side(9.0, 9.0, 3.0, 1.0, 2.0, 50.0, 2.0)
    case = harness.compare("c", ours, clock.side(4.0), "other", runs=5, seconds=0, bar=0.5)
    assert (case.ours, case.ours_min, case.baseline, case.baseline_min) == (2.0, 1.0, 4.0, 4.0)
    assert (case.ratio, case.ratio_min, case.runs) == (0.5, 0.25, 5)
    assert "met" in str(case)


def test_what_is_too_short_for_the_clock_is_called_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(monkeypatch), []
    short = clock.side(0.0001)
    case = harness.compare(
        "c", lambda: (calls.append(1), short()), clock.side(0.01), "other", runs=3, seconds=0
    )
    assert len(calls) == 2 + 3 * 10
    assert case.ours == pytest.approx(0.0001)


def test_the_two_sides_take_turns_in_being_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = Clock(monkeypatch), []
    tick = clock.side(1.0)
    harness.compare(
        "c", lambda: (order.append("a"), tick()), lambda: (order.append("b"), tick()), "b", runs=4
    )
    assert "".join(order) == "aabb" + "abbaabba"


def test_a_case_runs_for_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    case = harness.compare("c", clock.side(1.0), clock.side(1.0), "other", runs=2, seconds=20.0)
    assert case.runs == 10


def test_a_limit_stands_in_for_a_baseline() -> None:
    case = harness.against_limit("c", [12.0, 20.0, 8.0], 16.0, "MB")
    assert (case.ours, case.ours_min, case.ratio, case.unit) == (12.0, 8.0, 0.75, "MB")
    assert case.ratio <= (case.bar or 0)
    assert "MISSED" in str(harness.against_limit("c", [17.0], 16.0, "MB"))


def test_the_exponent_of_a_power_law_is_its_power() -> None:
    assert optimizer._exponent({n: 3.0 * n**1.25 for n in (10, 1000, 10**6)}) == pytest.approx(1.25)


def test_resnet_18_has_its_62_tensors() -> None:
    shapes = problems.SHAPES["ResNet-18"]
    assert len(shapes) == 62
    assert sum(map(math.prod, shapes)) == 11_689_512  # as torchvision states for 1,000 classes


def test_the_peak_of_a_step_is_what_it_takes_for_a_moment() -> None:
    assert memory.peak(lambda: None) < 8
    assert 60 < memory.peak(lambda: np.ones(8_000_000)) < 80


# ---- both sides do the same -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [peers.Flat, peers.Packed, peers.Bound])
def test_ours_steps_as_torch_does(kind: type[peers.Flat]) -> None:
    start = problems.tensors(SHAPES, 0.05, 0)
    problems.agree(kind(start, peers.adam_chain()), peers.TorchFused(start), SHAPES)


def test_ours_steps_as_the_hand_written_scaffold_does() -> None:
    start, control, server = (problems.tensors(SHAPES, 0.05, seed) for seed in (0, 7, 8))
    ours = peers.Flat(start, peers.scaffold_chain(control, server))
    problems.agree(ours, peers.TorchForeach(start, control, server), SHAPES)


@pytest.mark.parametrize("kind", [peers.Optax, peers.Torchzero, peers.Declearn])
def test_ours_steps_as_each_peer_does(kind: Any) -> None:
    pytest.importorskip({"optax jit": "optax"}.get(kind.name, kind.name))
    shapes = [shape or (1,) for shape in SHAPES]  # declearn gives 0-d tensors an axis
    start = problems.tensors(shapes, 0.05, 0)
    eps = getattr(kind, "eps", peers.EPS)
    problems.agree(peers.Flat(start, peers.adam_chain(eps)), kind(start), shapes)


def test_ours_on_jax_steps_as_optax_does() -> None:
    start = problems.tensors(SHAPES, 0.05, 0)
    problems.agree(peers.FlatJax(start, peers.adam_chain()), peers.Optax(start), SHAPES)


def test_sides_that_differ_are_found_out() -> None:
    start = problems.tensors(SHAPES, 0.05, 0)

    class Slower(peers.TorchFused):
        def step(self) -> None:
            super().step()
            with torch.no_grad():
                self.params["t0001"].mul_(1.001)

    with pytest.raises(harness.Disagreement, match="t0001"):
        problems.agree(peers.Flat(start, peers.adam_chain()), Slower(start), SHAPES)


def test_backward_writes_bound_gradients_into_the_flat_buffer() -> None:
    start, gradients = problems.tensors(SHAPES, 0.05, 0), problems.tensors(SHAPES, 0.1, 1)
    side = peers.Bound(start, peers.adam_chain())
    side.load(gradients)
    for name, view in side.grads.coefs.items():
        np.testing.assert_array_equal(view.numpy(), gradients[name])


# ---- learning curves --------------------------------------------------------------------------------------


class Bowl(learning.Problem):
    """Half a square, from 1, without noise."""

    title = "Bowl <of one weight>"
    measures = "loss"
    steps = 25

    def start(self) -> dict[str, learning.Array]:
        return {"x": np.ones(1)}

    def gradient(self, weights: learning.Weights, rng: np.random.Generator) -> dict[str, learning.Array]:
        return {"x": weights["x"]}

    def loss(self, weights: learning.Weights) -> float:
        return float(0.5 * weights["x"][0] ** 2)


def test_every_built_in_plug_in_has_a_curve() -> None:
    """Add a new one to a family of `benchmarks.families`, or to WITHOUT_A_CURVE with the reason."""
    assert families.not_shown() == []


def test_a_curve_is_the_loss_after_each_step() -> None:
    points = learning.learn(Bowl(), Optimizer(0.1), lambda weights: weights)
    assert points == [(k, pytest.approx(0.5 * 0.9 ** (2 * k))) for k in range(26)]


def test_a_curve_that_leaves_for_infinity_ends_there() -> None:
    points = learning.learn(Bowl(), Optimizer(3.0), lambda weights: weights)
    assert points[-1] == (5.0, math.inf)  # (1 - 3)^(2 * 5) = 1024
    assert learning.score(points) == math.inf


def test_the_best_rate_may_lie_beside_the_grid() -> None:
    tried = []

    def run(rate: float) -> list[tuple[float, float]]:
        tried.append(rate)
        return [(0.0, 1.0), (1.0, (math.log(rate) - math.log(0.3)) ** 2)]

    assert learning.best_curve(run, (0.01, 0.1, 1.0)).lrate == pytest.approx(0.3)
    assert tried == [0.01, 0.1, 1.0, pytest.approx(0.1 / 3), pytest.approx(0.3)]
    assert learning.best_curve(run, (0.01, 0.1, 1.0), refine=False).lrate == 0.1


def test_digits_gradients_are_those_of_the_loss() -> None:
    problem = learning.Digits()
    model = {n: torch.from_numpy(a).requires_grad_() for n, a in problem.start().items()}
    rows = np.random.default_rng(3).integers(0, len(problem.y), problem.batch)
    hidden = torch.relu(torch.from_numpy(problem.x[rows]) @ model["hidden.weight"].T + model["hidden.bias"])
    logits = hidden @ model["out.weight"].T + model["out.bias"]
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(problem.y[rows])).backward()
    found = problem.gradient(problem.start(), np.random.default_rng(3))
    for name, tensor in model.items():
        assert tensor.grad is not None
        np.testing.assert_allclose(found[name], tensor.grad.numpy(), atol=1e-12)


def test_figures_stand_alone_and_are_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(curves.PROBLEMS, "bowl", Bowl)
    methods = families.FAMILIES["momentum"].methods
    drawn = [curves.figure(curves.show(families.Family("A & B", ["bowl"], methods))) for _ in range(2)]
    assert drawn[0] == drawn[1]
    root = ElementTree.fromstring(drawn[0])
    assert root.findtext("{http://www.w3.org/2000/svg}title") == "A & B"
    for said in ("--s0:", "prefers-color-scheme: dark", ".series path", "step 25:"):
        assert said in drawn[0], said


def test_a_table_takes_the_place_of_the_last_one() -> None:
    page = "a\n<!-- table: x -->\nold\n<!-- end -->\nb\n<!-- table: y -->\n<!-- end -->\n"
    written = curves.with_table(curves.with_table(page, "x", "|1|"), "y", "|2|")
    x, y = ("<!-- table: x -->\n\n|1|\n\n<!-- end -->", "<!-- table: y -->\n\n|2|\n\n<!-- end -->")
    assert written == f"a\n{x}\nb\n{y}\n"
    assert curves.with_table(written, "x", "|1|") == written
    with pytest.raises(ValueError, match="<!-- table: z -->"):
        curves.with_table(page, "z", "|3|")


def test_the_page_shows_every_family() -> None:
    docs = Path(__file__).parents[1] / "docs"
    page = (docs / "learning-curves.md").read_text("utf-8")
    for name in [*families.FAMILIES, "federated"]:
        assert f"](assets/curves/{name}.svg)" in page
        assert (docs / "assets" / "curves" / f"{name}.svg").exists()
        assert f"<!-- table: {name} -->\n\n| method |" in page


# ---- the command line -------------------------------------------------------------------------------------


def test_cases_are_listed_and_chosen_by_a_part_of_their_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["optimizer", "--list", "--only", "Gradients FLAT"]) == 0
    names = capsys.readouterr().out.splitlines()
    # `memory of a step` has the same words.
    assert [n for n in names if n.startswith("adam")] == [
        f"adam chain, {size}, gradients flat" for size in ("1x10M", "ResNet-18", "200x5k")
    ]


@pytest.mark.parametrize("subject", sorted(command.SUBJECTS))
def test_every_subject_names_its_cases_without_measuring(
    subject: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([subject, "--list"]) == 0
    names = capsys.readouterr().out.splitlines()
    assert names
    assert len(names) == len(set(names))


def test_no_case_of_that_name_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["masking", "--only", "no such case"]) == 1
    assert "--list" in capsys.readouterr().err


def measured_in(monkeypatch: pytest.MonkeyPatch, *benchmarks: harness.Benchmark) -> None:
    module = importlib.import_module("benchmarks.masking")
    monkeypatch.setattr(module, "cases", lambda: iter(benchmarks))


def test_a_case_is_one_json_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = harness.against_limit("c", [1.0], 2.0, "MB")
    measured_in(monkeypatch, harness.Benchmark("c", lambda: case))
    assert command.main(["masking", "--json"]) == 0
    told: Mapping[str, Any] = json.loads(capsys.readouterr().out)
    assert told["ratio"] == 0.5
    assert {"case", "ours", "baseline", "baseline_name", "ratio"} <= set(told)


def test_sides_that_disagree_are_told_and_fail_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = harness.against_limit("fine", [1.0], 2.0, "MB")

    def differ() -> harness.Case:
        raise harness.Disagreement("t0001: 3 apart")

    measured_in(monkeypatch, harness.Benchmark("off", differ), harness.Benchmark("fine", lambda: case))
    assert command.main(["masking"]) == 1
    told = capsys.readouterr()
    assert told.out.startswith("fine")
    assert "off: the two sides disagree: t0001: 3 apart" in told.err


def test_a_missing_peer_is_told_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torchzero", None)
    start = problems.tensors(SHAPES, 0.05, 0)

    def without() -> harness.Case:
        peers.Torchzero(start)
        raise AssertionError("torchzero was imported")

    case = harness.against_limit("there", [1.0], 2.0, "MB")
    measured_in(monkeypatch, harness.Benchmark("gone", without), harness.Benchmark("there", lambda: case))
    assert command.main(["masking"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("there")
    assert "gone: not measured" in told.err
    assert "pip install 'privopt[bench]'" in told.err


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_no_time_to_measure_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(["optimizer", f"--seconds={seconds}"])
    assert stopped.value.code == 2
    assert f"--seconds > 0 and finite, got {seconds}" in capsys.readouterr().err
