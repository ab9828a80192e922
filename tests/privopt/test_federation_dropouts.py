"""Clients that vanish at any stage: what the sum is over, what they spent, and who vanishes in a trial."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dp
import secagg
from privopt import Optimizer
from privopt.federation import Dropouts
from privopt.federation.federation import Federation
from privopt.federation.privacy import PrivacyPlan
from privopt.federation.settings import Dropout
from privopt.setup.survival import chance, vanishing
from tests.privopt.federated import STAGES, Planned, Quadratic, federation, quadratics
from tests.statistical import ALPHA

CLIENTS = 8
COUNTS = {"consistency", "unmask"}
"""Stages that come after the vector: who vanishes there is in the sum."""

METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {"client": lambda: Optimizer(0.1), "server": lambda: Optimizer(1.0)},
    "scaffold": {
        "client": lambda: Optimizer(0.1, modules=["scaffold-client"]),
        "server": lambda: Optimizer(1.0, modules=["scaffold-server"]),
    },
    "feddyn": {
        "client": lambda: Optimizer(0.1, regularizers=[("feddyn", {"alpha": 0.1})]),
        "server": lambda: Optimizer(1.0, modules=[("feddyn-server", {"alpha": 0.1})]),
    },
    "weighted scaffold": {
        "client": lambda: Optimizer(0.1, modules=["scaffold-client"]),
        "server": lambda: Optimizer(1.0, modules=["scaffold-server"]),
        "weighting": "samples",
    },
}


def made(
    folder: Path, method: str, *, masks: bool = True, clients: int = CLIENTS, **options: Any
) -> Federation:
    chosen = dict(METHODS[method])
    chosen["server"] = chosen["server"]()
    return federation(folder, quadratics(clients), masks=masks, **chosen, **options)


PLAN = {
    2: {"c1": Dropout("advert", late=True), "c4": Dropout("vector", late=False)},
    3: {"c0": Dropout("shares", late=False), "c7": Dropout("consistency", late=False)},
    4: {"c5": Dropout("vector", late=True), "c1": Dropout("unmask", late=True)},
    5: {"c2": Dropout("advert", late=False), "c3": Dropout("unmask", late=False)},
    6: {"c6": Dropout("shares", late=True), "c0": Dropout("consistency", late=True)},
}
"""Every stage, vanished and late, over five of seven rounds."""


class Sums:
    """What clients put into their vectors, and what came out of the sums, by round."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.carried: dict[int, dict[str, dict[str, Any]]] = {}
        self.results: dict[int, secagg.Result] = {}
        prepare, result = secagg.Client.prepare, secagg.Server.result

        def preparing(client: secagg.Client, *values: Any, **fields: Any) -> dict[str, Any]:
            found = prepare(client, *values, **fields)
            assert client._round is not None
            self.carried.setdefault(client._round.number, {})[client.name] = found
            return found

        def resulting(server: secagg.Server) -> secagg.Result:
            found = result(server)
            self.results[found.round] = found
            return found

        patch.setattr(secagg.Client, "prepare", preparing)
        patch.setattr(secagg.Server, "result", resulting)

    def verify(self, number: int, survivors: Collection[str]) -> None:
        """The round's result is the survivors' sums and weighted means, to the last bits of a float."""
        found, put = self.results[number], self.carried[number]
        assert set(found.survivors) == set(survivors)
        weights = np.array([put[name]["weight"] for name in found.survivors], float)
        for key, value in found.values.items():
            parts = np.array([put[name][key] for name in found.survivors], float)
            mean = key in ("update", "metrics.loss")
            expected = np.tensordot(weights, parts, 1) / weights.sum() if mean else parts.sum(axis=0)
            np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_masked_and_clear_rounds_agree_when_the_same_clients_are_left_out(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clear run leaves out, by its own code, exactly those whose vectors did not count."""
    masked = made(tmp_path / "masked", method, dropouts=Planned(PLAN))
    clear = made(tmp_path / "clear", method, masks=False, dropouts=Planned(PLAN))
    whole = made(tmp_path / "whole", method, masks=False)
    sums, budget, apart = Sums(monkeypatch), 0.0, 0.0
    for number in range(1, 8):
        a, b = clear.run_round(), masked.run_round()
        whole.run_round()
        assert (a.status, b.status) == ("ok", "ok")
        left = {name for name, drop in PLAN.get(number, {}).items() if drop.stage not in COUNTS}
        for report in (a, b):
            assert {n for n, c in report.clients.items() if c.status != "ok"} == left
        sums.verify(number, masked.clients.keys() - left)
        assert masked.server.accepted == clear.server.accepted
        assert not any(b.clipped.values()), "no value may have been clipped for the claim to hold"
        budget += precision(masked, b.bounds, number if method == "feddyn" else 1)
        gap = np.abs(clear.server.weights.flatten() - masked.server.weights.flatten()).max()
        assert 0 < gap <= budget
        without = np.abs(clear.server.weights.flatten() - whole.server.weights.flatten()).max()
        apart = max(apart, without / budget)
    assert apart > 10, "leaving clients out must show, or the comparison would show nothing"


def precision(masked: Federation, bounds: Mapping[str, float], repeats: int) -> float:
    """What a round's rounding may move the weights by: a quantum of each field, for the local steps contract.

    FedDyn's server adds all earlier updates to each, and so all their roundings.
    """
    quanta = {name: bound / (2**15 - 1) for name, bound in bounds.items()}
    # A change counts by its client's share of the largest weight, a power of two: so does its rounding.
    samples = [client.problem.num_samples for client in masked.clients.values()]
    share = min(samples) / 64 if masked.server.aggregator.weight == "samples" else 1.0
    return repeats * (quanta["update"] + quanta.get("scaffold.delta", 0.0) / share)


# ---- what a client that vanished has spent ----------------------------------------------------------------


class Drawn(Quadratic):
    """Under DP its draws are cheap: noise alone, whatever the samples."""

    def private_gradient(self, plan: PrivacyPlan) -> Any:
        return self

    def draw(self, stream: Any) -> dict[str, Any]:
        noise = (stream.uint64(13) >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5
        return {"w": noise[:12], "b": noise[12]}


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("stage", STAGES)
def test_a_client_that_vanishes_after_training_has_spent_its_budget(
    tmp_path: Path, stage: str, late: bool
) -> None:
    plan = PrivacyPlan(8.0, 1e-3, 1.0, 0.5, 40, 2.0)
    problems: Any = {name: Drawn(p.points) for name, p in quadratics(6).items()}
    found = federation(
        tmp_path, problems, plan=plan, dropouts=Planned({2: {"c3": Dropout(stage, late)}}), scaffold=False
    )
    reports = [found.run_round() for _ in range(3)]
    assert [r.status for r in reports] == ["ok"] * 3
    trained = 2 if stage == "advert" and not late else 3
    price = dp.epsilon(plan.event(4 * trained), plan.delta)
    privacy = found.clients["c3"].privacy
    assert privacy is not None
    assert privacy.spent() == pytest.approx(price, rel=1e-9)
    assert reports[-1].clients["c3"].epsilon == pytest.approx(price, rel=1e-9)
    told = [len(report.clients["c3"].releases) for report in reports]
    # What a lost answer would have told comes with the next one.
    assert told == ([1, 0, trained - 1] if stage == "advert" else [1, 1, 1])
    others = found.clients["c0"].privacy
    assert others is not None
    assert others.spent() == pytest.approx(dp.epsilon(plan.event(12), plan.delta), rel=1e-9)


# ---- the draws ---------------------------------------------------------------------------------------------


def test_as_many_vanish_as_the_share_says_rounded_down() -> None:
    for share, clients, count in (
        (0.3, 8, 2),
        (0.3, 10, 3),
        (0.29, 100, 29),
        (2 / 3, 3, 2),
        (0.7 + 0.1, 5, 3),  # a hair below 0.8, as written
        (0.9999999999, 8, 7),
        (np.nextafter(1.0, 0.0), 3, 2),
        (0.2499999999, 8, 1),
        (0.1, 8, 0),
        (0.0, 8, 0),
        (0.99, 5, 4),
    ):
        names = [f"c{i}" for i in range(clients)]
        for number in range(1, 20):
            drawn = Dropouts(share, 3).draw(number, names)
            assert len(drawn) == count
            assert set(drawn) <= set(names)


@given(st.integers(1, 400), st.data())
def test_a_share_that_is_a_quotient_of_counts_gives_the_count(clients: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, clients - 1))
    assert vanishing(count / clients, clients) == count
    below, above = (math.nextafter(count / clients, end) for end in (-1.0, 1.0))
    assert count == 0 or vanishing(below, clients) == count - 1
    assert vanishing(above, clients) == count
    # As a person writes it: the decimal's value, counted exactly.
    written = f"{data.draw(st.floats(0, 0.999)):.3f}"
    assert vanishing(float(written), clients) == math.floor(Fraction(written) * clients)


def test_draws_follow_from_seed_round_and_clients_alone() -> None:
    names = [f"c{i}" for i in range(8)]
    once = [Dropouts(0.5, 7).draw(number, names) for number in range(30)]
    assert once == [Dropouts(0.5, 7).draw(number, reversed(names)) for number in range(30)]
    assert once != [Dropouts(0.5, 8).draw(number, names) for number in range(30)]
    assert len({tuple(sorted(each)) for each in once}) > 15


def test_each_client_and_each_stage_is_as_likely_and_one_in_four_is_late() -> None:
    from scipy import stats

    names, rounds = [f"c{i}" for i in range(5)], 2000
    drawn = [item for number in range(rounds) for item in Dropouts(0.4).draw(number, names).items()]
    assert len(drawn) == 2 * rounds

    def check(items: list[Any], kinds: Collection[Any]) -> None:
        counts = [items.count(kind) for kind in kinds]
        assert stats.chisquare(counts).pvalue > ALPHA

    check([drop.stage for _, drop in drawn], STAGES)
    # Two of five without replacement: the counts vary less than those of a multinomial.
    check([name for name, _ in drawn], names)
    late = sum(drop.late for _, drop in drawn)
    assert stats.binomtest(late, len(drawn), 0.25).pvalue > ALPHA
    with pytest.raises(AssertionError):
        check([drop.stage if drop.stage != "vector" else "advert" for _, drop in drawn], STAGES)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"a share of clients in \[0, 1\)"):
        Dropouts(share)


# ---- how many rounds a trial will lose ---------------------------------------------------------------------


def splits(gone: int) -> dict[tuple[str, ...], int]:
    """Every way in which so many clients vanish, by stages alone, with how often it is drawn of 5^gone."""
    return dict(Counter(tuple(sorted(each)) for each in product(STAGES, repeat=gone)))


@pytest.mark.parametrize(
    ("clients", "most", "policy"),
    [
        (5, 2, secagg.Policy()),
        (7, 2, secagg.Policy(min_clients=6)),
        (6, 2, secagg.Policy(min_clients=4, colluders=1, threshold_fraction=0.7)),
        (4, 2, secagg.Policy(min_clients=3, allow_three=True, colluders=0, threshold_fraction=0.55)),
    ],
)
def test_the_chance_of_a_round_is_that_of_real_ones_over_every_way_to_vanish(
    tmp_path: Path, clients: int, most: int, policy: secagg.Policy
) -> None:
    """No formula: clients and server play each way of vanishing once; it counts as often as it is drawn."""
    names, plan, weights = [f"c{i}" for i in range(clients)], {}, {}
    for gone in range(most + 1):
        for stages, weight in splits(gone).items():
            number = len(plan) + 1
            plan[number] = {n: Dropout(s, late=False) for n, s in zip(names, stages, strict=False)}
            weights[number] = (gone, weight)
    found = federation(tmp_path, quadratics(clients), policy=policy, dropouts=Planned(plan), scaffold=False)
    ok = Counter(dict.fromkeys(range(most + 1), 0))
    for number, (gone, weight) in weights.items():
        report = found.run_round()
        assert report.round == number
        ok[gone] += weight * (report.status == "ok")
    assert 0 < ok.total() < sum(5**gone for gone in ok), "some rounds fail and some do not"
    for gone, count in ok.items():
        assert chance(policy, clients, gone) == pytest.approx(count / 5**gone, rel=1e-12, abs=0)


def test_a_round_of_hundreds_that_almost_always_fails_is_not_told_to_be_impossible() -> None:
    """All must vanish at the advert, and five stay: one way of 5^995."""
    policy = secagg.Policy(min_clients=5, colluders=0, threshold_fraction=1.0)
    assert 0 < chance(policy, 1000, 995) < 1e-300
    assert chance(policy, 1000, 996) == 0
