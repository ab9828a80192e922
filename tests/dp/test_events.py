"""Events: strict JSON round trips, and refusals that name the field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dp import PrivacyParameterError
from dp.events import (
    Epoch,
    Event,
    Gaussian,
    Poisson,
    Repeated,
    TruncatedPoisson,
    Unpriced,
    WithoutReplacement,
    event_from_dict,
)

gaussians = st.floats(0, 1e12).map(Gaussian)
counts = st.integers(1, 1000)
steps = st.one_of(
    gaussians,
    st.builds(Poisson, st.floats(0, 1), gaussians),
    st.builds(WithoutReplacement, counts.map(lambda n: n + 1000), counts, gaussians),
    st.builds(TruncatedPoisson, counts.map(lambda n: n + 1000), st.floats(0, 1), counts, gaussians),
    st.builds(Epoch, counts, gaussians),
)
events = st.one_of(steps, st.builds(Repeated, steps, st.integers(0, 2**53 - 1)), st.text().map(Unpriced))


@given(events)
def test_an_event_survives_json_text(event: Event) -> None:
    again = event_from_dict(json.loads(json.dumps(event.to_dict())))
    assert again == event
    assert hash(again) == hash(event)
    assert json.dumps(again.to_dict()) == json.dumps(event.to_dict())


@given(events)
def test_a_missing_or_additional_key_is_refused(event: Event) -> None:
    plain = event.to_dict()
    for name in plain:
        with pytest.raises(PrivacyParameterError):
            event_from_dict({k: v for k, v in plain.items() if k != name})
    with pytest.raises(PrivacyParameterError, match="note"):
        event_from_dict({**plain, "note": 1})


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        [],
        {},
        {"kind": "laplace", "scale": 1.0},
        {"kind": "gaussian", "noise_multiplier": "1"},
        {"kind": "gaussian", "noise_multiplier": -1.0},
        {"kind": "gaussian", "noise_multiplier": float("nan")},
        {"kind": "poisson", "sample_rate": 1.1, "event": {"kind": "gaussian", "noise_multiplier": 1.0}},
        {"kind": "repeated", "count": 1.5, "event": {"kind": "gaussian", "noise_multiplier": 1.0}},
        {"kind": "repeated", "count": -1, "event": {"kind": "gaussian", "noise_multiplier": 1.0}},
        {"kind": "repeated", "count": 1, "event": {"kind": "unpriced", "reason": "x"}},
    ],
)
def test_what_is_no_event_is_refused(value: Any) -> None:
    with pytest.raises(PrivacyParameterError):
        event_from_dict(value)


def test_the_constructor_names_the_field_and_the_value() -> None:
    with pytest.raises(PrivacyParameterError, match=r"noise_multiplier=-1\.0"):
        Gaussian(-1.0)
    with pytest.raises(PrivacyParameterError, match=r"sample_rate=1\.5"):
        Poisson(1.5, Gaussian(1.0))
    with pytest.raises(PrivacyParameterError, match="count=-3"):
        Repeated(Gaussian(1.0), -3)
    with pytest.raises(PrivacyParameterError, match="batch_size=11"):
        WithoutReplacement(10, 11, Gaussian(1.0))
    with pytest.raises(PrivacyParameterError, match="max_batch_size=0"):
        TruncatedPoisson(10, 0.5, 0, Gaussian(1.0))
    with pytest.raises(TypeError, match="num_batches"):
        Epoch(1.0, Gaussian(1.0))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="noise_multiplier"):
        Gaussian("1")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Gaussian"):
        Poisson(0.5, Unpriced("x"))  # type: ignore[arg-type]


def test_integers_and_negative_zero_give_the_same_json_as_floats() -> None:
    assert json.dumps(Gaussian(1).to_dict()) == json.dumps(Gaussian(1.0).to_dict())
    assert json.dumps(Gaussian(-0.0).to_dict()) == json.dumps(Gaussian(0.0).to_dict())


def test_an_event_prints_short() -> None:
    assert str(Repeated(Poisson(0.2, Gaussian(1.18)), 5)) == "5 × poisson(q=0.2, gaussian(z=1.18))"
    assert str(WithoutReplacement(10, 2, Gaussian(1))) == "without-replacement(2 of 10, gaussian(z=1))"
    assert str(Epoch(5, Gaussian(1))) == "epoch(5 batches, gaussian(z=1))"
    truncated = TruncatedPoisson(10, 0.2, 3, Gaussian(1))
    assert str(truncated) == "truncated-poisson(q=0.2, at most 3 of 10, gaussian(z=1))"
