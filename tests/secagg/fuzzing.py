"""Fuzzing: hostile bytes against every decoder, and against both machines in every phase.

    python -m tests.secagg.fuzzing --inputs 1000000

Inputs are real messages of recorded rounds, altered: bits, lengths, splices, truncations, msgpack bombs,
plain noise; and headers whose fields were changed one by one, sealed again with the key of an enrolled party,
so that what stands behind the signature check is reached. A machine is put back into its phase after
each input that changed it. Whatever is raised must be documented, a refused message must change nothing, no
input may take long or much memory. A failure prints the input.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from secagg import (
    Client,
    FileRegister,
    Identity,
    MessageError,
    Roster,
    Schema,
    SecAggError,
    Server,
    shamir,
)
from secagg import client as client_module
from secagg import server as server_module
from secagg.messages import KINDS, open_sealed
from tests.secagg.threats.mutations import (
    DECLARED,
    HYBRID,
    JSON_ODD,
    NOT_BYTES,
    PLAIN,
    SCHEMA,
    Mutator,
    State,
    places,
    recorded,
    sparse,
)
from tests.secagg.threats.snapshots import snapshot, snapshot_of_server

MAX_SECONDS = 20.0
"""For one input; a hang is minutes, and a busy machine stalls for a second or two."""
MAX_BYTES = 2**24
MEASURED = 0.02
"""Of how many inputs the memory is measured, beside all that are long."""


class Found(Exception):  # noqa: N818  # it names what happened
    """An input that does what none may."""


@dataclass
class Report:
    """What a run has seen."""

    inputs: int = 0
    seconds: float = 0.0
    core_seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    targets: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)
    slowest: float = 0.0
    most_bytes: int = 0

    def __str__(self) -> str:
        def listed(counter: Counter[str]) -> str:
            return ", ".join(f"{name} {count:,}" for name, count in counter.most_common())

        rate = self.inputs / max(self.seconds, 1e-9)
        return (
            f"{self.inputs:,} inputs in {self.seconds:.0f} s ({rate:,.0f}/s), {self.core_seconds:.0f} s of a "
            "core. Outcomes: "
            f"{listed(self.outcomes)}. Past the signature: {listed(self.kinds)}. Targets: "
            f"{listed(self.targets)}. Slowest {self.slowest * 1e3:.0f} ms, most memory "
            f"{self.most_bytes / 2**20:.1f} MiB, process {_resident():.0f} MiB. Failures: "
            f"{len(self.failures)}."
            + "".join(f"\n{what}\n    {given}" for what, given in self.failures.items())
        )


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Fuzzer:
    """Throws inputs at every target, in proportions that spend the time where the code is."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = random.Random(seed)
        self.worlds = [recorded(PLAIN), recorded(HYBRID), sparse()]
        self.mutator = Mutator(self.rng, self.worlds)
        self.report = Report()
        self.folder = folder
        self.states = [state for world in self.worlds for state in world.states]
        self.clients = [state for state in self.states if isinstance(state.machine, Client)]
        self.servers = [state for state in self.states if isinstance(state.machine, Server)]
        self.live = {id(state): self.fresh(state) for state in self.states}
        self.expected = {
            (id(world), kind): world.of(kind) or self.worlds[0].of(kind)
            for world in self.worlds
            for kind in range(10)
        }
        self.schemas = [SCHEMA.to_bytes(), *(world.parties.server.schema.to_bytes() for world in self.worlds)]
        self.rosters = [world.parties.roster.to_json() for world in self.worlds[:1]]
        self.keys = {"": self.worlds[0].parties.roster.server, **self.worlds[0].parties.roster.clients}
        identity = self.worlds[0].parties.people[0]
        self.identity = folder / "identity"
        identity.save(self.identity)
        self.identity_text = self.identity.read_bytes()
        self.targets: list[tuple[str, float, Callable[[], Any]]] = [
            ("decoder", 36, self.decoder),
            ("client, unsigned", 12, lambda: self.machine(self.clients, False)),
            ("server, unsigned", 10, lambda: self.machine(self.servers, False)),
            ("client, signed", 11, lambda: self.machine(self.clients, True)),
            ("server, signed", 10, lambda: self.machine(self.servers, True)),
            ("schema", 9, self.schema),
            ("roster", 3, self.roster),
            ("register", 0.5, self.register),
            ("identity", 2, self.load),
            ("shamir", 5, self.shamir),
            ("not bytes", 1.5, self.not_bytes),
        ]

    def fresh(self, state: State) -> Any:
        machine = state.machine
        return snapshot(machine) if isinstance(machine, Client) else snapshot_of_server(machine)

    def run(self, inputs: int, progress: Callable[[Report], None] = lambda _: None) -> Report:
        """Throw so many inputs.

        Raises:
            Found: If some did what none may; it lists the first of each kind.
        """
        names = [target[0] for target in self.targets]
        weights = [target[1] for target in self.targets]
        calls = {target[0]: target[2] for target in self.targets}
        started, used = time.perf_counter(), time.process_time()
        while self.report.inputs < inputs:
            batch = self.rng.choices(names, weights, k=min(1000, inputs - self.report.inputs))
            for name in batch:
                calls[name]()
                self.report.targets[name] += 1
            self.report.inputs += len(batch)
            self.report.seconds = time.perf_counter() - started
            self.report.core_seconds = time.process_time() - used
            progress(self.report)
        if self.report.failures:
            raise Found(str(self.report))
        return self.report

    def throw(
        self, what: str, given: Any, call: Callable[[Any], Any], allowed: tuple[type[Exception], ...]
    ) -> Exception | None:
        """One input: the call, what it may raise, its time and, now and then, its memory."""
        measured = self.rng.random() < MEASURED or (isinstance(given, bytes) and len(given) > 20_000)
        if measured:
            tracemalloc.start()
        before, raised = time.perf_counter(), None
        try:
            call(given)
        except allowed as error:
            raised = error
        except Exception as error:  # noqa: BLE001  # whatever it is, it is what is looked for
            self.fail(f"{what} raised {type(error).__name__} at {place_of(error)}: {error!s:.200}", given)
            raised = error
        finally:
            taken = time.perf_counter() - before
            peak = tracemalloc.get_traced_memory()[1] if measured else 0
            if measured:
                tracemalloc.stop()
        self.report.slowest = max(self.report.slowest, taken)
        self.report.most_bytes = max(self.report.most_bytes, peak)
        self.report.outcomes["accepted" if raised is None else type(raised).__name__] += 1
        if taken > MAX_SECONDS or peak > MAX_BYTES:
            self.fail(f"{what} took {taken:.0f} s, {peak >> 20} MiB", given)
        return raised

    def fail(self, what: str, given: Any) -> None:
        """Keep the first input of each kind of failure."""
        self.report.failures.setdefault(what, shown(given))

    def decoder(self) -> None:
        """Every message of every kind, whatever is expected."""
        data = self.mutator.raw(self.rng.choice(self.mutator.every))
        self.throw(
            "open_sealed", data, lambda d: open_sealed(d, tuple(KINDS), self.keys, 2**20), (MessageError,)
        )

    def machine(self, states: list[State], signed: bool) -> None:
        """A machine in one of its phases; mostly with the kind of message that it waits for."""
        rng, state = self.rng, self.rng.choice(states)
        if rng.random() < 0.85:
            message = rng.choice(self.expected[id(state.world), state.expected])
        else:
            message = rng.choice(state.world.messages)
        data = self.mutator.resealed(message) if signed else self.mutator.raw(message)
        machine = self.live[id(state)]
        phase, round = machine._phase, machine._round
        raised = self.throw(state.name, data, lambda d: receive(machine, d), (SecAggError,))
        if isinstance(raised, MessageError):
            if (machine._phase, machine._round) != (phase, round):
                self.fail(f"{state.name}: a refused message changed its state", data)
            return
        if raised is not None and machine._phase not in (phase, type(phase).IDLE):
            raise Found(f"{state.name}: went on to {machine._phase} after {raised!r}; input {shown(data)}")
        if isinstance(machine, Server):
            machine.abort()  # closes the files of vectors in parts
        self.live[id(state)] = self.fresh(state)

    def schema(self) -> None:
        data = self.mutator.schema(self.rng.choice(self.schemas))
        self.throw("Schema.from_bytes", data, Schema.from_bytes, (SecAggError,))

    def roster(self) -> None:
        text = self.text(self.rng.choice(self.rosters).encode())
        self.throw("Roster.from_json", text.decode("utf-8", "replace"), Roster.from_json, (SecAggError,))

    def text(self, data: bytes) -> bytes:
        """JSON of another shape, or damaged."""
        if self.rng.random() < 0.6:
            return self.mutator.noise(data)
        if self.rng.random() < 0.05:
            return b"[" * 50_000
        tree = json.loads(data)
        parent, key = self.rng.choice(list(places(tree)))
        parent[key] = self.rng.choice(JSON_ODD)
        return json.dumps(tree).encode()

    def register(self) -> None:
        """A file with damaged records, and a claim."""
        path = self.folder / "register"
        lines = b"".join(b"%s %d .\n" % (self.rng.randbytes(16).hex().encode(), n) for n in range(5))
        path.write_bytes(self.mutator.noise(lines) if self.rng.random() < 0.9 else lines)
        self.throw("FileRegister", path, lambda p: FileRegister(p).claim(bytes(16), 1), (SecAggError,))

    def load(self) -> None:
        self.identity.write_bytes(self.text(self.identity_text))
        self.throw("Identity.load", self.identity, Identity.load, (SecAggError,))

    def shamir(self) -> None:
        """Points and shares that are none, or belong to nobody."""
        rng = self.rng
        count = rng.randrange(8)
        points = [rng.choice((1, 2, 3, 4, 5, 6, 7, 8, 0, -1, 2**20, 2**31 - 2, 2**31)) for _ in range(count)]
        if rng.random() < 0.5:
            points = rng.sample(range(1, 12), count)
        shape = (
            (count, rng.randrange(3), 9)
            if rng.random() < 0.8
            else tuple(rng.choices(range(10), k=rng.randrange(4)))
        )
        dtype = rng.choice((np.uint32, np.uint32, np.int64, np.uint64, np.int32))
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        shares: Any = np.frombuffer(rng.randbytes(size), dtype).reshape(shape)
        if rng.random() < 0.7:
            shares = shares // 4 if rng.random() < 0.5 else np.zeros_like(shares)
        given = (points, shares.tolist(), str(shares.dtype))
        if rng.random() < 0.5:
            self.throw(
                "shamir.reconstruct", given, lambda _: shamir.reconstruct(points, shares), (ValueError,)
            )
            return
        t, passes = rng.randrange(-1, 9), rng.random() < 0.5
        self.throw(
            "shamir.reconstruct_verified",
            (*given, t),
            lambda _: shamir.reconstruct_verified(points, shares, t, lambda _: passes),
            (ValueError,),
        )

    def not_bytes(self) -> None:
        given, state = self.rng.choice(NOT_BYTES), self.rng.choice(self.states)
        raised = self.throw(
            state.name, given, lambda d: receive(self.live[id(state)], d), (TypeError, SecAggError)
        )
        if raised is None:
            self.fail(f"{state.name} accepted {type(given).__name__}", given)


def receive(machine: Client | Server, data: Any) -> None:
    if isinstance(machine, Client):
        machine.receive(data, declared=DECLARED)
    else:
        machine.receive(data)


def place_of(error: Exception) -> str:
    """Where in our code it was raised."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "tests" not in frame.filename]
    ours = [frame for frame in frames if f"{os.sep}secagg{os.sep}" in frame.filename]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"


def shown(given: Any) -> str:
    """An input as a person can paste it into a test."""
    text = given.hex() if isinstance(given, bytes) else repr(given)
    return text if len(text) <= 1_500 else f"{text[:1_500]}… ({len(text)} characters)"


def counting(report: Report) -> Callable[[], None]:
    """Count what gets past the signature check; returns what undoes it."""

    def opened(data: Any, kinds: Any, keys: Any, max_bytes: int) -> Any:
        found = open_sealed(data, kinds, keys, max_bytes)
        report.kinds[type(found.message).__name__] += 1
        return found

    for module in (client_module, server_module):
        module.open_sealed = opened  # type: ignore[attr-defined]

    def undo() -> None:
        for module in (client_module, server_module):
            module.open_sealed = open_sealed  # type: ignore[attr-defined]

    return undo


def fuzz(inputs: int, seed: int, progress: Callable[[Report], None] = lambda _: None) -> Report:
    """Run the fuzzer; raises Found, with inputs, if some did what none may."""
    in_memory = Path("/dev/shm")  # a folder of our own in it
    with tempfile.TemporaryDirectory(dir=in_memory if in_memory.is_dir() else None) as folder:
        fuzzer = Fuzzer(seed, Path(folder))
        undo = counting(fuzzer.report)
        try:
            return fuzzer.run(inputs, progress)
        finally:
            undo()


def main() -> None:
    parser = argparse.ArgumentParser(description="Throw hostile bytes at secagg.")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "little"))
    arguments = parser.parse_args()

    def progress(report: Report) -> None:
        signal.alarm(120)  # a batch that takes so long hangs, and the alarm ends the process
        if sys.stderr.isatty():
            share = report.inputs / arguments.inputs
            print(f"\r{report.inputs:,} inputs, {share:.0%}, {report.seconds:.0f} s", end="", file=sys.stderr)

    report = fuzz(arguments.inputs, arguments.seed, progress)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(f"Seed {arguments.seed}. {report}")


if __name__ == "__main__":
    main()
