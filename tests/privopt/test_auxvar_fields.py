"""Auxiliary variables may declare the whole vocabulary; in clear and under masks they combine alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import secagg
from privopt import (
    AuxVar,
    Optimizer,
    OptiModule,
    Vector,
    adaptive,
    all_,
    any_,
    averaged,
    counted,
    histogram,
    local,
    maximum,
    minimum,
    moments,
    public,
    quantile,
    same,
    sparse,
    state,
    summed,
    true_count,
)
from privopt.federation.settings import Dropout
from privopt.modules.scaffold import ScaffoldState
from privopt.testing import ContractError, Subject, check_aux_var
from tests.contracts import gradients
from tests.privopt.federated import Planned, federation
from tests.secagg.agreement import assert_agrees

SHAPES = {"w": (3, 2), "b": (3,)}


class Everything(AuxVar, register=False):
    name = "everything"
    delta: Vector = summed(bound=adaptive(8.0))
    part: Vector = sparse(bound=8.0, indices=[0, 2, 7])
    loss: float = averaged(bound=16.0, weight="rows")
    rows: int = counted(at_most=1000)
    finished: bool = true_count()
    diverged: bool = any_()
    ready: bool = all_()
    norms: np.ndarray = moments(bound=16.0, order=3, at_most=8)
    ages: np.ndarray = histogram(bins=4, range=(0, 80), at_most=8)
    median: float = quantile(0.5, bins=16, range=(0, 16), at_most=8)
    entries: Vector = moments(bound=8.0, weight="rows")
    largest: Vector = maximum(-8.0, 8.0, levels=64)
    fewest: int = minimum(0, 50)
    flags: np.ndarray = any_(shape=(4,))


def instance(seed: int) -> Everything:
    rng = np.random.default_rng(seed)
    return Everything(
        delta=gradients(seed, SHAPES),
        part=gradients(seed + 1, SHAPES),
        loss=float(rng.uniform(0, 16)),
        rows=int(rng.integers(1, 1000)),
        finished=bool(rng.random() < 0.5),
        diverged=seed == 2,
        ready=seed != 1,
        norms=rng.uniform(0, 16, 5),
        ages=rng.uniform(-10, 100, 8),
        median=rng.uniform(0, 16, 8),
        entries=gradients(seed + 2, SHAPES),
        largest=gradients(seed + 3, SHAPES),
        fewest=int(rng.integers(0, 50)),
        flags=rng.random(4) < 0.3,
    )


def masked(parts: list[Everything]) -> tuple[secagg.Encoding, dict]:
    encoding = secagg.Encoding(secagg.Schema(Everything.reductions(parts[0].delta.layout)), len(parts))
    words = [encoding.encode(part.to_values(), np.random.default_rng(i)) for i, part in enumerate(parts)]
    return encoding, encoding.decode(np.sum(words, axis=0, dtype=np.uint64), len(parts)).values


@pytest.mark.parametrize("clients", [1, 2, 5])
def test_sums_in_clear_are_those_under_masks(clients: int) -> None:
    parts = [instance(seed) for seed in range(clients)]
    together = Everything.aggregate(parts)
    encoding, values = masked(parts)
    again = Everything.from_values(values, parts[0].delta)
    for field, clear in together.to_values().items():
        found = again.to_values()[field]
        bound = encoding.error_bound(field, clients)
        assert_agrees(found, clear, bound, field)
    assert isinstance(together.part, Vector)
    assert isinstance(again.largest, Vector)
    assert together.diverged is (clients > 2)
    assert together.ready is (clients < 2)


def test_grouping_does_not_matter_for_any_reduction() -> None:
    a, b, c = (instance(seed) for seed in range(3))
    left, right = ((a + b) + c).to_values(), (a + (b + c)).to_values()
    for field, value in left.items():
        assert_agrees(right[field], value, 0, field)


class Survey(AuxVar, register=False):
    name = "tests-survey"
    norms: float = quantile((0.1, 0.5), bins=64, range=(0.0, 64.0))
    sizes: np.ndarray = moments(bound=64.0, order=3)
    weighed: np.ndarray = moments(bound=64.0, weight="steps")
    steps: int = counted(at_most=100)
    bad: bool = any_()
    finite: bool = all_()
    fewest: int = minimum(0, 100)
    first: Vector = sparse(bound=64.0, indices=[0])


class Surveyor(OptiModule, register=False):
    """Tells how its gradients are distributed, in most of the ways there are."""

    name = "tests-surveyor"
    aux_name = "tests-survey"
    aux_var = Survey
    steps: int = state(0)
    last: Vector = state(0.0)

    def run(self, gradients: Vector) -> Vector:
        self.steps += 1
        self.last = gradients.copy()
        return gradients

    def collect_aux_var(self) -> Survey:
        flat = self.last.flatten()
        return Survey(
            norms=np.abs(flat),
            sizes=np.linalg.norm(flat),
            weighed=np.linalg.norm(flat),
            steps=self.steps,
            bad=bool(self.steps > 2),
            finite=True,
            fewest=self.steps,
            first=self.last.copy(),
        )


class SurveyServer(OptiModule):
    """Keeps the median."""

    name = "tests-survey-server"
    aux_name = "tests-survey"
    median: float = state(0.0)

    def run(self, gradients: Vector) -> Vector:
        return gradients

    def process_aux_var(self, aux_var: AuxVar) -> None:
        if not isinstance(aux_var, Survey):
            raise TypeError(f"Expected a Survey, got {type(aux_var).__name__}.")
        self.median = float(aux_var.norms[1])


def test_the_contract_of_plug_ins_holds_for_the_whole_vocabulary() -> None:
    check_aux_var(Subject(Surveyor, {}))


class Careless(Surveyor, register=False):
    """The same, with a bound that what is sent does not keep."""

    name = "tests-careless"

    def collect_aux_var(self) -> Survey:
        sent = super().collect_aux_var()
        sent.sizes = 1000.0
        return sent


def test_the_contract_finds_what_a_declaration_does_not_allow() -> None:
    with pytest.raises(
        ContractError, match=r"'tests-survey.sizes' under masks within .* of its sum in clear"
    ):
        check_aux_var(Subject(Careless, {}))


# ---- values that are told, not summed ---------------------------------------------------------------------


class Told(AuxVar, register=False):
    name = "tests-told"
    secret: str = local()
    steps: int = counted(at_most=100)
    site: str = public()
    version: str = same()


class Teller(OptiModule, register=False):
    """Says which site it is, and the version that all should have."""

    name = "tests-teller"
    aux_name = "tests-told"
    aux_var = Told
    version: str = "v1"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._site = ""

    def run(self, gradients: Vector) -> Vector:
        return gradients

    def collect_aux_var(self) -> Told:
        return Told(secret="never leaves", steps=2, site=self._site, version=self.version)


class Listener(OptiModule, register=False):
    """Keeps what the server's half reads."""

    name = "tests-listener"
    aux_name = "tests-told"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._heard: list[tuple[object, ...]] = []

    def run(self, gradients: Vector) -> Vector:
        return gradients

    def process_aux_var(self, aux_var: AuxVar) -> None:
        assert isinstance(aux_var, Told)
        self._heard.append((aux_var.steps, aux_var.site, aux_var.version))


@pytest.mark.parametrize("masks", [True, False])
def test_what_is_public_comes_from_the_clients_in_the_sum_and_what_is_the_same_is_none(
    tmp_path: Path, masks: bool
) -> None:
    listener = Listener()
    found = federation(
        tmp_path,
        masks=masks,
        policy=secagg.Policy(min_clients=4),
        client=lambda: Optimizer(0.1, modules=[Teller()]),
        server=Optimizer(1.0, modules=[listener]),
        # c3 has told its values when it vanishes from a masked round; it is not in the sum.
        dropouts=Planned({2: {"c3": Dropout("vector", late=False)}}),
    )
    for name, client in found.clients.items():
        client.optimizer.modules[0]._site = f"site of {name}"  # type: ignore[attr-defined]
    assert [r.status for r in found.run(2)] == ["ok", "ok"]
    for heard, ids in zip(listener._heard, ("01234", "0124"), strict=True):
        sites = tuple(f"site of c{i}" for i in ids)
        assert heard == (2 * len(ids), sites, None)


@pytest.mark.parametrize("masks", [True, False])
def test_clients_that_differ_in_what_is_the_same_stop_the_round(tmp_path: Path, masks: bool) -> None:
    listener = Listener()
    found = federation(
        tmp_path,
        masks=masks,
        client=lambda: Optimizer(0.1, modules=[Teller()]),
        server=Optimizer(1.0, modules=[listener]),
    )
    found.clients["c2"].optimizer.modules[0].version = "v2"  # type: ignore[attr-defined]
    report = found.run_round()
    assert report.status == "aborted"
    assert ("tests-told.version" if masks else "alike") in str(report.reason)
    assert listener._heard == []


def test_what_is_local_is_in_no_message_in_clear_either(tmp_path: Path) -> None:
    found = federation(
        tmp_path,
        masks=False,
        client=lambda: Optimizer(0.1, modules=[Teller()]),
        server=Optimizer(1.0, modules=[Listener()]),
    )
    answer = found.clients["c1"].handle(found.server.begin()) or b""
    assert b"tests-told.version" in answer
    assert b"never leaves" not in answer
    assert b"tests-told.secret" not in answer


def test_a_field_without_an_annotation_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"annotation of field 'x' of .*Bare.*Annotate it, as in `x: float"):

        class Bare(AuxVar, register=False):
            name = "tests-bare"
            x = summed(1.0)


def test_what_is_collected_is_of_the_class_that_was_declared() -> None:
    class Wrong(Teller, register=False):
        name = "tests-wrong"

        def collect_aux_var(self) -> Told:
            return {"steps": 1}  # type: ignore[return-value]  # a slip

    optimizer = Optimizer(0.1, modules=[Wrong()])
    with pytest.raises(TypeError, match=r"Expected Told from 'tests-wrong'\.collect_aux_var, got dict"):
        optimizer.collect_aux_var()


def test_errors_call_it_an_aux_var() -> None:
    with pytest.raises(TypeError, match=r"to set `name = .* \(an aux-var is found by it\)"):

        class Nameless(AuxVar):
            x: float = summed(1.0)

    with pytest.raises(TypeError, match="Expected an aux-var name that is not taken, got 'scaffold-"):

        class Taken(AuxVar):
            name = ScaffoldState.name
            x: float = summed(1.0)

    with pytest.raises(ValueError, match="'mean' is an aggregator: give it where aggregators go"):
        Optimizer(0.1, modules=["mean"])
