"""A run that is killed: a process that steps and saves, ended by SIGKILL at any instant and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import read_state, write_state
from ..optimizer import Optimizer
from ..vector import Vector
from .inputs import SEVERAL, gradients
from .subject import ContractError, difference

__all__ = ["check_survives_kill"]

_IN_A_ROUND = 4


def check_survives_kill(
    config: Mapping[str, Any], *, steps: int = 40, kills: Sequence[int] = (7, 11)
) -> None:
    """A training process that is killed and started again ends where an undisturbed one does, bit for bit.

    Args:
        config: Of the optimizer, as `Optimizer.get_config` gives it. No noise: its source is in no config.
        steps: Steps of the whole run.
        kills: After how many further steps of each start it is killed; it is a step or two further by then.

    Raises:
        ContractError: If it ends elsewhere.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "run.json").write_text(json.dumps({"config": dict(config), "steps": steps}))
        for count in kills:
            _killed_after(folder, count)
        _start(folder).communicate(timeout=120)
        found = read_state(folder / "state")
        undisturbed = folder / "undisturbed"
        undisturbed.mkdir()
        (undisturbed / "run.json").write_text((folder / "run.json").read_text())
        run(str(undisturbed))
        gap = difference(read_state(undisturbed / "state"), found)
    if gap is not None:
        raise ContractError(f"Expected a run that was killed to resume bit for bit, got {gap} in the end.")


def _killed_after(folder: Path, count: int) -> None:
    process = _start(folder)
    assert process.stdout is not None  # noqa: S101 - it was asked for
    lines = [process.stdout.readline() for _ in range(count)]
    os.kill(process.pid, signal.SIGKILL)
    process.stdout.close()
    code = process.wait(timeout=120)
    if not lines[-1] or code != -signal.SIGKILL:
        raise ContractError(
            f"Expected a process that takes {count} steps until it is killed, got one that ended by itself "
            f"with code {code} after {sum(map(bool, lines))}. Take more steps, or kill earlier."
        )


def _start(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", f"from {__name__} import run; run({str(folder)!r})"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def run(folder: str) -> None:
    """What the process does: take the steps that are left, saving after each."""
    task = json.loads((Path(folder) / "run.json").read_text())
    optimizer, weights, done = Optimizer.from_config(task["config"]), gradients(1000, SEVERAL), 0
    path = Path(folder) / "state"
    if path.exists():
        state = read_state(path)
        optimizer.set_state(state["optimizer"])
        weights.assign(state["weights"])
        done = int(state["steps"])
    for step in range(done, int(task["steps"])):
        _step(optimizer, weights, step)
        write_state(path, {"optimizer": optimizer.get_state(), "weights": weights, "steps": step + 1})
        print(step, flush=True)  # what the other process waits for


def _step(optimizer: Optimizer, weights: Vector, step: int) -> None:
    if step % _IN_A_ROUND == 0:
        optimizer.start_round()
    optimizer.step(gradients(step, SEVERAL), weights)
    if step % _IN_A_ROUND == _IN_A_ROUND - 1:
        optimizer.collect_aux_var(weights)
        optimizer.end_round(accepted=step // _IN_A_ROUND % 2 == 0)
