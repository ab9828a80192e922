from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import secagg
from privopt import (
    AuxVar,
    Optimizer,
    OptiModule,
    Vector,
    adaptive,
    averaged,
    counted,
    local,
    public,
    same,
    summed,
)
from privopt.modules import ScaffoldAuxVar, ScaffoldClient, ScaffoldServer, ScaffoldState
from tests.contracts import gradients

SHAPES = {"w": (3, 2), "b": (3,)}


class ControlVariate(AuxVar, register=False):
    name = "control-variate"
    delta: Vector = summed(bound=adaptive(), bits=20)
    clients: int = counted()
    loss: float = averaged(weight="samples", bound=10.0)
    samples: int = counted(at_most=1_000_000)
    model: str = same()
    note: str = public()
    secret: float = local()
    scores: np.ndarray = summed(bound=1.0, shape=(3,))


def instance(seed: int, samples: int = 5) -> ControlVariate:
    return ControlVariate(
        delta=gradients(seed, SHAPES),
        clients=1,
        loss=float(seed),
        samples=samples,
        model="v1",
        note=f"n{seed}",
        secret=1.0,
        scores=np.arange(3) * 0.1,
    )


def test_clear_aggregation_follows_the_declarations() -> None:
    parts = [instance(0, 5), instance(1, 1), instance(2, 4)]
    total = sum(parts[1:], parts[0])
    assert isinstance(total, ControlVariate)
    np.testing.assert_allclose(total.delta.flatten(), sum(p.delta.flatten() for p in parts), rtol=1e-14)
    assert total.delta.layout == parts[0].delta.layout
    assert (total.clients, total.samples) == (3, 10)
    assert total.loss == pytest.approx((0 * 5 + 1 * 1 + 2 * 4) / 10)
    assert (total.model, total.note, total.secret) == ("v1", ("n0", "n1", "n2"), None)
    np.testing.assert_allclose(total.scores, np.arange(3) * 0.3)


@given(seeds=st.lists(st.integers(0, 50), min_size=2, max_size=6))
def test_grouping_does_not_matter(seeds: list[int]) -> None:
    parts = [instance(s, s + 1) for s in seeds]
    left = sum(parts)
    right = ControlVariate.aggregate([parts[0], ControlVariate.aggregate(parts[1:])])
    assert left.delta.equals(right.delta)
    assert left.loss == right.loss
    assert left.samples == right.samples


def test_what_differs_where_it_must_be_the_same_is_refused() -> None:
    other = instance(1)
    other.model = "v2"
    with pytest.raises(ValueError, match=r"control-variate.model to be the same everywhere"):
        instance(0) + other
    with pytest.raises(TypeError, match="instances of ControlVariate, got ScaffoldState"):
        ControlVariate.aggregate([ScaffoldState(control=gradients(0, SHAPES))])
    with pytest.raises(ValueError, match="at least one"):
        ControlVariate.aggregate([])


def test_reductions_without_a_sum_are_refused_when_the_class_is_defined() -> None:
    with pytest.raises(
        TypeError, match=r"'union' cannot be carried by a masked sum \(field 'names' of .*Bad"
    ):

        class Bad(AuxVar, register=False):
            name = "bad"
            names: set[str] = secagg.union()

    with pytest.raises(TypeError, match=r"field 'delta' of .*Undeclared"):

        class Undeclared(AuxVar, register=False):
            name = "undeclared"
            delta: Vector

    with pytest.raises(TypeError, match=r"field 'delta' of .*Default"):

        class Default(AuxVar, register=False):
            name = "default"
            delta: float = 1.0

    with pytest.raises(TypeError, match="weight 'n' of field 'loss'"):

        class Weightless(AuxVar, register=False):
            name = "weightless"
            loss: float = averaged(weight="n", bound=1.0)


def test_a_modules_reductions_are_named_in_full_for_the_rounds_schema() -> None:
    class Sends(OptiModule, register=False):
        name = "sends"
        aux_name: ClassVar[str | None] = "cv"
        aux_var: ClassVar[type[AuxVar] | None] = ControlVariate

        def run(self, gradients: Vector) -> Vector:
            return gradients

    layout = gradients(0, SHAPES).layout
    optimizer = Optimizer(1.0, modules=[Sends(), "scaffold-client"])
    fields = optimizer.aux_reductions(layout)
    assert fields["cv.delta"].shape == (9,)
    assert fields["cv.loss"].weight == "cv.samples"
    assert fields["cv.scores"].shape == (3,)
    assert fields["scaffold.delta"].shape == (9,)
    schema = secagg.Schema(fields)
    values = {f"cv.{k}": v for k, v in instance(0).to_values().items()}
    values |= {"scaffold.delta": np.ones(9), "scaffold.first": 1}
    combined = secagg.reduce_clear(schema, [values, values])
    assert combined["scaffold.first"] == 2


# ---- Scaffold ---------------------------------------------------------------------------------------------


def rounds(client: ScaffoldClient, server: ScaffoldServer, seeds: list[int], accepted: bool) -> Vector:
    state = server.collect_aux_var()
    if state is not None:
        client.process_aux_var(state)
    client.on_round_start()
    entering = [gradients(s, SHAPES) for s in seeds]
    for grad in entering:
        client.run(grad)
    aux = client.collect_aux_var()
    if accepted:
        server.process_aux_var(ScaffoldAuxVar.aggregate([aux]))
    client.on_round_end(accepted)
    return sum(entering[1:], entering[0]) / len(entering)


def test_scaffold_corrects_by_the_drift_and_sends_the_change_of_the_mean_gradient() -> None:
    client, server = ScaffoldClient(), ScaffoldServer()
    mean = rounds(client, server, [1, 2, 3], accepted=True)
    assert np.allclose(client.control.flatten(), mean.flatten())
    assert np.allclose(server.collect_aux_var().control.flatten(), mean.flatten())
    server.total = server.total * 3.0
    client.process_aux_var(server.collect_aux_var())
    grad = gradients(7, SHAPES)
    expected = grad.flatten() - (mean.flatten() - 3.0 * mean.flatten())
    assert np.allclose(client.run(grad).flatten(), expected)


def test_after_an_aborted_round_the_old_control_variate_stands() -> None:
    client, server = ScaffoldClient(), ScaffoldServer()
    first = rounds(client, server, [1], accepted=True)
    rounds(client, server, [2], accepted=False)
    assert np.allclose(client.control.flatten(), first.flatten())
    last = rounds(client, server, [4], accepted=True)
    assert server.clients == 1, "a first-timer is counted once"
    # What the server summed over the accepted rounds is the client's control variate.
    assert np.allclose(server.total.flatten(), last.flatten())
    assert np.allclose(client.control.flatten(), last.flatten())


def test_a_client_is_a_first_timer_until_a_round_was_accepted() -> None:
    client, server = ScaffoldClient(), ScaffoldServer()
    rounds(client, server, [1], accepted=False)
    client.on_round_start()
    client.run(gradients(2, SHAPES))
    assert client.collect_aux_var().first == 1
    client.on_round_end(True)
    client.on_round_start()
    client.run(gradients(2, SHAPES))
    assert client.collect_aux_var().first == 0


def test_scaffold_refuses_to_send_before_a_step_and_foreign_messages() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        ScaffoldClient().collect_aux_var()
    aux = ScaffoldAuxVar(delta=gradients(0, SHAPES), first=1)
    with pytest.raises(TypeError, match="a ScaffoldState from the server, got ScaffoldAuxVar"):
        ScaffoldClient().process_aux_var(aux)
    with pytest.raises(TypeError, match="combined ScaffoldAuxVar, got ScaffoldState"):
        ScaffoldServer().process_aux_var(ScaffoldState(control=gradients(0, SHAPES)))
