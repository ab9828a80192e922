"""``python -m benchmarks.memory CHAIN SIZE``: peak memory of a step beyond what it holds, MB, as JSON.

A process of its own, since freed memory of another case would hide what a step takes. Linux only: the peak is
`VmHWM` of the process, set back before each step.
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from . import peers
from .problems import SHAPES, tensors

SELF = Path("/proc/self")


def peaks(chain: str, size: str, steps: int = 3) -> list[float]:
    """The peak of each of some steps, after a warm-up."""
    torch.set_num_threads(2)
    shapes = SHAPES[size]
    start = tensors(shapes, 0.05, 0)
    if chain == "fedprox scaffold sgd":
        ours = peers.Flat(start, peers.scaffold_chain(start, tensors(shapes, 0.05, 7)))
    else:
        kind = {"flat": peers.Flat, "packed": peers.Packed}[chain.rpartition(" ")[2]]
        ours = kind(start, peers.adam_chain())
    ours.load(tensors(shapes, 0.1, 1))
    for _ in range(3):
        ours.step()
    return [peak(ours.step) for _ in range(steps)]


def peak(step: Callable[[], object]) -> float:
    """How far the resident memory rises, while `step` runs, above its level before: MB."""
    gc.collect()
    # What was freed goes back to the system, so that a step that takes it again is seen to take it.
    ctypes.CDLL(None).malloc_trim(0)
    (SELF / "clear_refs").write_text("5")
    before = resident("VmRSS")
    step()
    return (resident("VmHWM") - before) / 1e6


def resident(field: str) -> int:
    """A field of this process's status, bytes."""
    kilobytes = re.search(rf"^{field}:\s+(\d+) kB$", (SELF / "status").read_text(), re.M)
    assert kilobytes is not None, f"{field} is not in /proc/self/status"
    return 1024 * int(kilobytes[1])


if __name__ == "__main__":
    print(json.dumps(peaks(sys.argv[1], sys.argv[2])))
