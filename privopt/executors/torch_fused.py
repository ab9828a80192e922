"""Hands chains that it recognises to torch's own fused kernels, and sums to torch's own reductions.

What is recognised is the arithmetic, not the plug-in: whoever writes Adam's formulas gets Adam's kernel.
Results agree with eager's to a few units in the last place. Used where no compiler is installed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..backends import Array
from ..backends.common import runs
from ..expression import Program
from .passes import Pass

__all__ = ["run", "segment_products", "sum_products"]

PIECE = 1 << 20
"""Entries given to a kernel at a time: torch splits them between its threads."""

Pattern = tuple[Any, ...] | str

# Operands that begin with "?" are numbers; other names are leaves.
_SCALED = ("mul", "g", "?scale")
_M = ("add", ("mul", "?beta_1", "m"), ("mul", "?rest_1", "G"))
_V = ("add", ("mul", "?beta_2", "v"), ("mul", ("mul", "?rest_2", "G"), "G"))
_ADAM = ("div", ("div", _M, "?debias_1"), ("add", ("sqrt", ("div", _V, "?debias_2")), "?eps"))
_BUFFER = ("add", ("mul", "?beta", "b"), "G")
_NESTEROV = ("add", ("mul", "?beta", _BUFFER), "G")


def _stepped(direction: Pattern) -> list[Pattern]:
    """New weights from a direction, without and with decoupled decay."""
    move = ("mul", direction, "?minus_lrate")
    return [("add", "w", move), ("add", "w", ("sub", move, ("mul", "w", "?w_decay")))]


_CHAINS: dict[str, list[tuple[Pattern, ...]]] = {
    "adam": [(w, _M, _V) for w in _stepped(_ADAM)],
    "momentum": [(w, _BUFFER) for w in _stepped(_BUFFER)],
    "nesterov": [(w, _BUFFER) for w in _stepped(_NESTEROV)],
}


def run(job: Pass) -> list[Array] | None:
    """Run a recognised chain in place; None for what is not recognised."""
    found = job.program.kernels.get("torch fused")
    if found is None:
        found = job.program.kernels["torch fused"] = _recognised(job.program) or ()
    if not found or job.device.partition(":")[0] not in ("cpu", "cuda"):
        return None
    chain, leaves, places, clipped = found
    arrays = {name: job.arrays[k] for name, k in leaves.items()}
    outputs = ("w", "m", "v") if chain == "adam" else ("w", "b")
    if any(into is not arrays[name] for into, name in zip(job.into, outputs, strict=True)):
        return None  # the kernels write in place only
    numbers = {name: job.scalars[ks[0]] for name, ks in places.items()}
    if any(job.scalars[k] != numbers[name] for name, ks in places.items() for k in ks):
        return None  # a formula that uses one number twice was given two
    kernel = _adam(arrays, numbers) if chain == "adam" else _momentum(arrays, numbers, chain == "nesterov")
    if kernel is None:
        return None
    with torch.no_grad():
        # On a CPU a piece's scaled gradients stay in cache; a GPU wants one launch.
        pieces = list(_pieces(job.size)) if job.device == "cpu" else [slice(0, job.size)]
        memory = torch.empty_like(arrays["g"][pieces[0]]) if clipped else arrays["g"]
        for piece in pieces:
            gradients = arrays["g"][piece]
            if clipped:
                gradients = torch.mul(gradients, numbers["scale"], out=memory[: len(gradients)])
            kernel(piece, gradients)
    return [arrays[name] for name in outputs]


def _pieces(size: int) -> Iterator[slice]:
    return (slice(start, min(start + PIECE, size)) for start in range(0, size, PIECE))


def _adam(arrays: Mapping[str, Array], n: Mapping[str, float]) -> Any:
    step = _step_of(n)
    if step is None or n["minus_lrate"] == 0 or not _complementary(n["beta_1"], n["rest_1"]):
        return None
    if not _complementary(n["beta_2"], n["rest_2"]):
        return None
    lrate = -n["minus_lrate"]
    # Its decay is multiplied by the rate; ours is not.
    decay = n.get("w_decay", 0.0) / lrate
    count = torch.tensor(float(step), device=arrays["w"].device)

    def kernel(piece: slice, gradients: Array) -> None:
        torch._fused_adamw_(
            [arrays["w"][piece]], [gradients], [arrays["m"][piece]], [arrays["v"][piece]], [], [count],
            lr=lrate, beta1=n["beta_1"], beta2=n["beta_2"], weight_decay=decay, eps=n["eps"],
            amsgrad=False, maximize=False,
        )  # fmt: skip

    return kernel


def _momentum(arrays: Mapping[str, Array], n: Mapping[str, float], nesterov: bool) -> Any:
    lrate = -n["minus_lrate"]
    shrink = 1 - n.get("w_decay", 0.0)

    def kernel(piece: slice, gradients: Array) -> None:
        weights = arrays["w"][piece]
        if shrink != 1:
            weights.mul_(shrink)
        torch._fused_sgd_(
            [weights], [gradients], [arrays["b"][piece]],
            weight_decay=0.0, momentum=n["beta"], lr=lrate, dampening=0.0, nesterov=nesterov, maximize=False,
            is_first_step=False,
        )  # fmt: skip

    return kernel


def _complementary(share: float, rest: float) -> bool:
    return 1 - share == rest


def _step_of(n: Mapping[str, float]) -> int | None:
    """The step count that both debiasing factors stand for; None if there is none."""
    for beta, factor in ((n["beta_1"], n["debias_1"]), (n["beta_2"], n["debias_2"])):
        if 0 < beta < 1 and factor < 1:
            near = round(math.log1p(-factor) / math.log(beta))
            for step in (near, near - 1, near + 1):
                both = (n["beta_1"], n["debias_1"]), (n["beta_2"], n["debias_2"])
                if step > 0 and all(1 - b**step == f for b, f in both):
                    return step
            return None
    return None


# ---- recognition ------------------------------------------------------------------------------------------

Found = tuple[str, dict[str, int], dict[str, list[int]], bool]


def _recognised(program: Program) -> Found | None:
    """Name of the chain, leaf of each array, position of each number, whether gradients are scaled."""
    kinds = set(program.dtypes)
    if kinds not in ({"float32"}, {"float64"}):
        return None
    for chain, variants in _CHAINS.items():
        for variant in variants:
            for scaled in (False, True):
                match = _Match(program, _SCALED if scaled else "g")
                if len(variant) == len(program.outputs) and all(
                    match.node(pattern, node) for pattern, node in zip(variant, program.outputs, strict=True)
                ):
                    if len(set(match.leaves.values())) < len(match.leaves):
                        continue
                    return chain, match.leaves, match.numbers, scaled
    return None


class _Match:
    """What the names of a pattern stand for in a program."""

    def __init__(self, program: Program, gradients: Pattern) -> None:
        self.program = program
        self.gradients = gradients
        self.leaves: dict[str, int] = {}
        self.numbers: dict[str, list[int]] = {}
        self._nodes: dict[str, int] = {}

    def node(self, pattern: Pattern, node: int) -> bool:
        """Whether a node (or, below 0, a number) is what the pattern says, with all names so far."""
        if pattern == "G":
            known = self._nodes.setdefault("G", node)
            return known == node and self.node(self.gradients, node)
        if isinstance(pattern, str) and pattern.startswith("?"):
            # A number that a formula uses twice is recorded twice: `run` compares the values.
            if node < 0:
                self.numbers.setdefault(pattern[1:], []).append(-1 - node)
            return node < 0
        if node < 0:
            return False
        op, *operands = self.program.code[node]
        if isinstance(pattern, str):
            return op == "leaf" and self.leaves.setdefault(pattern, int(operands[0])) == operands[0]
        return (
            op == pattern[0]
            and len(operands) == len(pattern) - 1
            and all(self.node(p, int(x)) for p, x in zip(pattern[1:], operands, strict=True))
        )


# ---- sums -------------------------------------------------------------------------------------------------

ROW = 1 << 12
"""Entries that one thread adds up. Torch hands its threads whole rows, so that their number changes no bit; a
sum of all entries at once it would cut into as many parts as there are threads."""
WIDE = 1 << 19
"""Entries held in float64 at a time: 4 MB."""


def sum_products(left: Array, right: Array | None) -> float:
    """Inner product of two real tensors on a CPU, or the sum of one, added up in float64.

    Guarantees:
        - Any number of threads gives the same bits (others than those of `privopt.summation`).
    """
    return float(segment_products(left, right, [0])[0])


def segment_products(left: Array, right: Array | None, starts: Sequence[int]) -> npt.NDArray[np.float64]:
    """The same for each segment from `starts`; the last ends the tensor."""
    sums = np.zeros(len(starts))
    done = 0
    with torch.no_grad(), np.errstate(over="ignore", invalid="ignore"):
        wide = _Wide(left, right)
        for start, count, size in runs(starts, left.numel()):
            # As many short segments at a time as are held, or one long segment in pieces.
            per = max(1, WIDE // max(1, size))
            for k in range(0, count, per):
                these = min(per, count - k)
                at = start + k * size
                pieces = [
                    _row_sums(wide(at + a, these * min(size - a, WIDE)).view(these, -1))
                    for a in range(0, size, WIDE)
                ]
                if pieces:
                    sums[done + k : done + k + these] = np.concatenate(pieces, axis=1).sum(axis=1)
            done += count
    return sums


def _row_sums(segments: Array) -> npt.NDArray[np.float64]:
    """Sums of each segment's rows, and of what is left of it: shape ``(segments, rows + 1)``."""
    count, size = segments.shape
    rows, rest = divmod(size, ROW)
    found = np.empty((count, rows + 1))
    found[:, :rows] = segments[:, : rows * ROW].unflatten(1, (rows, ROW)).sum(2).numpy()
    found[:, rows] = segments[:, size - rest :].sum(1).numpy()
    return found


class _Wide:
    """What is added up, entries of a tensor or products of two tensors', in float64, a piece at a time."""

    def __init__(self, left: Array, right: Array | None) -> None:
        self.left, self.right = left, right
        self._memory: dict[int, Array] = {}

    def __call__(self, start: int, size: int) -> Array:
        ours = self._converted(0, self.left[start : start + size])
        if self.right is None:
            return ours
        theirs = ours if self.right is self.left else self._converted(1, self.right[start : start + size])
        return torch.mul(ours, theirs, out=self._piece(0, size))

    def _converted(self, side: int, piece: Array) -> Array:
        return piece if piece.dtype == torch.float64 else self._piece(side, len(piece)).copy_(piece)

    def _piece(self, side: int, size: int) -> Array:
        if side not in self._memory:
            self._memory[side] = torch.empty(min(WIDE, len(self.left)), dtype=torch.float64)
        return self._memory[side][:size]
