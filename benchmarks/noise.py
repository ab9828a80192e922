"""Secure noise against `torch.normal_`, which is not secure: Gaussian on a lattice, discrete Gaussian."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dp.noise import discrete_gaussian, release, rounded_gaussian, skellam
from dp.random import secure_source

from .harness import Benchmark, Case, Disagreement, Unavailable, compare

DRAWS = 1 << 20
OVER_FLOAT32, OVER_FLOAT64 = 2.5, 0.6
DISCRETE_OVER_FLOAT64 = 57 / 50


def cases() -> Iterator[Benchmark]:
    """A million draws each; the standard deviation counts lattice steps."""
    stream = secure_source().stream("benchmark")
    total = np.zeros(DRAWS)
    lattice = functools.partial(rounded_gaussian, DRAWS, stream=stream)
    measures: list[tuple[str, Callable[[], Any], float | None, str, float | None]] = [
        (
            f"rounded Gaussian, std 2**{e}, against {dtype}",
            functools.partial(lattice, std=2.0**e),
            2.0**e,
            dtype,
            bar,
        )
        for e in (13, 20, 22)
        for dtype, bar in (("float32", OVER_FLOAT32), ("float64", OVER_FLOAT64))
    ]
    measures += [
        (
            "release of a sum, sum and rounding included",
            lambda: release(total, 1.0, 1.0, stream).values,
            None,
            "float32",
            None,
        ),
        (
            "discrete Gaussian, std 64",
            lambda: discrete_gaussian(DRAWS, 64.0, stream),
            64.0,
            "float64",
            DISCRETE_OVER_FLOAT64,
        ),
        ("Skellam, variance 4096", lambda: skellam(DRAWS, 4096.0, stream), 64.0, "float64", None),
    ]
    for case, ours, std, dtype, bar in measures:
        yield Benchmark(case, functools.partial(_against_torch, case, ours, std, dtype, bar))


def _against_torch(
    case: str, ours: Callable[[], Any], std: float | None, dtype: str, bar: float | None
) -> Case:
    """Torch writes into memory that it already has; ours takes new memory each time."""
    try:
        import torch
    except ImportError as error:
        raise Unavailable("torch is missing: pip install privopt[torch]") from error
    if std is not None and abs(np.std(ours()) / std - 1) > 0.01:
        raise Disagreement("the draws do not have the standard deviation that was asked for.")
    buffer = torch.empty(DRAWS, dtype=getattr(torch, dtype))
    return compare(case, ours, buffer.normal_, f"normal_ {dtype[-2:]}", bar=bar)
