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
from pathlib import Path

import torch

from . import peers
from .problems import SHAPES, tensors

SELF = Path("/proc/self")


def peaks(chain: str, size: str, steps: int = 3) -> list[float]:
    """How far the resident memory rises above its level before, for each of some steps after a warm-up."""
    torch.set_num_threads(2)
    shapes = SHAPES[size]
    start = tensors(shapes, 0.05, 0)
    if chain == "fedprox scaffold sgd":
        other = tensors(shapes, 0.05, 1)
        ours = peers.Flat(start, peers.scaffold_chain(start, other))
    else:
        kind = {"flat": peers.Flat, "packed": peers.Packed}[chain.rpartition(" ")[2]]
        ours = kind(start, peers.adam_chain())
    ours.load(tensors(shapes, 0.1, 1))
    for _ in range(3):
        ours.step()
    found = []
    for _ in range(steps):
        gc.collect()
        # What was freed goes back to the system, so that a step that takes it again is seen to take it.
        ctypes.CDLL(None).malloc_trim(0)
        (SELF / "clear_refs").write_text("5")
        before = resident("VmRSS")
        ours.step()
        found.append((resident("VmHWM") - before) / 1e6)
    return found


def resident(field: str) -> int:
    """A field of this process's status, bytes."""
    kilobytes = re.search(rf"^{field}:\s+(\d+) kB$", (SELF / "status").read_text(), re.M)
    assert kilobytes is not None, f"{field} is not in /proc/self/status"
    return 1024 * int(kilobytes[1])


if __name__ == "__main__":
    print(json.dumps(peaks(sys.argv[1], sys.argv[2])))
