"""Large simulated rounds: their parts against slow references, and a sum that is wrong is called so."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from secagg import CohortError, PolicyError, shamir
from secagg.ephemeral import Binding, MaskKey, PublicKeys, pair_mask_key
from secagg.graph import Plan, draw, plan
from secagg.masks import BLOCK_BYTES, Mask, add_masks
from secagg.policy import Policy
from secagg.simulate import STAGES, Simulation, parties, segment, simulate
from secagg.simulate.batched import NEVER, _draw_graph, _Ring, draw_losses
from secagg.simulate.pairs import Applier, PairKeys, Side
from secagg.simulate.segment import draw_values, field_schema, megabytes
from secagg.simulate.simulation import _as_run


def simulated(dropout: float = 0.1, lost_at: str | None = None, processes: int = 1) -> Simulation:
    return simulate(
        150,
        entries=40,
        dropout=dropout,
        colluders=0.02,
        lost_at=lost_at,
        machines=False,
        processes=processes,
        estimate=False,
    )


# --- parts ------------------------------------------------------------------------------------------------


def test_a_pairs_key_is_the_one_that_clients_derive() -> None:
    binding = Binding(os.urandom(16), 7, os.urandom(32), os.urandom(32), os.urandom(32))
    keys = [MaskKey.generate(False) for _ in range(2)]
    names = ["zoë", "amber-17"]
    ends = [(n, PublicKeys(k.public, os.urandom(32)), b"") for n, k in zip(names, keys, strict=True)]
    sides = [Side.of(n, k.public) for n, k in zip(names, keys, strict=True)]
    real = pair_mask_key(keys[0].exchange(keys[1].public), ends[0], ends[1], binding, 16)
    mine = PairKeys(binding)
    assert mine.key(keys[0], sides[0], sides[1]) == real
    assert mine.key(keys[1], sides[1], sides[0]) == real


@pytest.mark.parametrize("words", [1, 1003, BLOCK_BYTES // 8, BLOCK_BYTES // 8 * 2 + 5])
def test_one_keystream_is_added_at_one_end_and_subtracted_at_the_other(words: int) -> None:
    key, other = os.urandom(16), os.urandom(16)
    plus, minus = np.arange(words, dtype=np.uint64), np.ones(words, np.uint64)
    applier = Applier(words)
    for each in (key, other):
        applier.apply(each, plus, minus)
    expected_plus, expected_minus = np.arange(words, dtype=np.uint64), np.ones(words, np.uint64)
    add_masks(expected_plus, [Mask(key, 1), Mask(other, 1)])
    add_masks(expected_minus, [Mask(key, -1), Mask(other, -1)])
    assert np.array_equal(plus, expected_plus)
    assert np.array_equal(minus, expected_minus)


def test_losses_are_as_many_as_asked_for_and_spread_over_the_stages() -> None:
    lost = draw_losses(1003, 0.29, None)
    counts = np.bincount(lost, minlength=NEVER + 1).tolist()
    assert counts == [58, 58, 58, 58, 58, 1003 - 290]
    assert (draw_losses(10, 0.3, "vector") == STAGES.index("vector")).sum() == 3


def ring(lost: list[int], margin: int = 2, threshold: int = 3) -> _Ring:
    names = np.array([f"c{i:02}" for i in range(len(lost))])
    return _Ring(names, np.array(lost, np.int8), margin, threshold)


def test_neighbours_are_counted_around_the_ring() -> None:
    chosen = np.random.default_rng(5).random(30) < 0.5
    near = ring([NEVER] * 30, margin=4).near(chosen)
    slow = [sum(chosen[(place + step) % 30] for step in range(-4, 5)) for place in range(30)]
    assert near.tolist() == slow


def test_who_does_not_sign_gives_no_share() -> None:
    lost = [NEVER] * 20
    lost[3], lost[9] = STAGES.index("consistency"), STAGES.index("unmask")
    gives = ring(lost).verify_survival()
    assert np.flatnonzero(~gives).tolist() == [3, 9]


@pytest.mark.parametrize(
    ("stage", "after"), [("vector", "submitting"), ("consistency", "signing"), ("unmask", "unmasking")]
)
def test_three_neighbours_lost_of_five_fail_the_round(stage: str, after: str) -> None:
    lost = [NEVER] * 20
    lost[5:8] = [STAGES.index(stage)] * 3
    with pytest.raises(CohortError, match=f"are left after {after}") as caught:
        ring(lost).verify_survival()
    assert "c06" in caught.value.blame


# --- whole rounds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [None, *STAGES])
def test_the_sum_is_exact_wherever_clients_are_lost(stage: str | None) -> None:
    done = simulated(lost_at=stage)
    in_sum = {None: 150 - 9, "consistency": 150, "unmask": 150}
    assert done.correct
    assert done.method == "segments"
    assert done.survivors == in_sum.get(stage, 135)
    assert sum(done.lost.values()) == 15


def test_pairs_and_recovered_masks_are_counted() -> None:
    done = simulated(dropout=0.0)
    assert (done.pairs, done.recovered) == (150 * done.degree // 2, 0)
    done = simulated(dropout=1 / 150, lost_at="vector")
    assert (done.pairs, done.recovered) == (150 * done.degree // 2, done.degree)
    done = simulated(dropout=1 / 150, lost_at="shares")
    assert (done.pairs, done.recovered) == (150 * done.degree // 2 - done.degree, 0)


def test_worker_processes_give_the_same_round() -> None:
    done = simulated(processes=2)
    assert done.correct
    assert done.processes == 2
    assert set(done.work) >= {"keys", "sharing", "pair masks", "reconstruction", "removing masks"}


def test_a_mask_left_in_is_called_a_wrong_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_but_one(self: segment._Segment, secrets: list[tuple[int, bytes]]) -> list[Mask]:
        return list(remaining(self, secrets))[1:]

    remaining = segment._Segment._remaining
    monkeypatch.setattr(segment._Segment, "_remaining", all_but_one)
    assert not simulated().correct


def test_a_wrong_share_is_called_a_wrong_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    def altered(points: np.ndarray, shares: np.ndarray, holders: int) -> list[bytes | None]:
        shares[0, 0, 0] ^= 1
        return shamir.reconstruct_each(points, shares, holders)

    monkeypatch.setattr(segment, "reconstruct_each", altered)
    assert not simulated(dropout=0.0).correct


def test_a_graph_that_protects_nobody_is_refused() -> None:
    with pytest.raises(PolicyError, match="2\\^-40"):
        simulate(150, degree=6, threshold=4, machines=False, processes=1)
    with pytest.raises(PolicyError, match="Lower colluders"):
        simulate(150, dropout=0.6)


@pytest.mark.parametrize(
    "arguments",
    [
        {"clients": 4},
        {"clients": 20, "entries": 0},
        {"clients": 20, "dropout": 1.0},
        {"clients": 20, "colluders": -0.1},
        {"clients": 200, "degree": 6},
        {"clients": 20, "lost_at": "lunch"},
        {"clients": 20, "machines": False},
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Expected"):
        simulate(**arguments)  # type: ignore[arg-type]


def test_an_estimate_says_the_bytes_that_real_machines_send() -> None:
    chosen, schema = plan(40, colluders=0.05, dropout=0.1), field_schema(30, 16)
    assert chosen.degree  # a ring, whose roster is larger than a neighbourhood
    nobody = np.full(40, NEVER, np.int8)
    client, server = parties.estimate_parties(40, 40, chosen, 30, 16)
    policy = Policy(threshold_fraction=chosen.fraction, colluders=0.05, sparse=True)
    names = [f"c{i:06d}" for i in range(40)]
    _, real, of_server = parties.sum_by_machines(names, nobody, chosen, schema, policy)
    assert client.bytes_up == real.bytes_up
    assert client.bytes_down == pytest.approx(real.bytes_down, abs=4)  # lengths of lists in msgpack
    assert server.bytes_up == of_server.bytes_up
    assert set(client.seconds) == set(real.seconds)


def test_what_is_reported_is_the_graph_that_ran() -> None:
    """Of 40 clients 10 lost at the advert leave 30: a complete graph, though 14 neighbours are offered."""
    offered = plan(40, colluders=0.05, dropout=0.1)
    graph = draw([f"c{i}" for i in range(30)], offered.degree, bytes(32))
    done = simulate(
        40, 5, 0.25, degree=offered.degree, threshold=offered.threshold, lost_at="advert", estimate=False
    )
    assert offered.degree > 0
    assert graph.degree == 0
    assert (done.degree, done.threshold) == (0, graph.threshold(offered.fraction))
    assert (done.privacy, done.failure, done.survivors) == (0, 0, 30)
    with pytest.raises(ValueError, match="complete one for 30 clients"):
        simulate(40, 5, 0.25, degree=14, threshold=11, lost_at="advert", machines=False)
    kept = simulate(40, 5, 0.1, degree=offered.degree, threshold=offered.threshold, lost_at="advert")
    assert (kept.degree, kept.threshold) == (offered.degree, offered.threshold)


@pytest.mark.parametrize(
    ("advertised", "degree"), [(32, 14), (33, 14), (33, 32), (34, 32), (60, 58), (59, 58)]
)
def test_which_graph_runs_is_what_is_drawn(advertised: int, degree: int) -> None:
    drawn = draw([f"c{i}" for i in range(advertised)], degree, bytes(32))
    fraction = (degree // 2 + 8) / (degree + 1)
    chosen = Plan(80, 0.0, degree, degree // 2 + 8, fraction, 0.0, 0.0, 1)
    ran = _as_run(chosen, advertised, 0)
    assert (ran.degree, ran.threshold) == (drawn.degree, drawn.threshold(fraction))


def test_real_machines_run_a_round_on_a_ring() -> None:
    done = simulate(40, entries=30, dropout=0.1)
    assert done.correct
    assert done.method == "machines"
    assert done.degree > 0
    assert done.client is not None
    assert done.client.bytes_up > 0


@pytest.mark.slow
def test_three_thousand_clients_are_summed_exactly() -> None:
    before = megabytes()  # of this process in its life: other tests' memory, too
    done = simulate(3000, entries=100, dropout=0.1, colluders=0.01, processes=2)
    assert done.correct
    assert done.survivors == 2820
    assert done.peak_megabytes < before + 1000


# --- nothing in it is a shortcut --------------------------------------------------------------------------


def test_without_losses_too_every_vector_carries_pair_masks_that_cancel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Masks between survivors cancel, so the sum alone would not miss them."""
    seen: list[np.ndarray] = []
    submit = segment._Segment._submit

    def recording(self: segment._Segment, ready: list[tuple[int, np.ndarray]]) -> None:
        seen.extend(masks.copy() for _, masks in ready)
        submit(self, ready)

    monkeypatch.setattr(segment._Segment, "_submit", recording)
    assert simulated(dropout=0.0).correct
    assert len(seen) == 150
    assert all(each.all() for each in seen), "a word without any mask has chance 2^-64"
    assert len({each.tobytes() for each in seen}) == 150
    assert not sum(seen).any()


def test_secrets_graphs_and_values_are_drawn_afresh_for_every_client() -> None:
    schema = field_schema(2_000, 16)
    names = [f"c{i}" for i in range(200)]
    graphs, bindings = zip(*(_draw_graph(names, 20, schema) for _ in range(2)), strict=True)
    assert graphs[0] != graphs[1]
    assert bindings[0].roster != bindings[1].roster
    ring = _Ring(np.array(graphs[0]._ring), np.full(200, NEVER, np.int8), 10, 14)
    segments = ring.segments(np.ones(200, bool), bindings[0], schema, 200, 1)
    seeds = np.concatenate([segment.seeds[10:-10] for segment in segments])
    assert len(seeds) == 200
    halves = seeds.reshape(-1, 4).view("<u4").ravel()
    assert len(set(halves.tolist())) > halves.size - 4, "of 3,200 words of 32 bits hardly two are equal"
    draws = [draw_values(schema, np.random.default_rng(), 1) for _ in range(2)]
    assert not np.array_equal(*draws)
    for drawn in draws:
        assert drawn.min() < -32_000
        assert drawn.max() > 32_000


def test_fewer_than_one_process_is_refused() -> None:
    with pytest.raises(ValueError, match="processes >= 1"):
        simulated(processes=0)


def test_a_workers_memory_is_its_own_and_not_that_of_a_large_parent() -> None:
    """The system's count goes on through exec, so a worker's would be its parent's at least."""
    held = np.ones(500 * 2**17)  # 500 MB
    assert megabytes() > 500
    child = "from secagg.simulate.segment import megabytes; print(megabytes())"
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, check=True, text=True)
    assert 5 < float(done.stdout) < 300
    assert held[0] == 1


# --- what is left behind ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_a_command_that_is_killed(how: signal.Signals) -> None:
    """They hold the secrets of a simulated round, and nobody is left to ask them for their part."""
    command = [sys.executable, "-m", "secagg.simulate", "--clients", "20000", "--processes", "2"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as parent:
        started = time.monotonic()
        while len(_session(parent.pid)) < 3:  # the workers
            assert parent.poll() is None, "it has ended by itself"
            assert time.monotonic() - started < 60, "no worker has started"
            time.sleep(0.1)
        parent.send_signal(how)
        parent.wait(30)
        while left := _session(parent.pid):
            assert time.monotonic() - started < 90, f"still there: {left}"
            time.sleep(0.1)


def _session(leader: int) -> list[int]:
    """Processes of a session that are alive."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text("utf-8", "replace").rpartition(") ")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found
