"""The built-in run as a user starts it, from the first import to the last line of its audit trail."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .harness import Benchmark, Case, against_limit

ROOT = Path(__file__).parents[1]
LIMIT = 60.0
"""Seconds that the default run may take on two cores."""


def cases() -> Iterator[Benchmark]:
    """Eight clients, twenty rounds, privacy, masks, ledger and audit trail; without the plain twin."""
    case = "privopt train twin=false"
    yield Benchmark(case, functools.partial(_train, case, ["twin=false"]))


def _train(case: str, settings: list[str], runs: int = 3) -> Case:
    times = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "privopt", "train", *settings],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL,
                check=True,
            )
            times.append(time.perf_counter() - started)
    return against_limit(case, times, LIMIT, "s")
