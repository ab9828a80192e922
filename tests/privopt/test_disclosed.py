"""What `dp.disclose` lets out is what it says: the mean training loss, and no stand-in for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.privopt.test_private_run import federation


@pytest.mark.parametrize("masks", ["true", "false"])
def test_a_disclosed_loss_is_that_of_the_clients_samples_at_the_rounds_model(
    tmp_path: Path, masks: str
) -> None:
    found, _ = federation(tmp_path, 'dp.disclose=["loss"]', f"masks.enabled={masks}")
    for _ in range(2):
        problems = [client.problem for client in found.clients.values()]
        for problem in problems:
            problem.weights.assign(found.server.weights)
        losses = [problem.gradient(np.arange(problem.num_samples))[1] for problem in problems]
        report = found.run_round()
        assert report.status == "ok"
        assert report.loss == pytest.approx(np.mean(losses), abs=64 / (2**19 - 1) + 1e-5)
