"""A round without DP is the same whenever it is done, whatever torch's global generator holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from privopt import Optimizer, Vector
from privopt.federation.federation import build_federation
from privopt.federation.problem import TorchProblem


def trained(folder: Path, global_seed: int) -> Vector:
    def problem(number: int) -> TorchProblem:
        rng = np.random.default_rng(number)
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))
        return TorchProblem(model, rng.normal(size=(30, 4)).astype(np.float32), rng.integers(0, 3, 30))

    problems = {f"c{i}": problem(i) for i in range(3)}
    torch.manual_seed(global_seed)
    found = build_federation(
        problems,
        client_optimizer=lambda: Optimizer(0.1),
        server_optimizer=Optimizer(1.0),
        steps=2,
        homes=folder,
        run="test",
    )
    assert [report.status for report in found.run(2)] == ["ok", "ok"]
    assert torch.initial_seed() == global_seed, "the caller's generator is left as it was"
    return found.server.weights


def test_dropout_follows_the_round_and_not_the_process(tmp_path: Path) -> None:
    assert trained(tmp_path / "a", 1).equals(trained(tmp_path / "b", 2))


def test_steps_of_a_round_drop_different_units() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))
    problem = TorchProblem(model, np.ones((3, 4), np.float32), np.arange(3))
    losses = {problem.gradient(np.arange(3), seed)[1] for seed in range(8)}
    assert len(losses) > 4
    assert problem.gradient(np.arange(3), 5)[1] == pytest.approx(problem.gradient(np.arange(3), 5)[1], abs=0)


def test_what_a_model_drops_is_what_torchs_own_seed_makes_it_drop() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))
    problem = TorchProblem(model, np.ones((3, 4), np.float32), np.arange(3))
    found = problem.gradient(np.arange(3), 5)[1]
    torch.manual_seed(5)
    wanted = torch.nn.functional.cross_entropy(model(problem.x), problem.y).item()
    assert found == wanted != problem.gradient(np.arange(3), 6)[1]
