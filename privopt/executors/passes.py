"""One pass over memory, as every executor gets it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..backends import Array, Backend
from ..expression import Program

__all__ = ["Pass"]


@dataclass(slots=True)
class Pass:
    """A program and what it runs on, for one block of a layout.

    Attributes:
        backend: The framework of the arrays.
        program: What to compute.
        arrays: The leaves, each of shape ``(size,)``.
        scalars: The numbers that instructions name.
        points: For each spread its numbers, one per segment, float64.
        bounds: Where segments begin, and the end, shape ``(segments + 1,)``; None without spreads.
        into: For each output the array to write it into, or None for a new one.
        size: Entries of the block.
        device: Device of the block.
        targets: The Vectors whose arrays `into` holds, for frameworks whose arrays cannot be written.
    """

    backend: Backend
    program: Program
    arrays: list[Array]
    scalars: Sequence[float]
    points: Sequence[npt.NDArray[np.float64]]
    bounds: Any
    into: list[Array | None]
    size: int
    device: str
    targets: Sequence[Any] = ()
