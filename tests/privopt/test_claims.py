"""What the federated methods claim, on quadratics whose every stationary point is known in closed form.

Client i has the loss ``(w - a_i)' A_i (w - a_i) / 2`` with a diagonal A_i. After K gradient steps of rate
eta from x it stands at ``a_i + (I - eta A_i)^K (x - a_i)``, so each method's limit solves a linear equation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from privopt import Optimizer, Vector
from privopt.aggregators import Aggregator, make_aggregator
from tests.privopt.federated import Quadratic, federation, quadratics

Array = npt.NDArray[np.float64]
RATE, STEPS = 0.2, 4
CURVATURES = np.array([[0.5, 2.0, 1.0], [1.5, 0.3, 2.5], [3.0, 1.0, 0.2], [0.8, 0.8, 4.0]])
CENTERS = np.array([[1.0, -2.0, 0.5], [-1.0, 0.0, 3.0], [2.0, 1.0, -1.0], [0.0, 4.0, 1.0]])
GOOD = 1e-8
EQUAL = np.full(len(CENTERS), 1 / len(CENTERS))


def minimum(weights: Array = EQUAL) -> Array:
    """Minimizer of the weighted mean of the losses."""
    p = weights[:, None]
    found: Array = (p * CURVATURES * CENTERS).sum(0) / (p * CURVATURES).sum(0)
    return found


def balance(pulls: Array, weights: Array = EQUAL) -> Array:
    """Where the updates ``-pulls_i (x - a_i)`` cancel."""
    p = weights[:, None]
    found: Array = (p * pulls * CENTERS).sum(0) / (p * pulls).sum(0)
    return found


def contraction(steps: int | Array, rate: float = RATE, curvatures: Array = CURVATURES) -> Array:
    """How far so many gradient steps go of the way to each client's own minimum."""
    found: Array = 1 - (1 - rate * curvatures) ** np.reshape(steps, (-1, 1))
    return found


def train(
    client: Callable[[], Optimizer],
    server: Optimizer | None = None,
    *,
    rounds: int = 60,
    steps: Sequence[int] = (STEPS,) * len(CENTERS),
    samples: Sequence[int] = (1,) * len(CENTERS),
    aggregator: str | Aggregator = "mean",
    taking_part: Callable[[int], Sequence[int]] = lambda number: range(len(CENTERS)),
) -> Array:
    """A federation without messages: optimizers, aux-vars and an aggregator alone."""
    how = make_aggregator(aggregator)
    server = server or Optimizer(1.0)
    clients = [client() for _ in CENTERS]
    weights = Vector.build({"w": np.zeros(CENTERS.shape[1])})
    counts = [how.count(n, t) for n, t in zip(samples, steps, strict=True)]
    for optimizer, count in zip(clients, counts, strict=True):
        optimizer.on_weighting(count, max(counts))
    server.on_weighting(max(counts), max(counts))
    for number in range(rounds):
        shared = server.collect_aux_var()
        rows: list[dict[str, Any]] = []
        sent: list[dict[str, Any]] = []
        for i in taking_part(number):
            optimizer, local = clients[i], weights.copy()
            optimizer.process_aux_var(shared)
            optimizer.start_round()
            for _ in range(steps[i]):
                slope = CURVATURES[i] * (local.coefs["w"] - CENTERS[i])
                optimizer.step(Vector.build({"w": slope}), local)
            sent.append(optimizer.collect_aux_var(local))
            optimizer.end_round(accepted=True)
            rows.append(how.contribution((local - weights).flatten(), samples[i], steps[i]))
        fields = how.fields(weights.size, 1.0, 16, max(counts), max(steps))
        shares = [row["weight"] for row in rows]
        sums = {name: field.reduce([row[name] for row in rows], shares) for name, field in fields.items()}
        server.start_round()
        server.process_aux_var(
            {name: type(sent[0][name]).aggregate([s[name] for s in sent]) for name in sent[0]}
        )
        server.on_participation(sum(shares) / sum(counts))
        server.step(weights.unflatten(-how.combine(sums)), weights)
        server.end_round()
    found: Array = weights.coefs["w"].copy()
    return found


def gap(found: Array, where: Array) -> float:
    return float(np.abs(found - where).max())


# ---- averaging, and what narrows its gap ----------------------------------------------------------------


def test_federated_averaging_stalls_where_the_local_pulls_balance() -> None:
    stalled = balance(contraction(STEPS))
    assert gap(train(lambda: Optimizer(RATE)), stalled) < GOOD
    assert gap(stalled, minimum()) > 0.1, "or there would be no drift to correct"


def test_with_one_local_step_averaging_reaches_the_minimum() -> None:
    assert gap(train(lambda: Optimizer(RATE), steps=[1] * 4, rounds=80), minimum()) < GOOD


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_fedprox_narrows_the_gap_as_its_closed_form_says(alpha: float) -> None:
    # The proximal loss has its minimum at (A a + alpha x) / (A + alpha); K steps go part of the way.
    bent = CURVATURES + alpha
    expected = balance(contraction(STEPS, curvatures=bent) * CURVATURES / bent)
    found = train(lambda: Optimizer(RATE, regularizers=[("fedprox", {"alpha": alpha})]))
    assert gap(found, expected) < GOOD
    assert gap(expected, minimum()) < gap(balance(contraction(STEPS)), minimum())


def mime_limit(beta: float) -> Array:
    """Local steps along (1 - beta) (A (y - a) + m beta / (1 - beta)), with m the mean slope at x."""
    moved = contraction(STEPS, rate=RATE * (1 - beta))
    share = beta / (1 - beta)
    mean_curvature, mean_slope = CURVATURES.mean(0), (CURVATURES * CENTERS).mean(0)
    # The sum over clients of moved (x - a + share / A (mean_curvature x - mean_slope)) is zero.
    left = (moved * (1 + share * mean_curvature / CURVATURES)).sum(0)
    right = (moved * (CENTERS + share * mean_slope / CURVATURES)).sum(0)
    found: Array = right / left
    return found


@pytest.mark.parametrize(("beta", "rounds"), [(0.5, 70), (0.7, 140)])
def test_mime_lite_narrows_the_gap_as_its_closed_form_says(beta: float, rounds: int) -> None:
    client = lambda: Optimizer(RATE, modules=[("mime-lite-client", {"beta": beta})])  # noqa: E731
    found = train(client, Optimizer(1.0, modules=[("mime-lite-server", {"beta": beta})]), rounds=rounds)
    assert gap(found, mime_limit(beta)) < GOOD
    assert gap(mime_limit(beta), minimum()) < 0.3 * gap(balance(contraction(STEPS)), minimum())


# ---- methods that remove it -----------------------------------------------------------------------------


def scaffold(option: int = 2, rate: float = RATE) -> Callable[[], Optimizer]:
    return lambda: Optimizer(rate, modules=[("scaffold-client", {"option": option})])


@pytest.mark.parametrize("option", [1, 2])
def test_scaffold_reaches_the_minimum(option: int) -> None:
    found = train(scaffold(option), Optimizer(1.0, modules=["scaffold-server"]))
    assert gap(found, minimum()) < GOOD


@pytest.mark.parametrize("option", [1, 2])
def test_scaffold_reaches_the_minimum_with_half_of_the_clients_a_round(option: int) -> None:
    found = train(
        scaffold(option),
        Optimizer(1.0, modules=["scaffold-server"]),
        rounds=120,
        taking_part=lambda number: [(0, 1), (2, 3)][number % 2],
    )
    assert gap(found, minimum()) < GOOD


def test_scaffold_of_weighted_rounds_reaches_the_weighted_minimum() -> None:
    samples = [7, 1, 30, 12]
    weighted = minimum(np.array(samples) / sum(samples))
    found = train(
        scaffold(),
        Optimizer(1.0, modules=["scaffold-server"]),
        samples=samples,
        aggregator=make_aggregator("mean", "samples"),
    )
    assert gap(found, weighted) < GOOD
    assert gap(weighted, minimum()) > 0.1


def test_scaffold_remembers_a_client_that_left_by_its_last_slope() -> None:
    """The others then minimize their losses plus that slope times w."""

    def leaving(number: int) -> Sequence[int]:
        return range(4) if number < 20 else range(3)

    # Option I: the slope at the weights that its last round started from.
    start = train(scaffold(1), Optimizer(1.0, modules=["scaffold-server"]), rounds=19, taking_part=leaving)
    slope = CURVATURES[3] * (start - CENTERS[3])
    expected = ((CURVATURES * CENTERS)[:3].sum(0) - slope) / CURVATURES[:3].sum(0)
    found = train(scaffold(1), Optimizer(1.0, modules=["scaffold-server"]), rounds=80, taking_part=leaving)
    assert gap(found, expected) < GOOD


FEDDYN = {"alpha": 2.0}


def feddyn() -> Optimizer:
    return Optimizer(RATE, regularizers=[("feddyn", FEDDYN)])


def test_feddyn_reaches_the_minimum() -> None:
    found = train(feddyn, Optimizer(1.0, modules=[("feddyn-server", FEDDYN)]), steps=[5] * 4)
    assert gap(found, minimum()) < GOOD


def test_feddyn_reaches_the_minimum_with_half_of_the_clients_a_round() -> None:
    found = train(
        feddyn,
        Optimizer(1.0, modules=[("feddyn-server", FEDDYN)]),
        rounds=120,
        steps=[5] * 4,
        taking_part=lambda number: [(0, 1), (2, 3)][number % 2],
    )
    assert gap(found, minimum()) < GOOD


def test_feddyn_of_weighted_rounds_reaches_the_weighted_minimum() -> None:
    samples = [7, 1, 30, 12]
    found = train(
        feddyn,
        Optimizer(1.0, modules=[("feddyn-server", FEDDYN)]),
        steps=[5] * 4,
        samples=samples,
        aggregator=make_aggregator("mean", "samples"),
    )
    assert gap(found, minimum(np.array(samples) / sum(samples))) < GOOD


# ---- clients that take different numbers of steps -------------------------------------------------------

UNEQUAL = (1, 8, 2, 4)


def test_plain_averaging_of_unequal_steps_tends_to_the_wrong_minimum_and_fednova_to_the_right_one() -> None:
    """Small rates: averaging tends to the losses weighed by their steps (Wang et al. 2020, Theorem 1)."""
    taus = np.array(UNEQUAL)
    wrong = minimum(taus / taus.sum())
    assert gap(wrong, minimum()) > 0.5
    rate = 0.08
    plain = train(lambda: Optimizer(rate), steps=UNEQUAL, rounds=110)
    assert gap(plain, balance(contraction(taus, rate))) < GOOD
    nova = train(lambda: Optimizer(rate), steps=UNEQUAL, rounds=110, aggregator="fednova")
    assert gap(nova, balance(contraction(taus, rate) / taus[:, None])) < GOOD
    # What is left is of first order in the rate, and to the respective point.
    limits = {
        what: [gap(balance(contraction(taus, rate) / scale), where) for rate in (1e-3, 1e-4)]
        for what, where, scale in (("plain", wrong, 1.0), ("nova", minimum(), taus[:, None]))
    }
    for coarse, fine in limits.values():
        assert coarse < 0.02
        assert fine == pytest.approx(coarse / 10, rel=0.02)
    assert gap(plain, minimum()) > 5 * gap(nova, minimum())


def momentum_pull(steps: int, rate: float, rho: float) -> Array:
    """How far so many heavy-ball steps from rest go of the way to the minimum, coordinate by coordinate."""
    found = np.ones(CURVATURES.shape)
    for index, curvature in np.ndenumerate(CURVATURES):
        # (distance, velocity): v = rho v + A e, then e = e - rate v.
        one = np.array([[1 - rate * curvature, -rate * rho], [curvature, rho]])
        found[index] -= np.linalg.matrix_power(one, steps)[0, 0]
    return found


def test_with_local_momentum_fednova_divides_by_what_the_steps_amount_to() -> None:
    rho, rate = 0.6, 0.03
    pulls = np.stack([momentum_pull(tau, rate, rho)[i] for i, tau in enumerate(UNEQUAL)])
    amounts = np.array([sum((1 - rho**k) / (1 - rho) for k in range(1, tau + 1)) for tau in UNEQUAL])
    momentum = ("momentum", {"beta": rho, "round_reset": True})
    found = train(
        lambda: Optimizer(rate, modules=[momentum]),
        steps=UNEQUAL,
        rounds=110,
        aggregator=make_aggregator(("fednova", {"momentum": rho})),
    )
    expected = balance(pulls / amounts[:, None])
    assert gap(found, expected) < GOOD
    by_steps = balance(pulls / np.array(UNEQUAL)[:, None])
    assert 3 * gap(expected, minimum()) < gap(by_steps, minimum()) < gap(balance(pulls), minimum())


# ---- through a federation: messages, transactions, masks --------------------------------------------------


def federated_minimum(weights: npt.ArrayLike = 1.0) -> Array:
    problems = quadratics(3).values()
    curvatures = np.array([p.scale**2 for p in problems]) * weights
    centers = np.array([p.points.mean(axis=0) for p in problems])
    found: Array = curvatures @ centers / curvatures.sum()
    return found


def dyn() -> Optimizer:
    return Optimizer(0.5, regularizers=[("feddyn", {"alpha": 0.5})])


def dyn_server() -> Optimizer:
    return Optimizer(1.0, modules=[("feddyn-server", {"alpha": 0.5})])


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_scaffold_and_feddyn_reach_the_minimum_in_a_federation(tmp_path: Path, weighting: str) -> None:
    samples = [p.num_samples for p in quadratics(3).values()]
    expected = federated_minimum(samples if weighting == "samples" else 1.0)
    common: dict[str, Any] = {"masks": False, "sample_rate": 1.0, "weighting": weighting}
    runs = {
        "scaffold": federation(tmp_path / "a", quadratics(3), client=scaffold(rate=0.5), **common),
        "feddyn": federation(tmp_path / "b", quadratics(3), client=dyn, server=dyn_server(), **common),
    }
    rounds = {"scaffold": 20, "feddyn": 25}
    for name, found in runs.items():
        list(found.run(rounds[name]))
        assert gap(found.server.weights.coefs["w"], expected) < 1e-6


def test_under_masks_feddyn_and_mime_lite_end_where_they_do_in_clear(tmp_path: Path) -> None:
    mime = [("mime-lite-client", {"beta": 0.5})], [("mime-lite-server", {"beta": 0.5})]
    made = {
        "feddyn": (dyn, dyn_server),
        "mime": (lambda: Optimizer(0.3, modules=mime[0]), lambda: Optimizer(1.0, modules=mime[1])),
    }
    for name, (client, server) in made.items():
        ends = []
        for masks in (False, True):
            found = federation(
                tmp_path / f"{name}{masks}",
                masks=masks,
                client=client,
                server=server(),
                sample_rate=1.0,
                weighting="samples",
            )
            bounds = list(found.run(8))[-1].bounds
            ends.append((found.server.weights.flatten(), bounds))
        # The methods contract, so that rounding leaves a few quanta of the last rounds' bounds and no more.
        quantum = max(ends[1][1].values()) / (2**15 - 1)
        assert 0 < gap(ends[0][0], ends[1][0]) < 10 * quantum < 1e-2


def test_feddyns_server_keeps_the_mean_of_what_the_clients_keep(tmp_path: Path) -> None:
    """Exactly, although with this bound nearly every entry of the first updates is clipped."""
    found = federation(tmp_path, client=dyn, server=dyn_server(), bound=0.05)
    reports = list(found.run(6))
    assert reports[0].clipped["update"] > 0
    kept = []
    for client in found.clients.values():
        client._settle(6)
        kept.append(client.optimizer.regularizers[0].lagged.flatten())  # type: ignore[attr-defined]
    server = found.server.optimizer.modules[0].lagged.flatten()  # type: ignore[attr-defined]
    np.testing.assert_allclose(server, np.mean(kept, axis=0), rtol=1e-12, atol=1e-12)
    assert np.abs(server).max() > 0.01, "or the comparison would show nothing"


def test_an_aborted_round_leaves_feddyns_lagged_term_as_it_was() -> None:
    optimizer = feddyn()
    start = Vector.build({"w": np.zeros(2)})
    kept = []
    for accepted in (True, False):
        optimizer.start_round()
        local = start.copy()
        optimizer.step(Vector.build({"w": np.ones(2)}), local)
        optimizer.collect_aux_var(local)
        optimizer.end_round(accepted)
        kept.append(optimizer.get_state()["regularizers.0.feddyn"]["lagged"].flatten())
    np.testing.assert_allclose(kept[0], -2.0 * (0.0 - RATE * 1.0), rtol=1e-14)
    assert np.array_equal(kept[0], kept[1])


@pytest.mark.parametrize("call", ["collect_aux_var", "end_round", "start_round"])
def test_feddyn_that_is_never_shown_where_the_round_arrived_is_an_error(call: str) -> None:
    optimizer, local = feddyn(), Vector.build({"w": np.zeros(2)})
    optimizer.start_round()
    optimizer.step(Vector.build({"w": np.ones(2)}), local)
    with pytest.raises(ValueError, match=r"weights .* which 'feddyn' needs.*collect_aux_var\(weights\)"):
        getattr(optimizer, call)()
    optimizer.end_round(accepted=False)  # what was dropped need not have arrived anywhere
    optimizer.start_round()
    optimizer.step(Vector.build({"w": np.ones(2)}), local)
    optimizer.on_round_trained(local)
    optimizer.collect_aux_var()
    optimizer.end_round()


@pytest.mark.parametrize("regularizer", ["fedprox", "feddyn"])
def test_the_end_of_a_round_that_never_started_is_an_error(regularizer: str) -> None:
    optimizer, local = Optimizer(0.1, regularizers=[regularizer]), Vector.build({"w": np.zeros(2)})
    for ends in (lambda: optimizer.end_round(), lambda: optimizer.collect_aux_var(local)):
        optimizer.step(local.full_like(1.0), local)
        with pytest.raises(ValueError, match=rf"Expected start_round\(\) before .* {regularizer!r}"):
            ends()
    optimizer.reset()
    optimizer.start_round()
    optimizer.step(local.full_like(1.0), local)
    optimizer.collect_aux_var(local)
    optimizer.end_round()


def test_fedprox_looks_at_where_the_next_round_starts_once_one_has_ended() -> None:
    optimizer = Optimizer(0.1, regularizers=[("fedprox", {"alpha": 1.0})])
    optimizer.start_round()
    local = Vector.build({"w": np.zeros(1)})
    optimizer.step(local.full_like(1.0), local)
    optimizer.end_round()
    elsewhere = local.full_like(5.0)
    assert optimizer.compute_updates(local.full_like(1.0), elsewhere).coefs["w"][0] == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("client", "server", "aggregator", "words"),
    [
        (dyn, lambda: Optimizer(1.0), "mean", "server module 'feddyn-server' beside the clients' 'feddyn'"),
        (dyn, lambda: Optimizer(1.0, modules=["feddyn-server"]), "mean", "clients' alpha=0.5 .* got alpha"),
        (lambda: Optimizer(1.0), dyn_server, "mean", "regularizer 'feddyn' beside 'feddyn-server'"),
        (
            lambda: Optimizer(1.0),
            lambda: Optimizer(1.0, modules=["scaffold-server"]),
            "mean",
            "clients' module with aux_name 'scaffold' beside the server's 'scaffold-server', got .*take",
        ),
        (
            lambda: Optimizer(1.0, modules=["scaffold-client"]),
            lambda: Optimizer(1.0, modules=["scaffold-server", "mime-lite-server"]),
            "mean",
            "beside the server's 'mime-lite-server'",
        ),
        (dyn, dyn_server, "fednova", "aggregator 'mean' beside .*'feddyn-server', got 'fednova'"),
        (
            lambda: Optimizer(1.0, modules=["mime-lite-client"]),
            lambda: Optimizer(1.0, modules=[("mime-lite-server", {"beta": 0.5})]),
            "mean",
            "clients' beta=0.9 .* got beta=0.5",
        ),
    ],
)
def test_halves_that_do_not_belong_together_are_refused(
    tmp_path: Path, client: Any, server: Any, aggregator: str, words: str
) -> None:
    problems = {"c0": Quadratic(np.zeros((2, 2)))}
    with pytest.raises(ValueError, match=words):
        federation(tmp_path, problems, masks=False, client=client, server=server(), aggregator=aggregator)
