"""What a run's own files must say alike, whatever its ledgers hold: floor 7, for `privopt audit`.

Nothing here is signed, so this finds slips and careless edits. What is signed is held against it in
`privopt.report.audit`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..federation.settings import EarlyStop
from ..setup.config import ConfigError, from_json
from ..setup.disclosed import disclosures
from ..setup.tables import Config
from .dropouts import dropout_faults
from .folder import PrivacyFacts, RoundLine, RunFacts, RunFolder

__all__ = ["Fault", "run_faults", "run_notes"]

MODEL = "model.safetensors"


@dataclass(frozen=True)
class Fault:
    """One thing that does not hold.

    Attributes:
        client: Whose record; None where it is the run's.
        record: Number of the ledger's record; None where it is not about one.
        what: In words.
    """

    client: str | None
    record: int | None
    what: str

    def __str__(self) -> str:
        where = [self.client or "the run"] + ([f"record {self.record}"] if self.record is not None else [])
        return f"{', '.join(where)}: {self.what.rstrip('.')}"


def run_faults(run: RunFolder) -> Iterator[Fault]:
    """What the run's own files say otherwise than each other."""
    yield from map(_of_the_run, _wrong(run))


def run_notes(run: RunFolder) -> list[str]:
    """What a reader should know of the folder and that is not wrong."""
    if run.run.model.sha256 is None and not (run.path / MODEL).exists():
        return [f"No {MODEL}: nothing was trained, or the run has not ended (privopt train --resume)."]
    return []


def _of_the_run(what: str) -> Fault:
    return Fault(None, None, what)


def _wrong(run: RunFolder) -> Iterator[str]:
    yield from _participants(run)
    yield from _lines(run)
    yield from _aborted(run.rounds)
    yield from _plan(run.run.dp)
    try:
        config = from_json(run.config_text)
    except ConfigError as error:
        yield f"config.json: {error}"
    else:
        yield from _config(run, config)
        yield from dropout_faults(run.rounds, config)
    yield from _model(run)


# ---- run.json by itself, and its neighbours in the folder ------------------------------------------------


def _participants(run: RunFolder) -> Iterator[str]:
    facts = run.run
    for key in ("public_key", "dataset") + (("ledger_key",) if facts.dp else ()):
        owners: dict[str, str] = {}
        for client in facts.clients:
            value = getattr(client, key)
            if value is not None and (first := owners.setdefault(value, client.id)) != client.id:
                yield f"run.json gives {first!r} and {client.id!r} the same {key}"
    for name in run.strays:
        yield f"ledgers/{name} belongs to no client of run.json"
    if facts.dp is not None:
        return
    for client in facts.clients:
        if client.id in run.ledgers:
            yield f"run.json says that dp was off, and ledgers/{client.id}.json is there"
        if client.ledger_key is not None:
            yield f"run.json says that dp was off, and pins a ledger_key of {client.id!r}"
    for line in run.rounds:
        told = [name for name, said in line.clients.items() if said.epsilon is not None]
        if line.releases or told:
            name = sorted([*line.releases, *told])[0]
            yield f"run.json says that dp was off, and round {line.round} of metrics.jsonl prices {name!r}"


def _plan(plan: PrivacyFacts | None) -> Iterator[str]:
    if plan is None:
        return
    product = plan.rounds * plan.steps
    for key in ("planned_steps", "num_steps"):
        if (value := getattr(plan, key)) != product:
            yield f"run.json says {key} {value}, which is not its {plan.rounds} rounds of {plan.steps} steps"


def _model(run: RunFolder) -> Iterator[str]:
    named, path = run.run.model.sha256, run.path / MODEL
    if not path.exists():
        if named is not None:
            yield f"{MODEL} is missing, and run.json names its SHA-256"
        return
    if named is None:
        yield f"run.json names no SHA-256 of {MODEL}, so it may be any (privopt train --resume names it)"
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != named:
        yield f"{MODEL} has SHA-256 {found[:16]}…, run.json names {named[:16]}…"


# ---- metrics.jsonl ---------------------------------------------------------------------------------------


def _lines(run: RunFolder) -> Iterator[str]:
    """Every round once and in order, each with every client and no other."""
    numbers = [line.round for line in run.rounds]
    if numbers != list(range(1, len(numbers) + 1)):
        wrong = next(n for n, number in enumerate(numbers, start=1) if n != number)
        yield f"metrics.jsonl tells round {numbers[wrong - 1]} where round {wrong} belongs"
    known = {client.id for client in run.run.clients}
    for line in run.rounds:
        for name in sorted({*line.clients, *line.releases} - known):
            yield f"round {line.round} tells of {name!r}, which run.json does not name"
        for name in sorted(known - line.clients.keys()):
            yield f"round {line.round} of metrics.jsonl leaves out client {name!r}"


def _aborted(rounds: list[RoundLine]) -> Iterator[str]:
    """An aborted round leaves the model as it was. Its releases stay: they were drawn, so they are spent."""
    before: RoundLine | None = None
    for line in rounds:
        if (line.status == "aborted") != (line.reason is not None):
            given = "none" if line.reason is None else "one"
            yield f"round {line.round} of metrics.jsonl is {line.status!r} and has {given} under 'reason'"
        if line.status == "aborted" and line.training_loss is not None:
            yield f"round {line.round} of metrics.jsonl is 'aborted' and has a training_loss"
        if line.status == "aborted" and before is not None:
            for key in ("accuracy", "loss"):
                was, now = getattr(before, key), getattr(line, key)
                if not _alike(was, now):
                    yield f"round {line.round} was aborted, and its {key} went from {was} to {now}"
        before = line


def _alike(a: float | None, b: float | None) -> bool:
    # A resumed run may go on with another build of torch, which rounds otherwise.
    return a == b if a is None or b is None else math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-9)


# ---- config.json -----------------------------------------------------------------------------------------


def _config(run: RunFolder, config: Config) -> Iterator[str]:
    facts = run.run
    for name, asked, planned in _pairs(facts, config):
        if asked != planned:
            yield f"config.json says {name} {asked}, run.json {planned}"
    if config.dp.enabled != (facts.dp is not None):
        yield "config.json and run.json differ on whether dp is on"
    if config.masks.enabled != (facts.masks is not None):
        yield "config.json and run.json differ on whether masks are on"
    try:
        expected = disclosures(config)
    except ValueError as error:
        yield f"what config.json discloses cannot be told: {error}"
    else:
        if list(facts.disclosed) != expected:
            yield f"run.json lists as disclosed {facts.disclosed}, by config.json it is {expected}"
    yield from _rounds(run, config)


def _pairs(facts: RunFacts, config: Config) -> Iterator[tuple[str, object, object]]:
    """What both files say, by name."""
    yield "number of clients", config.num_clients, len(facts.clients)
    if config.masks.enabled and facts.masks is not None:
        yield "masks.bits", config.masks.bits, facts.masks.bits
    asked, plan = config.dp, facts.dp
    if not asked.enabled or plan is None:
        return
    yield "epsilon", asked.epsilon, plan.epsilon
    yield "delta", asked.delta, plan.delta
    yield "clip_norm", asked.clip_norm, plan.clip_norm
    yield "sample rate", asked.sampler.rate, plan.sample_rate
    yield "unit", asked.unit, plan.unit
    yield "rounds", config.rounds, plan.rounds
    yield "steps", config.steps_per_round, plan.steps


def _ended_early(run: RunFolder, config: Config) -> bool:
    """Whether the rule that the configuration names ended the run."""
    stop = config.server.stop
    if stop.metric is None:
        return False
    metrics = [getattr(line, stop.metric) for line in run.rounds if line.status == "ok"]
    return EarlyStop(stop.metric, stop.patience, stop.min_change).reached(metrics)


def _rounds(run: RunFolder, config: Config) -> Iterator[str]:
    """As many rounds as asked for, unless budgets ended the run; enough clients in each that is 'ok'."""
    need = config.masks.min_clients if config.masks.enabled else 1
    for line in run.rounds:
        took = sum(said.status == "ok" for said in line.clients.values())
        if line.status == "ok" and took < need:
            yield f"round {line.round} of metrics.jsonl is 'ok' with {took} clients, it takes {need}"
    done = len(run.rounds)
    if done > config.rounds:
        yield f"metrics.jsonl has {done} rounds, config.json {config.rounds}"
    elif done < config.rounds and run.run.model.sha256 is not None and not _ended_early(run, config):
        last = run.rounds[-1].clients.values() if run.rounds else ()
        able = sum(said.status not in ("stopped", "refused") for said in last)
        if not run.rounds or able >= need:
            yield (
                f"metrics.jsonl ends at round {done} of {config.rounds}, and {able} clients could have gone "
                "on (privopt train --resume)"
            )
