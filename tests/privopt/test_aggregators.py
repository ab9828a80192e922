"""Aggregators: against their papers' formulas, and the same in clear as under masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import secagg
from privopt import Optimizer
from privopt.aggregators import Aggregator, FedNova, MaskedMean, Mean, Sum, make_aggregator
from privopt.registry import AGGREGATORS, list_aggregators
from tests.privopt.federated import Quadratic, federation, quadratics

WEIGHTS = st.sampled_from(["uniform", "samples", "steps"])
CONFIGS = {
    "fednova": st.fixed_dictionaries({"weight": WEIGHTS, "momentum": st.floats(0, 0.99)}),
    "masked-mean": st.fixed_dictionaries({"weight": WEIGHTS, "threshold": st.floats(0, 1)}),
    "mean": st.fixed_dictionaries({"weight": WEIGHTS}),
    "sum": st.fixed_dictionaries({"weight": WEIGHTS}),
}
SAMPLES, STEPS = (10, 3, 64, 25, 8), (4, 1, 7, 2, 16)
UPDATES = np.random.default_rng(5).normal(size=(5, 40))


def schema(how: Aggregator) -> secagg.Schema:
    most = how.most(max(SAMPLES), max(STEPS))
    return secagg.Schema(how.fields(UPDATES.shape[1], 4.0, 16, most, max(STEPS)))


def contributions(how: Aggregator) -> list[dict[str, Any]]:
    return [how.contribution(u, n, t) for u, n, t in zip(UPDATES, SAMPLES, STEPS, strict=True)]


def in_clear(how: Aggregator) -> npt.NDArray[np.floating[Any]]:
    return how.combine(secagg.reduce_clear(schema(how), contributions(how)))


def test_every_built_in_aggregator_is_under_contract() -> None:
    assert set(CONFIGS) == set(list_aggregators())


@pytest.mark.parametrize("name", list(CONFIGS))
@given(data=st.data())
def test_config_round_trips_with_non_default_values(name: str, data: st.DataObject) -> None:
    config = data.draw(CONFIGS[name])
    built = make_aggregator((name, config))
    again = make_aggregator((name, json.loads(json.dumps(built.get_config()))))
    assert again.get_config() == built.get_config() == config


@pytest.mark.parametrize("weight", ["uniform", "samples", "steps"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_secure_sum_gives_what_the_clear_one_gives_within_the_declared_precision(
    name: str, weight: str
) -> None:
    how = make_aggregator(name, weight)
    fields = schema(how)
    encoding = secagg.Encoding(fields, len(UPDATES))
    rounding = np.random.default_rng(1)
    words = [encoding.encode(values, rounding) for values in contributions(how)]
    reduced = encoding.decode(np.sum(words, axis=0, dtype=np.uint64), len(words))
    assert not any(reduced.clipped.values())
    clear = secagg.reduce_clear(fields, contributions(how))
    exact = [key for key in fields if key != "update"]
    for key in exact:
        assert np.array_equal(reduced.values[key], clear[key]), "counts and signs are exact"
    # What is done to the reduced update is linear in it, with this factor at most.
    factor = how.combine({**clear, "update": np.ones(UPDATES.shape[1])}).max()
    gap = np.abs(how.combine(reduced.values) - how.combine(clear)).max()
    assert 0 < gap <= factor * encoding.error_bound("update", len(words))


# ---- formulas -------------------------------------------------------------------------------------------


def test_the_mean_weighs_by_what_it_says() -> None:
    for weight, counts in (("uniform", np.ones(5)), ("samples", SAMPLES), ("steps", STEPS)):
        expected = np.average(UPDATES, axis=0, weights=counts)
        np.testing.assert_allclose(in_clear(Mean(weight=weight)), expected, rtol=1e-13)


def test_the_sum_is_the_sum_whatever_clients_count_as() -> None:
    for weight in ("uniform", "samples"):
        np.testing.assert_allclose(in_clear(Sum(weight=weight)), UPDATES.sum(axis=0), rtol=1e-12)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("weight", ["uniform", "samples"])
def test_the_masked_mean_damps_entries_below_the_threshold_by_their_agreement(
    threshold: float, weight: str
) -> None:
    p = np.array([1] * 5 if weight == "uniform" else SAMPLES, float)
    p /= p.sum()
    expected = np.zeros(UPDATES.shape[1])
    for j in range(len(expected)):  # Tenison et al. 2022: the mask is 1 from the threshold on, A below it
        agreement = abs(sum(p[i] * np.sign(UPDATES[i, j]) for i in range(5)))
        mask = 1.0 if agreement > threshold - 1e-12 else agreement
        expected[j] = mask * sum(p[i] * UPDATES[i, j] for i in range(5))
    found = in_clear(MaskedMean(threshold=threshold, weight=weight))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
    if threshold == 0.0:
        np.testing.assert_allclose(found, in_clear(Mean(weight=weight)), rtol=1e-13)


def test_where_clients_agree_or_cancel_out_the_masked_mean_keeps_or_drops() -> None:
    how = MaskedMean(threshold=0.5)
    updates = np.array([[1.0, 1.0, 0.0], [2.0, -1.0, 0.0], [3.0, 2.0, 0.0], [4.0, -6.0, 0.0]])
    fields = secagg.Schema(how.fields(3, 8.0, 16, 1, 1))
    found = how.combine(secagg.reduce_clear(fields, [how.contribution(u, 1, 1) for u in updates]))
    assert found.tolist() == [2.5, 0.0, 0.0]


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_fednova_divides_by_what_local_steps_amount_to(momentum: float) -> None:
    for steps in (1, 2, 7):
        velocity = moved = 0.0
        for _ in range(steps):  # heavy-ball steps along a gradient of one
            velocity = momentum * velocity + 1.0
            moved += velocity
        assert FedNova(momentum=momentum).amount(steps) == pytest.approx(moved, rel=1e-13)


@pytest.mark.parametrize("weight", ["uniform", "samples"])
def test_fednova_is_the_mean_of_steps_times_their_mean_number(weight: str) -> None:
    p = np.array([1] * 5 if weight == "uniform" else SAMPLES, float)
    p /= p.sum()
    tau = np.array(STEPS, float)
    expected = (p @ tau) * (p / tau) @ UPDATES  # Wang et al. 2020, with tau_eff = sum of p_i tau_i
    np.testing.assert_allclose(in_clear(FedNova(weight=weight)), expected, rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova_of_equal_steps_is_the_plain_mean(momentum: float) -> None:
    how = FedNova(momentum=momentum)
    values = [how.contribution(u, 1, 5) for u in UPDATES]
    fields = secagg.Schema(how.fields(UPDATES.shape[1], 4.0, 16, 1, 5))
    np.testing.assert_allclose(
        how.combine(secagg.reduce_clear(fields, values)), UPDATES.mean(axis=0), rtol=1e-12
    )


# ---- through a federation -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sum", "masked-mean", "fednova"])
def test_masked_and_clear_federations_agree_within_the_declared_precision(tmp_path: Path, name: str) -> None:
    each = {client: 1 + i for i, client in enumerate(quadratics())}
    found = [
        federation(
            tmp_path / str(masks), masks=masks, scaffold=False, aggregator=name, steps=each, client=_sgd
        )
        for masks in (False, True)
    ]
    clear, masked = (f.run_round() for f in found)
    assert (clear.status, masked.status) == ("ok", "ok")
    assert not any(masked.clipped.values())
    quantum = masked.bounds["update"] / (2**15 - 1)
    factor = {"sum": 5, "masked-mean": 1, "fednova": 3}[name]  # the mean of 1, 2, 3, 4 and 5 steps is 3
    gap = np.abs(found[0].server.weights.flatten() - found[1].server.weights.flatten()).max()
    assert 0 < gap <= factor * quantum


def _sgd() -> Optimizer:
    return Optimizer(0.1)


def test_fednova_in_a_federation_reaches_the_point_of_its_closed_form(tmp_path: Path) -> None:
    taus = {"c0": 1, "c1": 6, "c2": 3}
    problems = quadratics(3)
    curvatures = np.array([p.scale**2 for p in problems.values()])
    centers = np.array([p.points.mean(axis=0) for p in problems.values()])
    steps = np.array(list(taus.values()))
    pulls = (1 - (1 - 0.1 * curvatures) ** steps) / steps
    expected = (pulls[:, None] * centers).sum(axis=0) / pulls.sum()
    found = federation(
        tmp_path,
        problems,
        masks=False,
        scaffold=False,
        client=_sgd,
        steps=taus,
        sample_rate=1.0,
        aggregator="fednova",
    )
    list(found.run(100))
    assert np.abs(found.server.weights.coefs["w"] - expected).max() < 1e-6


def test_clients_refuse_steps_that_are_not_their_own(tmp_path: Path) -> None:
    each = dict.fromkeys(quadratics(), 3)
    found = federation(tmp_path, steps=each, masks=False)
    found.server.steps = {**each, "c1": 300}
    report = found.run_round()
    assert {n: c.status for n, c in report.clients.items()} == dict.fromkeys(each, "ok") | {"c1": "refused"}


def test_steps_are_wanted_for_every_client_or_time(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"clients \['c0', .*got steps=\{'c0': 3\}"):
        federation(tmp_path, steps={"c0": 3})
    with pytest.raises(ValueError, match="steps or seconds of a round, got neither"):
        federation(tmp_path, steps=None)
    with pytest.raises(ValueError, match="steps=\\{'c0': 0"):
        federation(tmp_path, {"c0": Quadratic(np.zeros((3, 2)))}, steps=0, masks=False)


# ---- mistakes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "weight", "error", "words"),
    [
        ("men", None, ValueError, "a known aggregator, got 'men'. Did you mean 'mean'"),
        (
            ("mean", {"weight": "rows"}),
            None,
            ValueError,
            "uniform, samples, steps for aggregator 'mean', got",
        ),
        (("mean", {"weight": "steps"}), "samples", ValueError, "weight='samples' in .* too, got 'steps'"),
        (Mean(weight="steps"), "samples", ValueError, "one of weight='samples' and Mean"),
        (("masked-mean", {"threshold": 2}), None, ValueError, r"threshold in \[0, 1\]"),
        (("fednova", {"momentum": 1}), None, ValueError, "0 <= momentum < 1"),
        (("mean", {"momentum": 1}), None, TypeError, "got 'momentum'"),
        (["mean"], None, TypeError, "an instance, a name, or"),
        (3, None, TypeError, "an instance, a name, or"),
    ],
)
def test_mistakes_are_named(spec: Any, weight: str | None, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make_aggregator(spec, weight)


def test_fednova_refuses_an_update_of_no_steps() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        FedNova().contribution(UPDATES[0], 1, 0)


# ---- one's own ------------------------------------------------------------------------------------------


class Half(Mean, register=False):
    """Half of the mean update."""

    name = "test-half"
    share: float = 0.5

    def combine(self, sums: Mapping[str, Any]) -> npt.NDArray[np.floating[Any]]:
        return self.share * super().combine(sums)


def test_an_aggregator_of_ones_own_runs_and_is_found_once_it_is_declared(tmp_path: Path) -> None:
    common: dict[str, Any] = {"masks": False, "scaffold": False, "client": _sgd}
    plain, half = (
        federation(tmp_path / name, aggregator=how, **common)
        for name, how in (("plain", "mean"), ("half", Half(share=0.25)))
    )
    for found in (plain, half):
        assert found.run_round().status == "ok"
    moved = plain.server.weights.flatten()
    np.testing.assert_allclose(half.server.weights.flatten(), 0.25 * moved, rtol=1e-14)
    with pytest.raises(ValueError, match="test-half"):
        make_aggregator("test-half")

    class Declared(Half):
        name = "test-declared-half"

    try:
        assert make_aggregator(("test-declared-half", {"share": 0.75})).get_config()["share"] == 0.75
        with pytest.raises(TypeError, match=r"privopt\.aggregators\.Mean has it"):

            class Again(Half):
                name = "mean"
    finally:
        del AGGREGATORS._classes["test-declared-half"]
