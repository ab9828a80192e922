"""Hands chains that it recognises to torch's own fused kernels, in pieces on the flat buffer.

What is recognised is the arithmetic, not the plug-in: whoever writes Adam's formulas gets Adam's kernel.
Results agree with eager's to a few units in the last place. Used where numba is not installed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..backends import Array
from ..expression import Program
from .passes import Pass

__all__ = ["run"]

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
    chain, leaves, places, scaled = found
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
    scale = numbers["scale"] if scaled else None
    with torch.no_grad():
        # On a CPU a piece's scaled gradients stay in cache; a GPU wants one launch.
        for piece in _pieces(job.size) if job.device == "cpu" else [slice(0, job.size)]:
            gradients = arrays["g"][piece]
            kernel(piece, gradients if scale is None else gradients * scale)
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
