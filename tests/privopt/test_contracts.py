"""Every plug-in of the package under the public contract, and plug-ins that break it caught by it."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dp
from privopt import (
    AuxVar,
    Optimizer,
    OptiModule,
    Schedule,
    Vector,
    adaptive,
    counted,
    executor,
    public,
    state,
    summed,
)
from privopt.aggregators import Aggregator
from privopt.plugin import Plugin
from privopt.registry import OPTI_MODULES
from privopt.testing import (
    AgreementContract,
    ContractError,
    PluginContract,
    Subject,
    check_config,
    check_declaration,
    check_plugin,
    check_resume,
    check_survives_kill,
    configs_of,
    registered,
)

PLUGINS = registered("privopt")
STEPPING = [plugin for plugin in PLUGINS if plugin._kind() in ("module", "regularizer")]

VARIANTS = {
    "adabelief": [{"amsgrad": True}],
    "adam": [{"amsgrad": True}],
    "lookahead": [{"period": 2}],
    "momentum": [{"nesterov": True}],
    "nadam": [{"amsgrad": True}],
    "normalize": [{"per_tensor": True}],
    "radam": [{"beta_2": 0.95}],  # within the steps of a life both of its branches
    "scaffold-client": [{"option": 1}],
    "schedule-free": [{"power": 1.5}],
}
"""What takes another way through a plug-in than its defaults."""


class TestBuiltIn(PluginContract):
    plugins = PLUGINS
    configs = VARIANTS
    values: ClassVar[Mapping[str, Any]] = {
        "scaffold-client.option": st.sampled_from([1, 2]),
        "one-cycle.anneal_strategy": st.sampled_from(["cos", "linear"]),
        "piecewise.boundaries": st.just([3, 9]),
        "piecewise.factors": st.lists(st.floats(0.1, 2.0), min_size=2, max_size=2),
        "piecewise.values": st.just([]),
        "reduce-on-plateau.mode": st.sampled_from(["min", "max"]),
        "reduce-on-plateau.threshold_mode": st.sampled_from(["rel", "abs"]),
        "warmup.then": st.sampled_from(["cosine", ["linear", {"duration": 4}]]),
    }
    frameworks = ("numpy", "torch")
    dtypes = ("float32",)
    examples = 12


ON_JAX = [
    "adam",
    "centralize",
    "fedprox",
    "gaussian-noise",
    "l2-clipping",
    "lamb",
    "lion",
    "lookahead",
    "scaffold-client",
]
"""One of each kind of arithmetic: moments, rows, references, randomness, norms, signs, weights, rounds."""


class TestSomeOnJax(AgreementContract):
    plugins = tuple(p for p in STEPPING if p.name in ON_JAX)
    frameworks = ("jax",)
    dtypes = ("float32",)
    test_executors_agree = None


@pytest.mark.slow
class TestBuiltInCompiledByFrameworks(AgreementContract):
    plugins = STEPPING
    configs = VARIANTS
    frameworks = ("jax", "tensorflow")


@pytest.mark.slow
class TestBuiltInInDoublePrecision(AgreementContract):
    plugins = STEPPING
    configs = VARIANTS
    frameworks = ("numpy", "torch")
    dtypes = ("float64",)


def test_a_chain_that_is_killed_and_started_again_ends_where_an_undisturbed_one_does() -> None:
    chain = Optimizer(
        ("cosine", {"base": 0.1, "duration": 30}),
        w_decay=0.01,
        regularizers=["fedprox"],
        modules=[
            "scaffold-client",
            ("adam", {"amsgrad": True}),
            ("momentum", {"round_reset": True}),
            "lookahead",
        ],
    )
    check_survives_kill(chain.get_config(), steps=24, kills=(5, 7))


# ---- the suite itself: it can fail -----------------------------------------------------------------------


class Honest(OptiModule, register=False):
    """Does everything right, with all that can go wrong below."""

    name = "honest"
    rate: float = 0.5
    every: int = 2
    signed: bool = False
    round_reset: bool = False
    memory: Vector = state(0.0)
    last: Vector | None = state(None)
    count: int = state(0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(
            self.rate > 0 and self.every > 0, "rate > 0, every > 0", rate=self.rate, every=self.every
        )

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        self.count += 1
        self.memory = self.rate * self.memory + gradients
        if self.count % self.every == 0:
            self.last = weights.copy()
        direction = self.memory if self.last is None else self.memory + 0.1 * (weights - self.last)
        return direction.sign() if self.signed else direction


class LosesAField(Honest, register=False):
    """Its config leaves out what it declares."""

    def get_config(self) -> dict[str, Any]:
        return {key: value for key, value in super().get_config().items() if key != "rate"}


class RoundsAField(Honest, register=False):
    """What it tells is not what it was given."""

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "rate": round(self.rate, 1)}


class TakesEverything(Honest, register=False):
    """Checks no types."""

    def __post_init__(self) -> None:
        pass


class SwallowsUnknownKeys(Honest, register=False):
    """A misspelled parameter is the default."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> SwallowsUnknownKeys:
        return cls(**{key: value for key, value in config.items() if key in ("rate", "every", "signed")})


class CountsInSecret(Honest, register=False):
    """Keeps a number that nobody declared."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._calls = 0

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        self._calls += 1
        return super().run(gradients, weights) * (1.0 + self._calls)


class HidesAnObject(Honest, register=False):
    """Keeps a number where no attribute shows it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._calls = itertools.count(1)

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        return super().run(gradients, weights) * float(next(self._calls))


class KeepsAVectorInSecret(Honest, register=False):
    """Keeps a Vector that nobody declared."""

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        before = getattr(self, "_before", 0.0)
        self._before = gradients * 1.0
        return super().run(gradients, weights) + before


class ChangesAHyperParameter(Honest, register=False):
    """Its configuration is another one after a step."""

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        self.rate *= 0.9
        return super().run(gradients, weights)


class WritesIntoGradients(Honest, register=False):
    """Computes in the caller's memory."""

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        gradients *= 2.0
        return super().run(gradients, weights)


class WritesIntoWeights(Honest, register=False):
    """Moves the weights itself."""

    def finish(self, updates: Vector, weights: Vector) -> Vector:
        weights *= 0.5
        return updates


class KeepsWhatItWasGiven(Honest, register=False):
    """Its state is the caller's array, which a hook got."""

    seen: Vector | None = state(None)

    def on_round_trained(self, weights: Vector) -> None:
        self.seen = weights


class KeepsWhatWasSent(Honest, register=False):
    """Its state is the array of the update that is on its way."""

    seen: Vector | None = state(None)

    def on_update_sent(self, update: Vector) -> None:
        self.seen = update


class KeepsWhatAStepHandsIt(Honest, register=False):
    """Its state is what `run` was given, which is its own."""

    seen: Vector | None = state(None)
    at: Vector | None = state(None)

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        self.seen, self.at = gradients, weights
        return super().run(gradients, weights)


class HandsOutItsState(Honest, register=False):
    """Gives its state away instead of a copy."""

    def get_state(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in self._state}


class ForgetsRoundReset(Honest, register=False):
    """Overrides a hook and leaves out what it did."""

    def on_round_start(self) -> None:
        pass


class AlwaysForgets(Honest, register=False):
    """Forgets whether or not it should."""

    def on_round_start(self) -> None:
        self.reset()


class ResetsByHalf(Honest, register=False):
    """Forgets one of its states."""

    def reset(self) -> None:
        self.memory = 0.0


class RestoresByHalf(Honest, register=False):
    """Leaves its count out of what it saves."""

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "count": 0}


class CollectsAList(Honest, register=False):
    """Changes a state in place, so that it cannot be taken back."""

    seen: Any = state(None)

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        if self.seen is None:
            self.seen = []
        self.seen.append(1.0)
        return super().run(gradients, weights)


class Widens(Honest, register=False):
    """Gives float64, whatever it got."""

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        return super().run(gradients, weights).astype("float64")


class GivesNothing(Honest, register=False):
    """Its author forgot to return."""

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        super().run(gradients, weights)
        return None  # type: ignore[return-value]


class DividesByZero(Honest, register=False):
    """Gives no number where a square underflows."""

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        tiny = gradients * 1e-4
        return super().run(gradients, weights) * tiny / (tiny * tiny).sqrt()


_CALLS = itertools.count(1)


class CountsForAll(Honest, register=False):
    """Shares a count with all others of its class."""

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        return super().run(gradients, weights) * (1.0 + 1.0 / next(_CALLS))


class DrawsFromNowhere(Honest, register=False):
    """Takes randomness from numpy's global generator."""

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        return super().run(gradients, weights) * (1.0 + np.random.random())  # noqa: NPY002 - that is the fault


class FavoursNumpy(Honest, register=False):
    """Computes something else in other frameworks."""

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        factor = 1.0 if gradients.framework == "numpy" else 1.0 + 1e-5
        return factor * super().run(gradients, weights)


class NoticesTheExecutor(Honest, register=False):
    """Computes something else when its step is recorded."""

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        factor = 1.0 + 1e-7 if type(gradients).__name__ == "Recorded" else 1.0
        return factor * super().run(gradients, weights)


CONFIG = "test_config_survives_json_with_values_other_than_the_defaults"
REFUSED = "test_wrong_types_and_unknown_keys_are_refused_by_name"
RESUMES = "test_a_run_that_stops_anywhere_resumes_bit_for_bit"
DECLARED = "test_what_changes_is_declared"
CALLER = "test_the_callers_arrays_are_never_written_to"
MEMORY = "test_states_own_their_memory"
FAILED = "test_a_step_that_fails_changes_nothing"
RESET = "test_reset_makes_it_fresh"
ROUND_RESET = "test_round_reset_forgets_when_a_round_starts"
LAYOUT = "test_layout_and_dtype_are_kept_and_numbers_stay_finite"
EQUAL = "test_equal_instances_do_equal_things"
FRAMEWORKS = "test_frameworks_agree"
EXECUTORS = "test_executors_agree"
SHARED = "test_what_is_sent_adds_up_as_declared"
VERIFIED = "test_what_is_received_is_verified"
RATES = "test_rates_follow_from_counts_and_go_on_from_a_saved_state"
COMBINED = "test_updates_combine_in_any_order_and_under_masks"


def broken_promises(plugin: type[Plugin], **settings: Any) -> dict[str, Exception]:
    """The tests that a plug-in fails, with the first error of each."""
    few: dict[str, Any] = {"frameworks": ("numpy",), "executors": (), "dtypes": ("float32",)}
    attributes = {"plugins": [plugin], "examples": 6, **few, **settings}
    contract: Any = type("TestOfOne", (PluginContract,), attributes)
    found: dict[str, Exception] = {}
    for test in contract.promises():
        for case in contract.cases(test):
            try:
                getattr(contract(), test)(**case)
            except Exception as error:  # noqa: BLE001 - whatever a broken plug-in does
                found.setdefault(test, error)
    return found


@pytest.mark.parametrize("plugin", [Honest, KeepsWhatAStepHandsIt])
def test_a_plug_in_that_does_everything_right_passes(plugin: type[Plugin]) -> None:
    assert broken_promises(plugin, frameworks=("numpy", "torch"), executors=("blocked",)) == {}


@pytest.mark.parametrize(
    ("plugin", "tests"),
    [
        (LosesAField, {CONFIG}),
        (RoundsAField, {CONFIG}),
        (TakesEverything, {REFUSED}),
        (SwallowsUnknownKeys, {CONFIG, REFUSED}),
        (CountsInSecret, {RESUMES, DECLARED, RESET}),
        (HidesAnObject, {RESUMES, RESET}),
        (KeepsAVectorInSecret, {DECLARED}),
        (ChangesAHyperParameter, {RESUMES, DECLARED, RESET}),
        (WritesIntoGradients, {CALLER}),
        (WritesIntoWeights, {CALLER}),
        (KeepsWhatItWasGiven, {MEMORY}),
        (KeepsWhatWasSent, {MEMORY}),
        (HandsOutItsState, {MEMORY}),
        (ForgetsRoundReset, {ROUND_RESET}),
        (AlwaysForgets, {ROUND_RESET}),
        (ResetsByHalf, {RESET, ROUND_RESET}),
        (RestoresByHalf, {RESUMES}),
        (CollectsAList, {FAILED}),
        (Widens, {LAYOUT}),
        (GivesNothing, {LAYOUT}),
        (DividesByZero, {LAYOUT}),
        (CountsForAll, {EQUAL, RESUMES}),
        (DrawsFromNowhere, {EQUAL, RESUMES}),
        (FavoursNumpy, {FRAMEWORKS}),
        (NoticesTheExecutor, {EXECUTORS}),
    ],
)
def test_a_plug_in_that_breaks_a_promise_fails_its_tests(plugin: type[Plugin], tests: set[str]) -> None:
    found = broken_promises(
        plugin,
        frameworks=("numpy", "torch") if FRAMEWORKS in tests else ("numpy",),
        executors=("blocked",) if EXECUTORS in tests else (),
    )
    assert tests <= set(found)
    for test in tests:
        assert plugin.name in str(found[test]), "the message names the plug-in"


class Total(AuxVar, register=False):
    name = "total"
    gradient: Vector = summed(bound=8.0, bits=16)
    clients: int = counted(at_most=1)


class OtherTotal(Total, register=False):
    name = "other-total"


class Answer(AuxVar, register=False):
    name = "answer"
    mean: Vector = public()


class HonestServer(OptiModule, register=False):
    """Sums what its clients send."""

    name = "honest-server"
    aux_name: ClassVar[str | None] = "honest-sharing"
    total: Vector | None = state(None)
    clients: int = state(0)

    def run(self, gradients: Vector) -> Vector:
        return gradients

    def process_aux_var(self, aux_var: AuxVar) -> None:
        if not isinstance(aux_var, Total):
            raise TypeError(f"Expected a Total, got {type(aux_var).__name__}.")
        self.total, self.clients = aux_var.gradient.copy(), self.clients + aux_var.clients

    def collect_aux_var(self) -> Answer | None:
        return None if self.total is None else Answer(mean=self.total / max(1, self.clients))


class HonestClient(OptiModule, register=False):
    """Sends the last gradient of a round, and adds what comes back."""

    name = "honest-client"
    aux_name: ClassVar[str | None] = "honest-sharing"
    aux_var: ClassVar[type[AuxVar] | None] = Total
    last: Vector = state(0.0)
    mean: Vector = state(0.0)

    def run(self, gradients: Vector) -> Vector:
        self.last = gradients.copy()
        return gradients + 0.1 * self.mean

    def collect_aux_var(self) -> Total:
        return Total(gradient=self.last.copy(), clients=1)

    def process_aux_var(self, aux_var: AuxVar) -> None:
        if not isinstance(aux_var, Answer):
            raise TypeError(f"Expected an Answer, got {type(aux_var).__name__}.")
        self.mean = aux_var.mean.copy()


class SendsAnother(HonestClient, register=False):
    """Sends what it did not declare."""

    def collect_aux_var(self) -> Total:
        return OtherTotal(gradient=self.last.copy(), clients=1)


class PassesItsBound(HonestClient, register=False):
    """Sends more than masks can carry."""

    def collect_aux_var(self) -> Total:
        return Total(gradient=100.0 * self.last, clients=1)


class AdaptiveTotal(Total, register=False):
    name = "adaptive-total"
    gradient: Vector = summed(bound=adaptive(initial=1e-3), bits=16)


class PassesWhereItsBoundStarts(HonestClient, register=False):
    """Sends more than its bound starts with, as first rounds do."""

    aux_var: ClassVar[type[AuxVar] | None] = AdaptiveTotal

    def collect_aux_var(self) -> Total:
        return AdaptiveTotal(gradient=100.0 * self.last, clients=1)


class CappedTotal(Total, register=False):
    name = "capped-total"
    gradient: Vector = summed(bound=adaptive(at_most=8.0), bits=16)


class PassesItsCap(HonestClient, register=False):
    """Sends more than its bound ever adapts to."""

    aux_var: ClassVar[type[AuxVar] | None] = CappedTotal

    def collect_aux_var(self) -> Total:
        return CappedTotal(gradient=100.0 * self.last, clients=1)


class TakesAnything(HonestClient, register=False):
    """Does not look at what it gets."""

    def process_aux_var(self, aux_var: AuxVar) -> None:
        self.mean = getattr(aux_var, "mean", self.mean)


class SumsByHalf(Total, register=False):
    """Combines its clients in a way of its own."""

    name = "sums-by-half"

    @classmethod
    def aggregate(cls, aux_vars: Sequence[AuxVar]) -> Any:
        combined = super().aggregate(aux_vars)
        combined.gradient = combined.gradient * 0.5
        return combined


class SendsWhatSumsByHalf(HonestClient, register=False):
    aux_var: ClassVar[type[AuxVar] | None] = SumsByHalf

    def collect_aux_var(self) -> Total:
        return SumsByHalf(gradient=self.last.copy(), clients=1)


@pytest.fixture
def in_the_table() -> Iterator[None]:
    """The honest halves as registered plug-ins, for as long as a test runs."""
    for half in (HonestClient, HonestServer):
        OPTI_MODULES.add(half)
    yield
    for half in (HonestClient, HonestServer):
        del OPTI_MODULES._classes[half.name]


@pytest.mark.usefixtures("in_the_table")
@pytest.mark.parametrize(
    ("plugin", "tests"),
    [
        (HonestClient, set()),
        (HonestServer, set()),
        (SendsAnother, {SHARED}),
        (PassesItsBound, {SHARED}),
        (PassesWhereItsBoundStarts, set()),
        (PassesItsCap, {SHARED}),
        (TakesAnything, {VERIFIED}),
        (SendsWhatSumsByHalf, {SHARED}),
    ],
)
def test_sharing_that_breaks_a_promise_fails_its_tests(plugin: type[Plugin], tests: set[str]) -> None:
    assert set(broken_promises(plugin)) - {"test_it_is_found_by_its_name_and_tells_what_it_declares"} == tests


def test_a_module_that_exchanges_with_nobody_is_told_to_register_its_counterpart() -> None:
    with pytest.raises(ContractError, match="a registered counterpart with aux_name='honest-sharing'"):
        check_resume(Subject(HonestClient))


class HonestSchedule(Schedule, register=False):
    """Falls as one over t."""

    name = "honest-schedule"
    half: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.half > 0, "half > 0", half=self.half)

    def rate(self, t: int) -> float:
        return float(self.base * self.half / (self.half + t))


class RatesBySecret(HonestSchedule, register=False):
    """Its rate depends on how often it was asked."""

    def rate(self, t: int) -> float:
        self._asked = getattr(self, "_asked", 0) + 1
        return super().rate(self._asked)


class RatesByClock(HonestSchedule, register=False):
    """Its rate depends on when it was asked."""

    def rate(self, t: int) -> float:
        return super().rate(t) * (1.0 + 1.0 / next(_CALLS))


class ForgetsRounds(HonestSchedule, register=False):
    """Its state leaves out a count."""

    best: float = state(0.0)

    def feed(self, metric: float) -> None:
        self.best = max(self.best, metric)

    def rate(self, t: int) -> float:
        return super().rate(t) / (1.0 + self.best)

    def get_state(self) -> dict[str, Any]:
        return {**super().get_state(), "best": 0.0}


@pytest.mark.parametrize(
    ("plugin", "tests"),
    [
        (HonestSchedule, set()),
        (RatesBySecret, {RATES}),
        (RatesByClock, {RATES}),
        (ForgetsRounds, {RATES}),
    ],
)
def test_a_schedule_that_breaks_a_promise_fails_its_tests(plugin: type[Plugin], tests: set[str]) -> None:
    assert set(broken_promises(plugin)) == tests


class HonestAggregator(Aggregator, register=False):
    """The mean, under another name."""

    name = "honest-aggregator"


class LastOneWins(HonestAggregator, register=False):
    """Its result depends on who comes last."""

    def contribution(self, update: Any, samples: int, steps: int) -> dict[str, Any]:
        self._last = update
        return super().contribution(update, samples, steps)

    def combine(self, sums: Mapping[str, Any]) -> Any:
        return super().combine(sums) + 0.1 * next(_CALLS) * self._last


class ForgetsAField(HonestAggregator, register=False):
    """Puts in less than it declares."""

    def contribution(self, update: Any, samples: int, steps: int) -> dict[str, Any]:
        return {"update": update}


class TakesNamesOfOthers(HonestAggregator, register=False):
    """Has a field that a module's aux-var might have."""

    def fields(self, *args: Any) -> Any:
        return {**super().fields(*args), "scaffold.delta": counted()}

    def contribution(self, update: Any, samples: int, steps: int) -> dict[str, Any]:
        return {**super().contribution(update, samples, steps), "scaffold.delta": 1}


class ScalesInPlace(HonestAggregator, register=False):
    """Computes in the client's memory."""

    def contribution(self, update: Any, samples: int, steps: int) -> dict[str, Any]:
        update *= 0.5
        return super().contribution(update, samples, steps)


@pytest.mark.parametrize(
    ("plugin", "tests"),
    [
        (HonestAggregator, set()),
        (LastOneWins, {COMBINED}),
        (ForgetsAField, {COMBINED}),
        (TakesNamesOfOthers, {COMBINED}),
        (ScalesInPlace, {COMBINED}),
    ],
)
def test_an_aggregator_that_breaks_a_promise_fails_its_tests(plugin: type[Plugin], tests: set[str]) -> None:
    assert set(broken_promises(plugin)) == tests


# ---- using the suite --------------------------------------------------------------------------------------


def test_one_function_does_without_pytest() -> None:
    settings: dict[str, Any] = {"frameworks": ["numpy"], "executors": ["blocked"], "examples": 5}
    assert check_plugin(Honest, configs=[{"signed": True}], **settings) > 40
    with pytest.raises(ContractError, match="Expected a run that stops after") as caught:
        check_plugin(HidesAnObject, **settings)
    assert RESUMES in str(caught.value.__notes__)
    with pytest.raises(TypeError, match=r"settings among .*, got \['framework'\]"):
        check_plugin(Honest, framework=["numpy"])


class Chooses(OptiModule, register=False):
    """Takes one of a few strings, which its annotation does not tell."""

    name = "chooses"
    mode: str = "a"
    of: Literal["x", "y"] = "x"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect(self.mode in ("a", "b"), "mode 'a' or 'b'", mode=self.mode)

    def run(self, gradients: Vector) -> Vector:
        return gradients


def test_values_that_no_annotation_tells_are_asked_for() -> None:
    with pytest.raises(ContractError, match=r"other than the default for 'mode'.*values=\{'mode'"):
        check_config(Subject(Chooses))
    for key in ("mode", "chooses.mode"):
        check_config(Subject(Chooses), {key: st.sampled_from(["a", "b"])})


def test_every_value_that_is_drawn_is_one_that_the_constructor_takes_and_not_the_default() -> None:
    subject = Subject(Honest)

    @settings(max_examples=30, derandomize=True, database=None)
    @given(config=configs_of(subject))
    def hold(config: dict[str, Any]) -> None:
        built = Honest(**config)
        assert set(config) == {"rate", "every", "signed", "round_reset"}
        assert all(getattr(built, key) == value for key, value in config.items())
        assert all(getattr(Honest(), key) != value for key, value in config.items())

    hold()


@pytest.mark.parametrize(
    ("attributes", "error", "words"),
    [
        ({"plugins": Honest}, TypeError, "a list of plug-in classes"),
        ({"plugins": [Honest()]}, TypeError, "a list of plug-in classes"),
        ({"plugins": [Honest], "configs": {"honst": [{}]}}, ValueError, r"those of \['honst'\]"),
        (
            {"plugins": [Honest], "frameworks": ["nump"]},
            ValueError,
            r"frameworks among \['numpy', .*got 'nump'",
        ),
        ({"plugins": [Honest], "frameworks": "numpy"}, TypeError, r"a list of frameworks.*Write \['numpy'\]"),
        ({"plugins": [Honest], "executors": ["fast"]}, ValueError, r"executors among \['auto', .*got 'fast'"),
        ({"plugins": [Honest], "dtypes": ["f4"]}, ValueError, r"dtypes among \['float16', .*got 'f4'"),
    ],
)
def test_mistakes_in_using_it_are_named(attributes: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        type("TestOfOne", (PluginContract,), attributes)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("adam", r"a plug-in class, got 'adam' \(str\)\. `list_optim_modules\(\)\[name\]`"),
        (Honest(), r"a plug-in class, got Honest\(.*\) \(Honest\)\. Write Honest\."),
        (Total, r"a plug-in class, got <class '.*Total'> \(type\)"),
        (None, r"a plug-in class, got None"),
    ],
)
def test_what_is_no_class_of_a_plug_in_is_refused(given: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        check_plugin(given)


def test_a_parameter_that_is_one_of_a_few_small_numbers_needs_no_values() -> None:
    drawn = set()

    @settings(max_examples=20, derandomize=True, database=None)
    @given(config=configs_of(Subject(OPTI_MODULES.find("scaffold-client"))))
    def draw(config: dict[str, Any]) -> None:
        drawn.add(config["option"])

    draw()
    assert drawn == {1}


@pytest.mark.parametrize("plugin", [DrawsFromNowhere, CountsForAll])
def test_what_differs_from_run_to_run_is_told_to_draw_from_a_source_not_to_declare_a_state(
    plugin: type[Plugin],
) -> None:
    with pytest.raises(ContractError, match=r"Draw from a declared source, `source: dataclasses\.InitVar"):
        check_resume(Subject(plugin))
    with pytest.raises(
        ContractError, match=r"Declare what changes: `name: Vector = state\(0\.0\)`"
    ) as caught:
        check_resume(Subject(CountsInSecret))
    assert "source" not in str(caught.value)


def test_the_source_that_the_message_asks_for_passes() -> None:
    class DrawsFromItsSource(Honest, register=False):
        """Numbers its draws, and takes them from a source that is given to it."""

        name = "draws-from-its-source"
        source: dataclasses.InitVar[dp.random.Source | None] = dataclasses.field(default=None, kw_only=True)
        draws: int = state(0)

        def __post_init__(self, source: dp.random.Source | None = None) -> None:
            super().__post_init__()
            self._source = source if source is not None else dp.random.secure_source()

        def run(self, gradients: Vector, weights: Vector) -> Vector:
            self.draws += 1
            factor = float(dp.noise.gaussian(1, 1.0, self._source.stream(f"{self.name}/{self.draws}"))[0])
            return factor * super().run(gradients, weights)

    check_resume(Subject(DrawsFromItsSource))


class CollectsTooMany(Honest, register=False):
    """Means `collect_aux_var`."""

    def collect_aux_vars(self) -> None:
        pass


class WithoutDocstring(Honest, register=False):
    name = "without-docstring"


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        (CollectsTooMany, r"got 'collect_aux_vars', which nobody calls\. Did you mean 'collect_aux_var'\?"),
        (WithoutDocstring, r"without-docstring: Expected a docstring"),
    ],
)
def test_a_misspelt_method_and_a_missing_docstring_fail_the_declaration(
    plugin: type[Plugin], words: str
) -> None:
    with pytest.raises(ContractError, match=words):
        check_declaration(Subject(plugin))


def test_a_package_without_plug_ins_is_told_how_to_register_them() -> None:
    with pytest.raises(ValueError, match=r"registered by package 'no_such'.*privopt\.plugins"):
        registered("no_such")


def test_tests_that_no_plug_in_needs_are_left_out() -> None:
    class TestOfASchedule(PluginContract):
        plugins = (HonestSchedule,)

    left = set(TestOfASchedule.promises())
    assert RATES in left
    assert not left & {LAYOUT, SHARED, COMBINED, EXECUTORS}


def test_an_instance_may_be_made_by_a_function_of_ones_own() -> None:
    class Needs(OptiModule, register=False):
        """Takes what is no hyper-parameter."""

        name = "needs"
        rate: float = 0.5
        factor: dataclasses.InitVar[float] = 1.0

        def __post_init__(self, factor: float = 1.0) -> None:
            super().__post_init__()
            self._factor = factor

        def run(self, gradients: Vector) -> Vector:
            return self._factor * self.rate * gradients

    made = []

    def make(**config: Any) -> Needs:
        made.append(config)
        return Needs(factor=2.0, **config)

    assert check_plugin(Needs, make=make, frameworks=["numpy"], executors=["blocked"], examples=3) > 20
    assert {} in made


def test_importing_privopt_loads_no_test_framework() -> None:
    for module, others in (("privopt", ["privopt.testing"]), ("privopt.testing", ["torch", "numba", "jax"])):
        unwanted = ["pytest", "hypothesis", *others]
        code = f"import sys, {module}; print([m for m in {unwanted} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


# ---- third parties ----------------------------------------------------------------------------------------

ACME = '''
"""Plug-ins of somebody else."""
from privopt import OptiModule, Regularizer, Schedule, Vector, state
from privopt.aggregators import Aggregator


class Signum(OptiModule):
    """The sign of the momentum."""

    name = "acme-signum"
    beta: float = 0.9
    round_reset: bool = False
    velocity: Vector = state(0.0)

    def __post_init__(self):
        super().__post_init__()
        self._expect(0 <= self.beta < 1, "0 <= beta < 1", beta=self.beta)

    def run(self, gradients):
        self.velocity = self.beta * self.velocity + gradients
        return self.velocity.sign()


class Shrink(Regularizer):
    """A pull to zero."""

    name = "acme-shrink"
    strength: float = 0.1

    def run(self, gradients, weights):
        return gradients + self.strength * weights


class Stairs(Schedule):
    """Halved every few steps."""

    name = "acme-stairs"
    every: int = 10

    def __post_init__(self):
        super().__post_init__()
        self._expect(self.every > 0, "every > 0", every=self.every)

    def rate(self, t):
        return self.base * 0.5 ** (t // self.every)


class Halved(Aggregator):
    """Half of the mean update."""

    name = "acme-halved"

    def combine(self, sums):
        return 0.5 * super().combine(sums)


class Unlisted(OptiModule, register=False):
    """Found by nobody."""

    name = "acme-unlisted"

    def run(self, gradients):
        return gradients
'''
TEST_ACME = """
from privopt.testing import PluginContract, registered

class TestAcme(PluginContract):
    plugins = registered("acme_plugins")


def test_they_are_found_by_name():
    from privopt import Optimizer, list_aggregators, list_optim_modules
    from privopt import list_optim_regularizers, list_rate_schedulers

    assert list_optim_modules()["acme-signum"].__module__ == "acme_plugins"
    assert "acme-unlisted" not in list_optim_modules()
    assert "acme-shrink" in list_optim_regularizers()
    assert "acme-stairs" in list_rate_schedulers()
    assert "acme-halved" in list_aggregators()
    Optimizer(("acme-stairs", {"base": 0.1}), regularizers=["acme-shrink"], modules=["acme-signum"])
"""


def write_distribution(folder: Path, name: str, entry: str) -> None:
    """What installing a package leaves beside it."""
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[privopt.plugins]\n{name} = {entry}\n")


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *(p for p in sys.path if p)])}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_a_third_partys_three_lines_test_all_of_its_plug_ins(tmp_path: Path) -> None:
    (tmp_path / "acme_plugins.py").write_text(ACME)
    (tmp_path / "test_acme.py").write_text(TEST_ACME)
    write_distribution(tmp_path, "acme", "acme_plugins")
    # Frameworks take long to load, and agree above.
    done = python(
        tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not agree and not bfloat16", "."
    )
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 40


def test_a_third_partys_mistakes_are_told_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "takes_a_name.py").write_text(
        "from privopt import OptiModule\n\nclass MyAdam(OptiModule):\n    name = 'adam'\n"
    )
    write_distribution(tmp_path, "taker", "takes_a_name")
    write_distribution(tmp_path, "gone", "no_such_module")
    code = (
        "import warnings, privopt\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always')\n"
        "    table = privopt.list_optim_modules()\n"
        "print(table['adam'].__module__)\n"
        "for one in told: print(one.message)"
    )
    done = python(tmp_path, "-c", code)
    found, *told = done.stdout.splitlines()
    assert found == "privopt.modules.adaptive", "what was there first stays"
    text = "\n".join(told)
    assert "takes_a_name.MyAdam: privopt.modules.adaptive.Adam has it" in text
    assert "register=False" in text
    assert "'gone' of a package (no_such_module) could not be loaded" in text


# ---- found by it ------------------------------------------------------------------------------------------


class HalvesTheWeights(OptiModule, register=False):
    name = "halves-the-weights"

    def run(self, gradients: Vector, weights: Vector) -> Vector:
        weights *= 0.5
        return gradients


class DoublesInPlace(OptiModule, register=False):
    name = "doubles-in-place"

    def run(self, gradients: Vector) -> Vector:
        gradients *= 2.0
        return gradients


class GivesRaw(OptiModule, register=False):
    name = "gives-raw"

    def run(self, gradients: Vector, raw_gradients: Vector) -> Vector:
        return 1.0 * raw_gradients


@pytest.mark.parametrize("by", ["eager", "blocked"])
@pytest.mark.parametrize(
    ("modules", "moved"),
    [
        # -(lrate * gradients + w_decay * weights) of the weights 8 and the gradient 1.
        ([HalvesTheWeights], -(0.5 * 1 + 0.25 * 8)),
        ([DoublesInPlace, GivesRaw], -(0.5 * 1 + 0.25 * 8)),
    ],
    ids=["weights", "raw_gradients"],
)
def test_what_a_plug_in_does_in_place_is_seen_by_no_other(
    modules: list[type[OptiModule]], moved: float, by: str
) -> None:
    weights, grads = (Vector.build({"w": np.array([x])}) for x in (8.0, 1.0))
    optimizer = Optimizer(0.5, w_decay=0.25, modules=[cls() for cls in modules])
    with executor(by):
        assert optimizer.compute_updates(grads, weights).flatten() == moved


@pytest.mark.parametrize("by", ["eager", "blocked"])
def test_a_step_starts_from_the_weights_whatever_a_plug_in_wrote_into_its_view(by: str) -> None:
    weights, grads = (Vector.build({"w": np.array([x])}) for x in (8.0, 1.0))
    with executor(by):
        Optimizer(0.5, modules=[HalvesTheWeights()]).step(grads, weights)
    assert weights.flatten() == 8.0 - 0.5 * 1
