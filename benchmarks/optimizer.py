"""One step of an optimizer against the same step by measured peers, at the sizes that people train."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from .harness import Benchmark, Case, compare
from .problems import SHAPES, Flat, TorchFused, adam_chain, agree, tensors

THREADS = 2
SECONDS = 4.0  # how long one case is measured, at least

_BARS = {"1x10M": 0.75, "ResNet-18": 0.75, "200x5k": 0.2}


def cases() -> Iterator[Benchmark]:
    """Each case sets itself up, proves that both sides take the same steps, then measures them."""
    torch.set_num_threads(THREADS)
    for size in SHAPES:
        case = f"adam chain, {size}, gradients flat"
        yield Benchmark(case, functools.partial(_flat, case, size))


def _flat(case: str, size: str) -> Case:
    shapes = SHAPES[size]
    start = tensors(shapes, 0.05, 0)
    ours, peer = Flat(start, adam_chain()), TorchFused(start)
    agree(ours, peer, shapes)
    return compare(case, ours.step, peer.step, peer.name, seconds=SECONDS, bar=_BARS[size])
