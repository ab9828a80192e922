"""A round of the built-in federation, masks and privacy on, against its local steps alone."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from privopt.federation.parts import Parts
from privopt.setup.config import load

from .harness import Benchmark, Case, compare


def plain_steps(parts: Parts) -> Callable[[], None]:
    """The gradient steps of all clients and nothing else, in torch as one would write them."""
    model = parts.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = [(torch.from_numpy(c.x), torch.from_numpy(c.y)) for c in parts.data.clients]
    rng = np.random.default_rng(0)

    def run() -> None:
        for x, y in data:
            for _ in range(parts.steps):
                batch = torch.from_numpy(np.flatnonzero(rng.random(len(y)) < 0.2))
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(x[batch]), y[batch])
                loss.backward()  # type: ignore[no-untyped-call]  # torch types it only in part
                optimizer.step()

    return run


def cases() -> Iterator[Benchmark]:
    """Eight clients, five steps each, linear model on digits."""
    for what, settings in {
        "masks": ["dp.enabled=false"],
        "privacy": ["masks.enabled=false"],
        "privacy and masks": [],
        "privacy and masks, 2 vanish": ["dropout=0.3"],
    }.items():
        case = f"a round, 8 clients, {what}"
        yield Benchmark(case, functools.partial(_round, case, settings))


def _round(case: str, settings: Sequence[str]) -> Case:
    parts = Parts(load(None, ["twin=false", "rounds=1000", *settings]))
    with tempfile.TemporaryDirectory() as name:
        federation, _ = parts.federation("bench", Path(name).joinpath, Path(name, "server"))
        return compare(case, federation.run_round, plain_steps(parts), "plain step", runs=7, seconds=0)
