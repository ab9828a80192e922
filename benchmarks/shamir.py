"""Shamir's sharing of a client's two secrets and of many, against its limit and against Flower's."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator

from secagg.shamir import reconstruct, split

from .harness import Benchmark, Case, Disagreement, against_limit, compare
from .secagg_peers import imported

HOLDERS, THRESHOLD = 1000, 666
"""Bonawitz's larger cohort, with the threshold of its table."""
LIMIT = 2e-3
"""Seconds for one secret."""
RUNS = 25


def cases() -> Iterator[Benchmark]:
    """Time for one secret of many against the limit; one secret against Flower."""
    for count in (2, 32):
        case = f"split {count} secrets, n={HOLDERS}, t={THRESHOLD}, each"
        yield Benchmark(case, functools.partial(_split, case, count))
    case = f"reconstruct 1000 secrets, n={HOLDERS}, t={THRESHOLD}, each"
    yield Benchmark(case, functools.partial(_reconstruct, case, 1000))
    for what, measure in (("split", _split_as_flower), ("reconstruct", _reconstruct_as_flower)):
        case = f"{what} one secret, n=100, t=66"
        yield Benchmark(case, functools.partial(measure, case, 100, 66))


def _split(case: str, count: int) -> Case:
    secrets = [os.urandom(32) for _ in range(count)]
    return against_limit(case, _seconds(lambda: split(secrets, HOLDERS, THRESHOLD), count), LIMIT, "s")


def _reconstruct(case: str, count: int) -> Case:
    secrets = [os.urandom(32) for _ in range(count)]
    # A third of the holders dropped out, not the last ones: the points that are left lie apart.
    points = [point for point in range(1, HOLDERS + 1) if point % 3][:THRESHOLD]
    shares = split(secrets, HOLDERS, THRESHOLD)[[point - 1 for point in points]]
    if reconstruct(points, shares) != secrets:
        raise Disagreement("the shares do not give the secrets back.")
    return against_limit(case, _seconds(lambda: reconstruct(points, shares), count), LIMIT, "s")


def _seconds(call: Callable[[], object], count: int) -> list[float]:
    """Times of some calls after a first one, for each of `count` secrets."""
    call()
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        call()
        times.append((time.perf_counter() - started) / count)
    return times


def _split_as_flower(case: str, holders: int, threshold: int) -> Case:
    flower = imported("flwr.common.secure_aggregation.crypto.shamir")
    secret = os.urandom(32)
    if flower.combine_shares(flower.create_shares(secret, threshold, holders)[:threshold]) != secret:
        raise Disagreement("Flower's shares do not give the secret back.")
    return compare(
        case,
        lambda: split([secret], holders, threshold),
        lambda: flower.create_shares(secret, threshold, holders),
        "flower",
        runs=5,
    )


def _reconstruct_as_flower(case: str, holders: int, threshold: int) -> Case:
    flower = imported("flwr.common.secure_aggregation.crypto.shamir")
    secret = os.urandom(32)
    theirs = flower.create_shares(secret, threshold, holders)[-threshold:]
    points = range(holders - threshold + 1, holders + 1)
    ours = split([secret], holders, threshold)[-threshold:]
    if not flower.combine_shares(theirs) == reconstruct(points, ours)[0] == secret:
        raise Disagreement("the secrets that come back are not the same.")
    return compare(
        case,
        lambda: reconstruct(points, ours),
        lambda: flower.combine_shares(theirs),
        "flower",
        runs=5,
    )
