"""A round of the built-in federation, masks and privacy on, against its local steps alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from privopt.federation.parts import Parts
from privopt.setup.config import load

from .harness import Case, compare


def cases() -> Iterator[Case]:
    """Eight clients, five steps each, linear model on digits."""
    for settings in (["dp.enabled=false"], ["masks.enabled=false"], []):
        config = load(None, ["twin=false", "rounds=1000", *settings])
        parts = Parts(config)
        model = parts.model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        data = [(torch.from_numpy(c.x), torch.from_numpy(c.y)) for c in parts.data.clients]
        rng = np.random.default_rng(0)

        def plain(model=model, optimizer=optimizer, data=data, rng=rng, steps=parts.steps) -> None:  # type: ignore[no-untyped-def]
            for x, y in data:
                for _ in range(steps):
                    batch = torch.from_numpy(np.flatnonzero(rng.random(len(y)) < 0.2))
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
                    optimizer.step()

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            federation, _ = parts.federation("bench", lambda i, f=folder: f / i, folder / "server")
            what = {0: "privacy and masks", 1: settings[0] if settings else ""}[len(settings)]
            yield compare(f"a round, 8 clients, {what}", federation.run_round, plain, "plain step", runs=7)
