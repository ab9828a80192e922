"""Checks a run's records against each other: floor 7, `privopt audit`.

`dp.audit` checks one ledger by itself and prices it; here each client's export is held against the keys, the
plan and the releases that the run's folder names. It shows that the records hold together. That the declared
code ran is not something a file can show.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from dp import LedgerError, PrivacyParameterError, PrivacyWarning, check_delta, epsilon
from dp.audit import CheckedExport, LedgerAudit, audit_ledger, check_export
from dp.events import Event, Neighboring
from dp.heads import CountersignedHead, read_heads

from .checks import Fault, run_faults, run_notes
from .folder import Participant, PrivacyFacts, Release, RunFolder, read_run
from .text import small, table

__all__ = ["Fault", "RunAudit", "audit_run", "public_key"]

_AGREES = 1e-6
"""Part of a price by which two computations of it may differ, on different machines."""
_LAST_DIGIT = 2e-6
"""Prices are multiples of 1e-6, rounded up; one more for rounding on its edge."""
_UNSIGNED = (
    "Signed are the ledgers alone. run.json, config.json and metrics.jsonl are not: who rewrites all files "
    "in agreement, ledgers and their keys included, is found only by someone who kept the ledgers' heads or "
    "knows the keys. Accuracy, loss, row counts and why a round was aborted are the run's own word."
)


@dataclass(frozen=True)
class RunAudit:
    """What the audit of a run's folder found.

    Attributes:
        run: Id of the run.
        private: Whether the run was under differential privacy.
        clients: One entry a client that has a ledger to audit.
        faults: What does not hold, by client and record.
        notes: What a reader should know and that is not wrong.
        disclosed: What left without a price, as the run declared it.
    """

    run: str
    private: bool
    clients: list[LedgerAudit]
    faults: list[Fault]
    notes: list[str]
    disclosed: list[str]

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "run": self.run,
            "ok": self.ok,
            "private": self.private,
            "clients": [
                {
                    "client": one.client,
                    "events": one.events,
                    "epsilon": {by: _finite(value) for by, value in one.epsilon.items()},
                    "delta": one.delta,
                    "chain": one.chain,
                    "signature": one.signature,
                    "matches": one.matches,
                    "ok": one.ok,
                }
                for one in self.clients
            ],
            "problems": [asdict(fault) for fault in self.faults],
            "notes": self.notes,
            "disclosed": self.disclosed,
        }

    def __str__(self) -> str:
        parts = [self._table(), self._verdict(), *self.notes, self._unpriced(), _UNSIGNED]
        return "\n\n".join(filter(None, parts))

    def _table(self) -> str:
        columns = ["client", "events", "ε (PLD)", "ε (RDP)", "ε (PRV)", "δ", "chain", "signature"]
        rows = [
            [
                one.client,
                str(one.events),
                *(f"{one.epsilon[by]:.2f}" if by in one.epsilon else "–" for by in ("PLD", "RDP", "PRV")),
                small(one.delta),
                *("ok" if holds else "FAULT" for holds in (one.chain, one.signature, one.matches)),
            ]
            for one in self.clients
        ]
        return table([*columns, "matches the run"], rows, numeric=(1, 2, 3, 4)) if rows else ""

    def _verdict(self) -> str:
        if not self.faults:
            what = "Every record holds." if self.private else "There is nothing to price: dp was off."
            return f"{what} The records agree with each other; that the declared code ran, no file can show."
        first, *others = self.faults
        text = f"First fault: {first}."
        shown = "".join(f"\n  {fault}." for fault in others[:20])
        more = f"\n  and {len(others) - 20} more (--format json lists all)" if len(others) > 20 else ""
        return text + (f"\nAlso:{shown}{more}" if others else "")

    def _unpriced(self) -> str:
        rest = (
            "Nothing else left the clients but noised values."
            if self.private
            else "Without dp, the updates themselves have no price."
        )
        return f"Disclosed without a price: {'; '.join(self.disclosed) or 'nothing'}. {rest}"


def audit_run(folder: str | Path) -> RunAudit:
    """Check a run's folder: every client's ledger, and what the run says about itself.

    Guarantees:
        - Nothing in the folder is executed, and no file outside it is read.
        - Each fault names the client and, where it is about one, the record.

    Args:
        folder: Where `privopt train` kept the run.

    Returns:
        The audit; `RunAudit.ok` is False if anything does not hold.

    Raises:
        RunFolderError: If the folder is not, or not wholly, a run's.
    """
    run = read_run(folder)
    facts = run.run
    disclosed = [
        item if isinstance(item, str) else msgspec.json.encode(item).decode() for item in facts.disclosed
    ]
    if facts.dp is None:
        return RunAudit(facts.id, False, [], list(run_faults(run)), run_notes(run), disclosed)
    audits, faults, notes = [], list(run_faults(run)), run_notes(run)
    heads = _kept_heads(run.path, faults)
    for client in facts.clients:
        faults += _own_faults(facts.dp, client)
        releases = [release for line in run.rounds for release in line.releases.get(client.id, ())]
        path = run.ledgers.get(client.id)
        if path is None:
            what = (
                "no export of its ledger in ledgers/ (a run writes them at its end: privopt train --resume)"
            )
            faults.append(Fault(client.id, None, what))
            continue
        key = public_key(client.ledger_key)
        if key is None:
            faults.append(Fault(client.id, None, "run.json pins no key of its ledger, so it proves nothing"))
        found = audit_ledger(
            path,
            client=client.id,
            public_key=key,
            run=facts.id,
            delta=facts.dp.delta,
            recorded=[msgspec.to_builtins(release) for release in releases],
            heads=heads,
        )
        audits.append(found)
        notes += [f"{client.id}: {note}" for note in found.notes]
        checked = check_export(path, public_key=key, heads=heads)
        problems = found.problems if checked.export is not None else checked.problems
        faults += [Fault(client.id, problem.record, problem.what) for problem in problems]
        if checked.export is None:
            continue  # what it does not hold follows from its not being one
        faults += _plan_faults(facts.dp, client, releases, found)
        faults += _price_faults(facts.dp, found)
        faults += _told_faults(run, facts.dp, found, checked)
        faults += _budget_faults(facts.dp, client, facts.id, checked)
        faults += _relation_faults(facts.dp, client, facts.id, checked)
    return RunAudit(facts.id, True, audits, faults, notes, disclosed)


def _kept_heads(folder: Path, faults: list[Fault]) -> list[CountersignedHead] | None:
    """Heads of the clients' ledgers that a peer kept with the run; None where it kept none."""
    path = folder / "heads.jsonl"
    try:
        return read_heads(path) if path.exists() else None
    except (LedgerError, OSError) as error:
        faults.append(Fault(None, None, f"heads.jsonl cannot be read: {error}"))
        return None


def public_key(text: str | None) -> bytes | None:
    """An Ed25519 public key from hex; None if the text is none."""
    try:
        key = bytes.fromhex(text or "")
    except ValueError:
        return None
    return key if len(key) == 32 else None


def _finite(value: float) -> float | str:
    # JSON knows no infinity.
    return value if value < float("inf") else "infinity"


def _plan_faults(
    plan: PrivacyFacts, client: Participant, releases: Sequence[Release], found: LedgerAudit
) -> Iterator[Fault]:
    """Releases that are not those of the plan, and more of them than planned."""
    for release in releases:
        said = (release.sampler, release.sample_rate, release.clip_norm, release.noise_multiplier)
        planned = ("poisson", plan.sample_rate, plan.clip_norm, plan.noise_multiplier)
        if said != planned:
            yield Fault(
                client.id,
                release.ledger_sequence,
                "is recorded with sampler, rate, clip norm and noise "
                f"{', '.join(map(str, said))}; the plan has {', '.join(map(str, planned))}",
            )
    if found.events > plan.planned_steps:
        what = f"its ledger counts {found.events} releases of this run, {plan.planned_steps} were planned"
        yield Fault(client.id, None, what)


def _price_faults(plan: PrivacyFacts, found: LedgerAudit) -> Iterator[Fault]:
    """A price above the budget."""
    price = found.epsilon.get("PLD")
    if price is not None and not price <= plan.epsilon:
        yield Fault(found.client, None, f"spent ε = {price:.4f}, of at most {plan.epsilon:g}")


def _told_faults(
    run: RunFolder, plan: PrivacyFacts, found: LedgerAudit, checked: CheckedExport
) -> Iterator[Fault]:
    """What each round's line tells of a client otherwise than its releases up to there say."""
    reservations = checked.history.reservations
    priced = found.chain and found.signature and found.matches and "PLD" in found.epsilon
    events: list[Event] = []
    steps = last = 0
    relation: str = Neighboring.ADD_OR_REMOVE_ONE
    for line in run.rounds:
        where = f"round {line.round} of metrics.jsonl"
        new = line.releases.get(found.client, [])
        for release in new:
            number = release.ledger_sequence or 0
            if number <= last:
                yield Fault(found.client, number, f"stands in {where}, after record {last}")
            last = max(last, number)
            steps += release.steps
            if priced:
                events.append(reservations[number].event)
                # The ledger's: if the plan has another, that is told by itself, and may have no price.
                relation = checked.history.relations[reservations[number].dataset][1]
        said = line.clients.get(found.client)
        if said is None:
            continue  # told as a fault of the run
        if said.status == "ok" and not new:
            yield Fault(found.client, None, f"{where} has it take part and release nothing")
        if said.steps != steps:
            what = f"{where} tells {said.steps} steps, its releases so far are {steps}"
            yield Fault(found.client, None, what)
        if said.epsilon is None:
            if steps:
                yield Fault(found.client, None, f"{where} tells no ε, and there are {steps} releases so far")
        elif priced:
            price = epsilon(events, plan.delta, neighboring=relation)
            if not abs(said.epsilon - price) <= _AGREES * price + _LAST_DIGIT:
                what = f"the run told ε = {said.epsilon:.6g}, its releases so far cost {price:.6g} ({where})"
                yield Fault(found.client, None, what)


def _budget_faults(
    plan: PrivacyFacts, client: Participant, run: str, checked: CheckedExport
) -> Iterator[Fault]:
    """Another budget in the plan than the one that the holder signed before the run began."""
    if client.dataset is None:
        return  # told by itself
    budget = checked.history.run_budgets.get((client.dataset, run))
    if budget is None:
        yield Fault(client.id, None, f"its ledger fixes no budget of this run on dataset {client.dataset!r}")
    elif budget.epsilon != plan.epsilon:
        what = f"fixes the run's budget at ε = {budget.epsilon:g}, run.json says {plan.epsilon:g}"
        yield Fault(client.id, budget.sequence, what)


def _own_faults(plan: PrivacyFacts, client: Participant) -> Iterator[Fault]:
    """What run.json has to say of a client in a private run."""
    if client.dataset is None:
        yield Fault(client.id, None, "run.json names no dataset of it, so its ledger may be about any")
    if client.rows is None:
        yield Fault(client.id, None, "run.json names no number of rows, so nothing tells whether δ is small")
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PrivacyWarning)  # said when the run began
            check_delta(plan.delta, client.rows)
    except PrivacyParameterError as error:
        yield Fault(client.id, None, f"run.json: {error}")


def _relation_faults(
    plan: PrivacyFacts, client: Participant, run: str, checked: CheckedExport
) -> Iterator[Fault]:
    """Another data set, unit or neighbouring relation in the ledger than the run declares."""
    for dataset in sorted({found.dataset for found in checked.history.counted(run=run)}):
        if client.dataset is not None and dataset != client.dataset:
            what = f"its ledger counts this run on dataset {dataset!r}, run.json on {client.dataset!r}"
            yield Fault(client.id, None, what)
        unit, neighboring = checked.history.relations[dataset]
        if (unit, neighboring) != (plan.unit, plan.neighboring):
            what = (
                f"its ledger is per {unit}, {neighboring}; the run says per {plan.unit}, {plan.neighboring}"
            )
            yield Fault(client.id, None, what)
