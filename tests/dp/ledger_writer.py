"""Child processes of test_ledger_crash: `kill` is killed at random moments, `write` competes for one ledger.

Run by file, in an interpreter of its own: a fork of the tests' process would carry its threads along.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from dp.accounting import epsilon
from dp.events import Gaussian, Poisson, Repeated
from dp.heads import HeadKeeper, sign_head
from dp.ledger import Ledger, LedgerKey

EVENT = Repeated(Poisson(0.2, Gaussian(1.5)), 5)


def note(descriptor, sequence):
    """Say, durably, that what is reserved under this number is about to be drawn."""
    os.write(descriptor, f"{sequence}\n".encode())
    os.fsync(descriptor)


def release_for_ever(folder, run, *, budget):
    drawn = os.open(folder / "drawn", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    ledger = Ledger.open(folder / "ledger.sqlite", LedgerKey.load(folder / "ledger.key"))
    if budget:
        ledger.set_run_budget("icu", run=run, epsilon=1000.0, delta=1e-3)
    while True:
        reservation = ledger.reserve("icu", EVENT, run=run)
        note(drawn, reservation.sequence)
        time.sleep(0.002)  # the draw
        ledger.commit(reservation)


def kill(folder, times, seed):
    """Let a child release until it is killed, again and again; after each, the ledger must be whole."""
    chance = random.Random(seed)
    key = LedgerKey.load(folder / "ledger.key")
    epsilon(EVENT, 1e-3)  # loads the accountant once, so that children are not killed while they import it
    for number in range(times):
        child = os.fork()
        if child == 0:
            try:
                release_for_ever(folder, f"run-{number}", budget=number % 5 == 0)
            finally:
                os._exit(1)  # reached by an exception only
        time.sleep(chance.uniform(0.0, 0.12))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(f"Child {number} ended by itself.")
        with Ledger.open(folder / "ledger.sqlite", key) as ledger:
            ledger.verify()
            counted = {found.sequence for found in ledger.releases(f"run-{number}")}
        lines = (folder / "drawn").read_text().split() if (folder / "drawn").exists() else []
        with (folder / "rounds").open("a") as file:
            file.write(f"{len(counted)} {len(lines)}\n")


def heads(folder, times, seed):
    """Let a child keep heads until it is killed, again and again; it notes each that it was handed back."""
    chance = random.Random(seed)
    key, peer = LedgerKey.load(folder / "ledger.key"), LedgerKey.load(folder / "peer.key")
    answered = os.open(folder / "answered", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for _ in range(times):
        child = os.fork()
        if child == 0:
            try:
                keeper = HeadKeeper(folder / "heads", peer)
                last = keeper.newest(key.public_key)
                sequence = last.head.sequence if last else 0
                while True:
                    sequence += 1
                    keeper.keep(sign_head(key, "ab" * 16, sequence, f"{sequence:064x}"))
                    os.write(answered, f"{sequence}\n".encode())
            finally:
                os._exit(1)  # reached by an exception only
        time.sleep(chance.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            sys.exit("A child ended by itself.")


def release_apart(folder, name, budget):
    """Reserve, note, draw, commit, for ever; each release of all has an event of its own, by its count."""
    drawn = os.open(folder / f"drawn-{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    ledger = Ledger.open(folder / "ledger.sqlite", LedgerKey.load(folder / "ledger.key"))
    if budget:
        ledger.set_run_budget("icu", run=f"run-{name}", epsilon=1000.0, delta=1e-3)
    count = 0
    while True:
        count += 1
        reservation = ledger.reserve("icu", Repeated(EVENT.event, count), run=f"run-{name}")
        os.write(drawn, f"{reservation.sequence} {count}\n".encode())  # survives the death of its process
        time.sleep(0.002)  # the draw
        ledger.commit(reservation)
        time.sleep(0.02)


def hammer(folder, times, seed, processes=16):
    """Keep many children releasing into one ledger; kill one at a time, at random, and start another."""
    chance = random.Random(seed)
    epsilon(EVENT, 1e-3)  # loads the accountant once
    children, started = [], 0
    for killed in range(times + processes):
        while len(children) < processes and started < times + processes - 1:
            child = os.fork()
            if child == 0:
                try:
                    release_apart(folder, started, budget=started % 7 == 0)
                finally:
                    os._exit(1)  # reached by an exception only
            children.append(child)
            started += 1
        if not children:
            break
        time.sleep(chance.uniform(0.0, 0.15 if killed < times else 0.0))
        child = children.pop(chance.randrange(len(children)))
        os.kill(child, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
            sys.exit(f"A child ended by itself after {killed} kills.")
    (folder / "kills").write_text(str(started))


def write(folder, times, name):
    """Release `times` times while others do."""
    with Ledger.open(folder / "ledger.sqlite", LedgerKey.load(folder / "ledger.key")) as ledger:
        for number in range(times):
            reservation = ledger.reserve("icu", EVENT, run=f"run-{name}")
            (ledger.void if number % 5 == 4 else ledger.commit)(reservation)


if __name__ == "__main__":
    {"kill": kill, "write": write, "heads": heads, "hammer": hammer}[sys.argv[1]](
        Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    )
