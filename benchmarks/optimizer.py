"""One step of an optimizer against the same step by measured peers, at the sizes that people train.

What is measured, in this order: gradients that lie flat in a Vector, that are packed from `.grad` each step,
and that `.grad` puts into the flat buffer; FedProx + Scaffold + SGD; declearn, torchzero and optax; the other
executors; how time grows with size; how much memory a step takes beyond what it must hold.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

import privopt

from . import peers
from .harness import Benchmark, Case, Unavailable, against_limit, compare
from .problems import SHAPES, Array, Shape, Step, agree, tensors

THREADS = 2
MEMORY_LIMIT = 16.0
"""MB that a step may take beyond weights, gradients and state."""

_FLAT = {"1x10M": 0.75, "ResNet-18": 0.75, "200x5k": 0.2}
_PACKED = {"1x10M": 1.05, "ResNet-18": 1.05, "200x5k": 0.35}
_PEERS: list[tuple[Callable[[Mapping[str, Array]], Step], float, float]] = [
    # Side, bar (8, 5 and 1 times faster), eps of both sides.
    (peers.Declearn, 1 / 8, peers.EPS),
    (peers.Torchzero, 1 / 5, peers.Torchzero.eps),
    (peers.Optax, 1.0, peers.EPS),
]
_GROWTH = [10**k for k in range(4, 9)]


def cases() -> Iterator[Benchmark]:
    """Each case sets itself up, proves that both sides take the same steps, then measures them."""
    torch.set_num_threads(THREADS)
    for what, side, bars in (
        ("flat", peers.Flat, _FLAT),
        ("packed", peers.Packed, _PACKED),
        ("bound", peers.Bound, _FLAT),
    ):
        for size in SHAPES:
            yield _adam(f"adam chain, {size}, gradients {what}", SHAPES[size], side, bars[size])
    for size in SHAPES:
        yield _scaffold(f"fedprox scaffold sgd, {size}", SHAPES[size], 1.0)
    for peer, bar, eps in _PEERS:
        for size in SHAPES:
            case = f"adam chain, {size}, against {peer.name}"  # type: ignore[attr-defined]  # a class
            yield Benchmark(case, functools.partial(_against, case, SHAPES[size], peer, bar, eps))
    for size in SHAPES:
        case = f"adam chain, {size}, jax arrays, against optax jit"
        yield Benchmark(case, functools.partial(_jax, case, SHAPES[size]))
    for executor, adam_bar, scaffold_bar in (("torch", 1.7, None), ("blocked", 3.5, 3.5)):
        for size in SHAPES:
            case = f"adam chain, {size}, executor {executor}"
            yield _adam(case, SHAPES[size], peers.Flat, adam_bar, executor)
            if scaffold_bar is not None:
                case = f"fedprox scaffold sgd, {size}, executor {executor}"
                yield _scaffold(case, SHAPES[size], scaffold_bar, executor)
    yield from _growth()
    yield from _memory()


@contextlib.contextmanager
def _executor(name: str) -> Iterator[None]:
    """Run the steps of what is inside by the executor of that name."""
    try:
        with privopt.executor(name):
            yield
    except ImportError as error:
        raise Unavailable(str(error)) from error


# ---- time -------------------------------------------------------------------------------------------------


def _adam(
    case: str,
    shapes: Sequence[Shape],
    side: type[peers.Flat],
    bar: float | None,
    executor: str = "auto",
    eps: float = peers.EPS,
) -> Benchmark:
    def measure() -> Case:
        start = tensors(shapes, 0.05, 0)
        with _executor(executor):
            return _measured(
                case, side(start, peers.adam_chain(eps)), peers.TorchFused(start, eps), shapes, bar
            )

    return Benchmark(case, measure)


def _scaffold(case: str, shapes: Sequence[Shape], bar: float, executor: str = "auto") -> Benchmark:
    def measure() -> Case:
        start, control, server = (tensors(shapes, 0.05, seed) for seed in (0, 7, 8))
        with _executor(executor):
            ours = peers.Flat(start, peers.scaffold_chain(control, server))
            return _measured(case, ours, peers.TorchForeach(start, control, server), shapes, bar)

    return Benchmark(case, measure)


def _against(
    case: str,
    shapes: Sequence[Shape],
    peer: Callable[[Mapping[str, Array]], Step],
    bar: float,
    eps: float,
) -> Case:
    start = tensors(shapes, 0.05, 0)
    return _measured(case, peers.Flat(start, peers.adam_chain(eps)), peer(start), shapes, bar)


def _jax(case: str, shapes: Sequence[Shape]) -> Case:
    start = tensors(shapes, 0.05, 0)
    return _measured(case, peers.FlatJax(start, peers.adam_chain()), peers.Optax(start), shapes, 1.0)


def _measured(case: str, ours: Step, peer: Step, shapes: Sequence[Shape], bar: float | None) -> Case:
    agree(ours, peer, shapes)
    return compare(case, ours.step, peer.step, peer.name, bar=bar)


# ---- growth -----------------------------------------------------------------------------------------------


def _growth() -> Iterator[Benchmark]:
    measured: dict[int, Case] = {}

    def at(size: int) -> Case:
        if size not in measured:
            case = f"growth: adam chain, one tensor of {size:.0e} parameters"
            # At 1e8 entries torch's float32 norm is 1% short. Adam does not mind the scale, its eps would.
            measured[size] = _adam(case, [(size,)], peers.Flat, None, eps=1e-20).measure()
        return measured[size]

    def exponents() -> Case:
        ours = _exponent({size: at(size).ours_min for size in _GROWTH})
        theirs = _exponent({size: at(size).baseline_min for size in _GROWTH})
        case = "growth: exponent of the smallest times, 1e4 to 1e8 parameters"
        ratio = ours / theirs
        return Case(case, ours, theirs, "torch fused", ratio, ours, theirs, ratio, len(_GROWTH), unit="")

    for size in _GROWTH:
        case = f"growth: adam chain, one tensor of {size:.0e} parameters"
        yield Benchmark(case, functools.partial(at, size))
    yield Benchmark("growth: exponent of the smallest times, 1e4 to 1e8 parameters", exponents)
    case = "growth: adam chain, 1,000 tensors of 5,000 against one of 5 M"
    yield Benchmark(case, functools.partial(_many, case))


def _many(case: str) -> Case:
    many, one = [(5_000,)] * 1_000, [(5_000_000,)]
    sides = [peers.Flat(tensors(shapes, 0.05, 0), peers.adam_chain()) for shapes in (many, one)]
    for side, shapes in zip(sides, (many, one), strict=True):
        side.load(tensors(shapes, 0.1, 1))
    return compare(case, sides[0].step, sides[1].step, "one tensor")


def _exponent(times: Mapping[int, float]) -> float:
    """The slope of log(time) over log(size), by least squares."""
    xs, ys = [math.log(n) for n in times], [math.log(t) for t in times.values()]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


# ---- memory -----------------------------------------------------------------------------------------------


def _memory() -> Iterator[Benchmark]:
    for chain in ("adam chain, gradients flat", "adam chain, gradients packed", "fedprox scaffold sgd"):
        for size in SHAPES:
            case = f"memory of a step: {chain}, {size}"
            yield Benchmark(case, functools.partial(_peak, case, chain, size))


def _peak(case: str, chain: str, size: str) -> Case:
    """The peaks of three steps, in a process of their own."""
    told = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", chain, size], capture_output=True, text=True, check=False
    )
    if told.returncode:
        raise Unavailable(told.stderr.strip().splitlines()[-1] if told.stderr.strip() else "it failed")
    return against_limit(case, json.loads(told.stdout), MEMORY_LIMIT, "MB")
