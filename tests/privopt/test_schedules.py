"""Kills and losses at any point, by schedule, against the run in which only the last attempts happened."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
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
from privopt.federation.messages import Begin, unverified
from privopt.federation.privacy import PrivacyPlan
from tests.privopt.federated import Quadratic, federation

ROUNDS, CLIENTS = 4, 6
Losses = frozenset[tuple[str, str]]  # (client, stage); stages below
STAGES = ("offer", "ready", "roster", "vector", "restart")


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
        opened = unverified(message)
        lost = self.lost(opened.round)
        first = isinstance(opened, Begin)
        self.tick()
        if (client.id, "offer" if first else "roster") in lost:
            raise ConnectionError
        if not first and (client.id, "restart") in lost:
            # This client's process alone is started again from its files, and knows of no advert.
            client = next(c for c in self.build().clients.values() if c.id == client.id)
            self.federation.clients[client.id] = client
            with pytest.raises(ValueError, match="no advert of it stands"):
                client.handle(message)
            raise ConnectionError
        answer = client.handle(message)
        self.tick()
        if (client.id, "ready" if first else "vector") in lost:
            raise ConnectionError
        return answer

    def go(self) -> Federation:
        """Until the last round is closed, through all kills."""
        kills = list(self.kills)
        while True:
            self.countdown = kills.pop(0) if kills else None
            self.federation = found = self.build()
            path = self.folder / "server.state"
            if path.exists():
                found.server.set_state(read_state(path))
            try:
                while found.server.round < ROUNDS:
                    found.run_round()
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
    st.tuples(st.sampled_from([f"c{i}" for i in range(3)]), st.sampled_from(STAGES)), max_size=2
)
schedules = st.fixed_dictionaries(
    {
        "losses": st.dictionaries(
            st.integers(1, ROUNDS), st.lists(losses, min_size=1, max_size=3), max_size=3
        ),
        "kills": st.lists(st.integers(0, 150), max_size=4),
        "masks": st.booleans(),
    }
)


@settings(max_examples=20, deadline=None)
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


@settings(max_examples=10, deadline=None)
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
