"""Kills, losses, delays and repeats at any point, by schedule.

Against the run in which only the last attempts happened, and against one in clear that leaves the same
clients out of the same rounds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dp
import secagg
from privopt import Optimizer, Vector
from privopt.checkpoint import dump_state, read_state, write_state
from privopt.federation.client import Client
from privopt.federation.federation import Federation
from privopt.federation.home import Home
from privopt.federation.messages import unverified
from privopt.federation.privacy import PrivacyPlan
from privopt.federation.reports import RoundReport
from tests.privopt.federated import STAGES, Quadratic, federation

ROUNDS, CLIENTS = 4, 7
Losses = frozenset[tuple[str, str, str]]
"""What befalls whom at which stage (in clear there is but the first): (client, event, stage).

``deaf``: the server's message never arrives; ``lost``: the answer never does; ``late``: it does, after the
stage; ``twice``: message and answer both come again; ``restart``: the client's process ends before that.
"""
EVENTS = ("deaf", "lost", "late", "twice", "restart")


class KilledError(BaseException):
    """The process is gone: nothing in memory survives."""


@dataclass
class World:
    """One folder, what is lost in which attempt of which round, and when the process is killed."""

    folder: Path
    losses: Mapping[int, list[Losses]]
    kills: list[int]
    masks: bool
    private: bool = False
    attempts: dict[int, int] = field(default_factory=dict)
    countdown: int | None = None
    late: list[tuple[int, str | None, bytes]] = field(default_factory=list)
    reports: dict[int, RoundReport] = field(default_factory=dict)
    draws: list[tuple[str, str]] = field(default_factory=list)

    def tick(self) -> None:
        """A point at which the process may die."""
        if self.countdown is not None:
            self.countdown -= 1
            if self.countdown < 0:
                raise KilledError

    def lost(self, round_number: int) -> Losses:
        given = self.losses.get(round_number, [])
        attempt = self.attempts.get(round_number, 0)
        return given[min(attempt, len(given) - 1)] if given else frozenset()

    # ---- the processes -----------------------------------------------------------------------------------

    def build(self) -> Federation:
        options: dict[str, Any] = {"plan": PLAN} if self.private else {}
        return federation(
            self.folder,
            {f"c{i}": Points(i, self) for i in range(CLIENTS)},
            masks=self.masks,
            transport=self.transport,
            client=lambda: Optimizer(0.05, modules=["scaffold-client", "momentum"]),
            **options,
        )

    def transport(self, client: Client, message: bytes) -> bytes | None:
        number, server = unverified(message).round, self.federation.server
        stage = server.stage if self.masks else "advert"
        event = next((e for c, e, s in sorted(self.lost(number)) if (c, s) == (client.id, stage)), None)
        self.tick()
        self.deliver_late()
        if event == "deaf":
            raise ConnectionError
        if event == "restart":
            # This client's process alone is started again from its files, and knows of no advert.
            client = next(c for c in self.build().clients.values() if c.id == client.id)
            self.federation.clients[client.id] = client
            if stage != "advert":
                with pytest.raises(ValueError, match="no advert of it stands"):
                    client.handle(message)
                raise ConnectionError
        answer = client.handle(message)
        self.tick()
        if event == "twice":
            refuses(client.handle, message)
            assert answer is not None
            server.receive(answer)  # and the federation's own delivery is the second
        if event == "late":
            self.late.append((number, stage, answer or b""))
        if event in ("lost", "late"):
            raise ConnectionError
        return answer

    def deliver_late(self) -> None:
        """What a stage waited for in vain arrives in the next, or in a later round."""
        server = self.federation.server
        now = server.report.round, server.stage if self.masks else "advert"
        for number, stage, answer in self.late:
            if (number, stage) != now:
                refuses(server.receive, answer)
        self.late = [found for found in self.late if found[:2] == now]

    def go(self) -> Federation:
        """Until the last round is closed, through all kills."""
        kills = list(self.kills)
        while True:
            self.countdown = kills.pop(0) if kills else None
            self.federation = found = self.build()
            self.late = []  # on their way to a process that is gone
            path = self.folder / "server.state"
            if path.exists():
                found.server.set_state(read_state(path))
            try:
                while found.server.round < ROUNDS:
                    report = found.run_round()
                    self.reports[report.round] = report
                    self.tick()
                    write_state(path, found.server.get_state())
                    self.tick()
            except KilledError:
                done = read_state(path)["round"] if path.exists() else 0
                self.attempts[done + 1] = self.attempts.get(done + 1, 0) + 1
                continue
            finally:
                found.close()
            return found

    @contextmanager
    def deadly(self) -> Iterator[None]:
        """Every durable write is a point to die before and after."""
        with pytest.MonkeyPatch.context() as patch:
            for owner, name in ((Home, "write_state"), (secagg.FileRegister, "claim")):
                patch.setattr(owner, name, self._around(getattr(owner, name)))
            if self.private:
                for name in ("reserve", "commit"):
                    patch.setattr(dp.Ledger, name, self._around(getattr(dp.Ledger, name)))
            yield

    def _around(self, call: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            result = call(*args, **kwargs)
            self.tick()
            return result

        return wrapped


def refuses(call: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises((ValueError, secagg.SecAggError)):
        call(data)


PLAN = PrivacyPlan(8.0, 1e-3, 1.0, 0.5, 10_000, 40.0)


class Points(Quadratic):
    """A client of `World`; under DP its draws are cheap, and written down by stream."""

    def __init__(self, number: int, world: World) -> None:
        points = np.random.default_rng(number).normal(size=(30 + number, 5)).astype(np.float32)
        super().__init__(points, scale=0.5 + 0.1 * number, dtype="float32")
        self.name, self.world = f"c{number}", world

    def private_gradient(self, plan: PrivacyPlan) -> Any:
        return self

    def draw(self, stream: Any) -> dict[str, npt.NDArray[np.float64]]:
        numbers = stream.uint64(6)
        self.world.draws.append((self.name, numbers.tobytes().hex()))
        noise = (numbers >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5
        return {"w": noise[:5], "b": noise[5]}


def effective(found: Federation) -> tuple[bytes, dict[str, bytes]]:
    """The server's state, and each client's as the next round would find it."""
    server = found.server.get_state()
    clients = {}
    for name, client in found.clients.items():
        client._settle(found.server.accepted[name])
        clients[name] = dump_state(client._base)
    return dump_state(server), clients


losses = st.frozensets(
    st.tuples(st.sampled_from([f"c{i}" for i in range(4)]), st.sampled_from(EVENTS), st.sampled_from(STAGES)),
    max_size=4,
)
schedules = st.fixed_dictionaries(
    {
        "losses": st.dictionaries(
            st.integers(1, ROUNDS), st.lists(losses, min_size=1, max_size=3), max_size=3
        ),
        "kills": st.lists(st.integers(0, 250), max_size=4),
        "masks": st.booleans(),
    }
)


@settings(max_examples=10, deadline=None)
@given(schedule=schedules)
def test_any_schedule_of_kills_and_losses_ends_as_if_only_the_last_attempts_had_been(
    schedule: dict[str, Any],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "a", **schedule)
        world.folder.mkdir()
        with world.deadly():
            found = world.go()
        last = {number: [world.lost(number)] for number in range(1, ROUNDS + 1)}
        plain = World(Path(folder) / "b", last, [], schedule["masks"])
        plain.folder.mkdir()
        wanted = plain.go()
        assert effective(found) == effective(wanted)
        verify_agreement(found)


@settings(max_examples=6, deadline=None)
@given(losses=st.lists(losses, min_size=ROUNDS, max_size=ROUNDS))
def test_any_schedule_of_losses_is_the_run_in_clear_that_leaves_the_same_clients_out(
    losses: list[Losses],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        masked = World(Path(folder) / "a", {i: [each] for i, each in enumerate(losses, 1)}, [], True)
        masked.folder.mkdir()
        found = masked.go()
        left = {}
        for number, report in masked.reports.items():
            left[number] = [
                frozenset((n, "deaf", "advert") for n, c in report.clients.items() if c.status != "ok")
            ]
            for name, event, stage in losses[number - 1]:
                verify_report(report, name, event, stage)
        clear = World(Path(folder) / "b", left, [], False)
        clear.folder.mkdir()
        wanted = clear.go()
        assert [r.status for r in clear.reports.values()] == [r.status for r in masked.reports.values()]
        assert found.server.accepted == wanted.server.accepted
        gap = np.abs(found.server.weights.flatten() - wanted.server.weights.flatten()).max()
        assert gap <= precision(masked)
        effective(found)
        verify_agreement(found)


def precision(masked: World) -> float:
    """What rounding may move the weights by: a quantum of each field a round, doubled by momentum.

    Four steps of 0.05 along what momentum makes of an error: at most ten times it, so twice its size.
    """
    budget = 0.0
    for report in masked.reports.values():
        assert not any(report.clipped.values())
        budget += sum(3 * bound / (2**15 - 1) for bound in report.bounds.values())
    return budget


def test_leaving_out_one_client_more_is_beyond_the_precision(tmp_path: Path) -> None:
    """The power of the comparison above."""
    masked = World(tmp_path / "a", {2: [frozenset({("c1", "lost", "vector")})]}, [], True)
    clear = World(tmp_path / "b", {}, [], False)
    gaps = np.abs(masked.go().server.weights.flatten() - clear.go().server.weights.flatten())
    assert gaps.max() > 2 * precision(masked)


def verify_report(report: RoundReport, name: str, event: str, stage: str) -> None:
    """A loss is told at its stage, or an earlier one; who is lost after its vector counts."""
    if event == "twice" or (event, stage) == ("restart", "advert"):
        return
    said = report.clients[name]
    reached = report.status == "ok" or said.dropped is not None
    if reached:
        assert said.dropped is not None
        assert STAGES.index(said.dropped) <= STAGES.index(stage)
    if report.status == "ok":
        assert (said.status == "ok") == (said.dropped in ("consistency", "unmask"))


def verify_agreement(found: Federation) -> None:
    """Scaffold's server holds the sum of the clients' control variates, and counts who it ever heard of."""
    server: Any = found.server.optimizer.modules[0]
    controls = []
    for name, client in found.clients.items():
        module: Any = client.optimizer.modules[0]
        assert module.known == (found.server.accepted[name] > 0)
        if isinstance(module.control, Vector) and module.known:
            controls.append(module.control.flatten().astype(np.float64))
    assert server.clients == len(controls)
    if controls:
        # Both sides add in float32, in different orders.
        assert np.allclose(server.total.flatten(), np.sum(controls, axis=0), atol=2e-5)


@settings(max_examples=6, deadline=None)
@given(schedule=schedules)
def test_no_schedule_draws_what_the_ledger_does_not_count_or_draws_it_twice(schedule: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "a", **schedule, private=True)
        world.folder.mkdir()
        with world.deadly():
            world.go()
        assert len(set(world.draws)) == len(world.draws), "a batch or noise came twice"
        for number in range(CLIENTS):
            name = f"c{number}"
            ledger = Home(world.folder / name, name).ledger()
            counted = sum(int(r.event.count) for r in ledger.releases("test"))  # type: ignore[attr-defined]
            ledger.close()
            assert counted >= sum(drawn == name for drawn, _ in world.draws)
