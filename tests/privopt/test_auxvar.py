from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dp
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
from privopt.modules import (
    AdaptiveClippingAuxVar,
    AdaptiveClippingClient,
    AdaptiveClippingServer,
    AdaptiveClippingState,
    MimeLiteAuxVar,
    MimeLiteClient,
    MimeLiteServer,
    MimeLiteState,
    ScaffoldAuxVar,
    ScaffoldClient,
    ScaffoldServer,
    ScaffoldState,
    WeightedScaffoldAuxVar,
)
from tests.contracts import gradients
from tests.statistical import assert_mean, assert_rejects, assert_std

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


def test_option_one_sends_the_first_gradient_of_the_round_and_corrects_all() -> None:
    client, server = ScaffoldClient(option=1), ScaffoldServer()
    rounds(client, server, [1, 2, 3], accepted=True)
    assert client.control.equals(gradients(1, SHAPES))
    assert server.collect_aux_var().control.equals(gradients(1, SHAPES))
    with pytest.raises(ValueError, match="option 1 or 2 for module 'scaffold-client', got option=3"):
        ScaffoldClient(option=3)


def test_weighted_scaffold_keeps_the_weighted_mean_of_the_control_variates() -> None:
    weights, largest = [6, 0, 16, 10], 16
    server = ScaffoldServer()
    server.on_weighting(largest, largest)
    clients = [ScaffoldClient() for _ in weights]
    for client, weight in zip(clients, weights, strict=True):
        client.on_weighting(weight, largest)
        assert client.aux_var is WeightedScaffoldAuxVar
    for number in range(3):
        sent = []
        for i, client in enumerate(clients):
            client.on_round_start()
            client.run(gradients(10 * number + i, SHAPES))
            sent.append(client.collect_aux_var())
            client.on_round_end(accepted=True)
        server.process_aux_var(WeightedScaffoldAuxVar.aggregate(sent))
        assert [aux.first for aux in sent] == (weights if number == 0 else [0] * 4)
    controls = [client.control.flatten() for client in clients]
    expected = np.average(controls, axis=0, weights=weights)
    assert server.clients == sum(weights)
    np.testing.assert_allclose(server.collect_aux_var().control.flatten(), expected, rtol=1e-12)


def test_control_variates_that_were_weighed_otherwise_are_no_state_to_go_on_from() -> None:
    server = ScaffoldServer()
    server.process_aux_var(ScaffoldAuxVar(delta=gradients(0, SHAPES), first=2))
    state = server.get_state()
    weighted = ScaffoldServer()
    weighted.on_weighting(16, 16)
    with pytest.raises(ValueError, match="the largest weight is 16, got 1"):
        weighted.set_state(state)
    assert weighted.clients == 0
    del state["largest"]  # as it was kept before clients could be weighed
    again = ScaffoldServer()
    again.set_state(state)
    assert again.clients == 2
    weighted.set_state(ScaffoldServer().get_state())


def test_what_arrives_of_a_weighted_change_is_what_the_client_adopts() -> None:
    client = ScaffoldClient()
    client.on_weighting(4, 16)
    client.on_round_start()
    client.run(gradients(1, SHAPES))
    aux = client.collect_aux_var()
    client.on_aux_var_sent(WeightedScaffoldAuxVar(delta=aux.delta * 0.5, first=aux.first))
    client.on_round_end(accepted=True)
    np.testing.assert_allclose(client.control.flatten(), 0.5 * gradients(1, SHAPES).flatten(), rtol=1e-14)
    assert ScaffoldClient().aux_var is ScaffoldAuxVar, "weights are one client's, not the class's"
    with pytest.raises(ValueError, match=r"a weight in 0\.\.16 for module 'scaffold-client', got 17"):
        client.on_weighting(17, 16)


# ---- MimeLite ----------------------------------------------------------------------------------------------


def test_mime_lite_applies_the_servers_momentum_frozen_and_sends_the_first_gradient() -> None:
    beta, client, server = 0.8, MimeLiteClient(beta=0.8), MimeLiteServer(beta=0.8)
    assert server.collect_aux_var() is None
    momentum = np.zeros(9)
    for number in range(3):
        if (state := server.collect_aux_var()) is not None:
            client.process_aux_var(state)
        client.on_round_start()
        for step in range(3):
            grad = gradients(10 * number + step, SHAPES)
            # Karimireddy et al. 2021, Alg. 1: y moves by (1 - beta) g + beta m, and m stays.
            expected = (1 - beta) * grad.flatten() + beta * momentum
            np.testing.assert_allclose(client.run(grad).flatten(), expected, rtol=1e-13, atol=1e-15)
        other = MimeLiteAuxVar(gradient=gradients(77, SHAPES))
        server.process_aux_var(MimeLiteAuxVar.aggregate([client.collect_aux_var(), other]))
        mean = (gradients(10 * number, SHAPES).flatten() + gradients(77, SHAPES).flatten()) / 2
        momentum = (1 - beta) * mean + beta * momentum
    np.testing.assert_allclose(server.momentum.flatten(), momentum, rtol=1e-13)


def test_mime_lite_refuses_to_send_before_a_step_and_foreign_messages() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        MimeLiteClient().collect_aux_var()
    with pytest.raises(TypeError, match="a MimeLiteState from the server, got MimeLiteAuxVar"):
        MimeLiteClient().process_aux_var(MimeLiteAuxVar(gradient=gradients(0, SHAPES)))
    with pytest.raises(TypeError, match="combined MimeLiteAuxVar, got MimeLiteState"):
        MimeLiteServer().process_aux_var(MimeLiteState(momentum=gradients(0, SHAPES)))


# ---- adaptive clipping -------------------------------------------------------------------------------------


def test_gradients_are_clipped_to_the_servers_norm_and_counted() -> None:
    client = AdaptiveClippingClient(max_norm=2.0)
    client.on_round_start()
    small, large = (Vector.build({"w": np.array([3.0, 4.0]) * s}) for s in (0.2, 1.0))
    assert client.run(small).equals(small)
    np.testing.assert_allclose(client.run(large).flatten(), [1.2, 1.6], rtol=1e-15)
    client.process_aux_var(AdaptiveClippingState(max_norm=6.0))
    assert client.run(large).equals(large)
    aux = client.collect_aux_var()
    assert (aux.below, aux.steps) == (2, 3)
    client.on_round_start()
    assert (client.below, client.steps) == (0, 0)


def test_the_norm_moves_geometrically_by_what_the_share_misses_the_quantile() -> None:
    server = AdaptiveClippingServer(max_norm=3.0, quantile=0.7, rate=0.4)
    assert server.collect_aux_var().max_norm == 3.0
    sent = [AdaptiveClippingAuxVar(below=5, steps=10), AdaptiveClippingAuxVar(below=-1, steps=6)]
    server.process_aux_var(AdaptiveClippingAuxVar.aggregate(sent))
    # Andrew et al. 2021, Alg. 1: C exp(-eta (b - gamma)), here with b = 4 / 16.
    assert server.collect_aux_var().max_norm == pytest.approx(3.0 * np.exp(-0.4 * (0.25 - 0.7)), rel=1e-15)
    before = server.norm
    server.process_aux_var(AdaptiveClippingAuxVar(below=0, steps=0))
    assert server.norm == before


@pytest.mark.parametrize("quantile", [0.3, 0.8])
def test_the_norm_settles_at_the_quantile_of_the_gradients_norms(quantile: float) -> None:
    """Norms uniform on (0, 1), whose quantile is the number itself; counts noised by every client."""
    rng = np.random.default_rng(3)
    server = AdaptiveClippingServer(max_norm=20.0, quantile=quantile)
    clients = [AdaptiveClippingClient(count_noise=1.5, source=dp.random.insecure_source(i)) for i in range(4)]
    norms = []
    for _ in range(160):
        state, sent = server.collect_aux_var(), []
        for client in clients:
            client.process_aux_var(state)
            client.on_round_start()
            for norm in rng.random(10):
                client.run(Vector.build({"w": np.array([norm])}))
            sent.append(client.collect_aux_var())
        server.process_aux_var(AdaptiveClippingAuxVar.aggregate(sent))
        norms.append(server.norm)
    # About it the log of the norm is a first-order autoregression of factor 1 - 0.2 quantile: its mean over
    # the last hundred rounds has a standard deviation below 0.025.
    assert abs(np.log(norms[-100:]).mean() - np.log(quantile)) < 0.12


def test_a_noised_count_has_the_stated_noise_and_no_source_in_its_state() -> None:
    client = AdaptiveClippingClient(count_noise=50.0, source=dp.random.insecure_source(987654))
    counts = np.array([client.collect_aux_var().below for _ in range(4000)], float)
    assert_mean(counts, 0.0, 50.0)
    assert_std(counts, 50.0)
    assert_rejects(assert_std, counts, 55.0)
    text = repr(client) + repr(client.get_config()) + repr(client.get_state())
    assert "987654" not in text
    assert "source" not in text
    assert "Unpriced" in type(client.event).__name__
    assert AdaptiveClippingClient().event is None


def test_a_negative_noised_count_travels_under_masks() -> None:
    optimizer = Optimizer(1.0, modules=["adaptive-clipping-client"])
    schema = secagg.Schema(optimizer.aux_reductions(gradients(0, SHAPES).layout))
    encoding = secagg.Encoding(schema, 3)
    rows = [{"adaptive-clipping.below": b, "adaptive-clipping.steps": 4} for b in (-9, 3, 2)]
    words = sum(encoding.encode(row, np.random.default_rng(0)) for row in rows)
    assert encoding.decode(words, 3).values == {"adaptive-clipping.below": -4, "adaptive-clipping.steps": 12}


def test_adaptive_clipping_refuses_foreign_messages_and_norms_that_are_none() -> None:
    for norm in (0.0, -1.0, float("nan"), float("inf"), "x"):
        with pytest.raises(ValueError, match="a finite norm > 0 from the server"):
            AdaptiveClippingClient().process_aux_var(AdaptiveClippingState(max_norm=norm))
    with pytest.raises(TypeError, match="AdaptiveClippingState of the server, got AdaptiveClippingAuxVar"):
        AdaptiveClippingClient().process_aux_var(AdaptiveClippingAuxVar(below=1, steps=1))
    with pytest.raises(TypeError, match="combined AdaptiveClippingAuxVar, got AdaptiveClippingState"):
        AdaptiveClippingServer().process_aux_var(AdaptiveClippingState(max_norm=1.0))
    with pytest.raises(ValueError, match="count_noise >= 0"):
        AdaptiveClippingClient(count_noise=-1.0)
    with pytest.raises(ValueError, match=r"quantile in \[0, 1\]"):
        AdaptiveClippingServer(quantile=1.5)
