"""Audit of one ledger's export: is it whole, is it the holder's, and does it hold what the run recorded?

Place in the picture: `dp.ledger` writes what was spent, this reads it back with nothing but the export and
the public key that was pinned before. An export is somebody else's bytes: whatever they are, the answer is a
`LedgerAudit`. With heads that a peer kept (`dp.heads`), an older copy is found too. It shows consistency;
that the declared code ran is not something a file can show.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from .accounting import By, epsilon
from .errors import DPError, LedgerError, PrivacyParameterError
from .events import Event, Poisson, Repeated, event_from_dict
from .heads import CountersignedHead, compare_heads
from .records import Export, History, Reservation, hash_body, verify_format
from .signing import is_signed

__all__ = ["CheckedExport", "LedgerAudit", "Problem", "audit_ledger", "check_export"]

MAX_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        record: Number of the ledger's record; None where it is not about one.
        what: In words.
    """

    record: int | None
    what: str

    def __str__(self) -> str:
        return self.what if self.record is None else f"record {self.record}: {self.what}"


@dataclass(frozen=True)
class CheckedExport:
    """An export by itself, without a run to compare it with.

    Attributes:
        export: What was read; None where it is no export.
        history: What its records say, as far as they are whole.
        chain: Whether every record is whole and in its place.
        signature: Whether the head is signed by the key.
        problems: What is wrong, the first record first.
        notes: What a reader should know.
        held: How many heads that peers kept were found in it.
    """

    export: Export | None
    history: History
    chain: bool
    signature: bool
    problems: list[Problem]
    notes: list[str] = field(default_factory=list)
    held: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(frozen=True)
class LedgerAudit:
    """What an audit of one client's ledger found.

    Attributes:
        client: Id of the client.
        events: Number of releases of the run that the ledger counts.
        epsilon: What they cost, by accountant. An accountant that could not price them has no entry, and
            none has where the ledger is not to be trusted; the notes and problems say why.
        delta: At which delta.
        chain: Whether every record is whole and in its place.
        signature: Whether the head is signed by the pinned key.
        matches: Whether the ledger is whole and its reservations of the run are what the run recorded.
        problems: What is wrong, the first record first.
        notes: What a reader should know and that is not wrong.
    """

    client: str
    events: int
    epsilon: dict[str, float]
    delta: float
    chain: bool
    signature: bool
    matches: bool
    problems: list[Problem]
    notes: list[str]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


class _Recorded(msgspec.Struct, frozen=True):
    """One release as the run recorded it; other keys are the run's own business."""

    event: dict[str, Any]
    steps: int
    sampler: str
    sample_rate: float
    clip_norm: float
    noise_multiplier: float
    ledger_sequence: int


def audit_ledger(
    export: Path | Mapping[str, Any],
    *,
    client: str,
    public_key: bytes | None,
    run: str,
    delta: float,
    recorded: Sequence[Mapping[str, Any]],
    heads: Sequence[CountersignedHead] | None = None,
    peers: Collection[bytes] | None = None,
) -> LedgerAudit:
    """Check an export, compare it with what a run recorded, and price the run again.

    Guarantees:
        - A record that was altered, removed, inserted or moved, an end that was cut off, another's signature
          and another's key are each a problem, with the number of the record where it can be known.
        - Whatever bytes the export holds, the answer is a `LedgerAudit`.

    Args:
        export: File that `Ledger.export` wrote, or its JSON.
        client: Id of the client, for the answer.
        public_key: The key that was pinned when the run began; None trusts the export's own, and notes it.
        run: Which run.
        delta: At which delta to price it.
        recorded: The run's releases: ``{"event", "steps", "sampler", "sample_rate", "clip_norm",
            "noise_multiplier", "ledger_sequence"}``. A committed reservation that is not among them is a
            problem; an uncommitted one is counted, and noted.
        heads: Heads that peers kept, of this ledger or of any; None where nobody kept any.
        peers: Public keys of the trusted peers; None trusts the one that each head names, and notes it.

    Returns:
        The audit.

    Example:
        >>> audit_ledger({}, client="clinic-0", public_key=None, run="r", delta=1e-5, recorded=[]).ok
        False
    """
    checked = check_export(export, public_key=public_key, heads=heads, peers=peers)
    problems, notes = list(checked.problems), list(checked.notes)
    counted = checked.history.counted(run=run)
    mismatches = _compare(checked.history, counted, run, recorded, notes)
    read = checked.history.sequence
    if checked.export is not None and read < len(checked.export.records):
        # Nothing is known of what stands behind the first wrong record, so nothing is said about it.
        mismatches = [found for found in mismatches if found.record is None or found.record <= read]
        notes.append(f"Compared with the run up to record {read}: what stands behind it cannot be trusted.")
    if checked.export is not None and not counted and not recorded:
        notes.append(f"The ledger holds nothing of run {run!r}.")
    problems += mismatches
    costs: dict[str, float] = {}
    if checked.chain and checked.signature:
        costs = _price(checked.history, counted, delta, problems, notes)
        problems += _beyond_budget(checked.history, run, delta, costs)
    else:
        notes.append("Not priced: the ledger cannot be trusted as it is.")
    return LedgerAudit(
        client=client,
        events=sum(_taken_apart(found.event)[1] for found in counted),
        epsilon=costs,
        delta=delta,
        chain=checked.chain,
        signature=checked.signature,
        matches=checked.chain and not mismatches,
        problems=sorted(problems, key=_place),
        notes=notes,
    )


def check_export(
    export: Path | Mapping[str, Any],
    *,
    public_key: bytes | None = None,
    heads: Sequence[CountersignedHead] | None = None,
    peers: Collection[bytes] | None = None,
) -> CheckedExport:
    """Check an export by itself: its form, its chain, the signature on its head, and heads that peers kept.

    Args:
        export: File that `Ledger.export` wrote, or its JSON.
        public_key: The key that was pinned; None trusts the export's own, and notes it.
        heads: Heads that peers kept, of this ledger or of any. The export holds the record of each, or was
            put back, cut or swapped since. None where nobody kept any: then an older copy cannot be told.
        peers: Public keys of the trusted peers; None trusts the one that each head names, and notes it.

    Returns:
        What was found.
    """
    history = History()
    try:
        found = _decode(export)
    except LedgerError as error:
        return CheckedExport(None, history, False, False, [Problem(error.record, str(error))])
    notes: list[str] = []
    if public_key is None:
        notes.append("No key was pinned: the export was checked against the key that it names.")
        public_key = bytes.fromhex(found.public_key)
    problems = _check_chain(found, history)
    chain = not problems
    signature, wrong = _check_head(found, history, public_key, chain)
    problems += wrong
    # A head that is signed but does not fit the records is the chain's fault: its end is missing.
    chain = chain and (found.head.sequence, found.head.hash) == (history.sequence, history.head)
    held = 0
    if heads is not None:
        held, wrong = _check_heads(found, history, public_key, heads, peers, notes)
        problems += wrong
    return CheckedExport(found, history, chain, signature, sorted(problems, key=_place), notes, held)


def _check_heads(
    export: Export,
    history: History,
    key: bytes,
    heads: Sequence[CountersignedHead],
    peers: Collection[bytes] | None,
    notes: list[str],
) -> tuple[int, list[Problem]]:
    """Hold the records that are whole against what peers kept, and say how far that vouches for them."""
    # Up to here each hash was recomputed from its record; what stands behind has a problem of its own.
    hashes = [stored.hash for stored in export.records[: history.sequence]]
    found = compare_heads(heads, public_key=key, ledger=history.ledger, hashes=hashes, peers=peers)
    if not found.peers:
        notes.append("No kept head is about this ledger: that it is not an older copy, nobody vouches for.")
    elif found.held:
        what = f"{found.held} kept head{'' if found.held == 1 else 's'} vouch{'es' * (found.held == 1)}"
        notes.append(f"{what} for the records up to {found.last}.")
        if peers is None:
            by = ", ".join(f"{peer[:16]}…" for peer in found.peers)
            notes.append(f"No peer's key was pinned: the heads were checked against those they name ({by}).")
    return found.held, [Problem(record, what) for record, what in found.problems]


def _decode(export: Path | Mapping[str, Any]) -> Export:
    """Read an export strictly; LedgerError for whatever is none."""
    try:
        if isinstance(export, Mapping):
            data = json.dumps(export, allow_nan=False).encode()
        elif export.stat().st_size > MAX_BYTES:
            raise LedgerError(f"Expected an export of at most {MAX_BYTES} bytes, {export.name} has more.")
        else:
            data = export.read_bytes()
    except OSError as error:
        raise LedgerError(
            f"Expected a ledger's export, {export} cannot be read: {error.strerror}."
        ) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise LedgerError(f"Expected a ledger's export, got something that is no JSON: {error}.") from error
    try:
        return msgspec.json.decode(data, type=Export)
    except (ValueError, RecursionError) as error:
        verify_format(data, "format")
        raise LedgerError(f"Expected a ledger's export, got something else: {error}.") from error


def _check_chain(export: Export, history: History) -> list[Problem]:
    """Replay the records into `history`, up to the first that is wrong."""
    if not export.records:
        return [Problem(1, "is missing, as all records are")]
    for stored in export.records:
        expected = history.sequence + 1
        record = stored.bare()
        try:
            if record.sequence == expected and hash_body(record.to_bytes()) != stored.hash:
                raise LedgerError("was altered: it is not what its hash was made of", expected)
            history.apply(record, stored.hash)
        except LedgerError as error:
            return [Problem(error.record, str(error))]
        except (ValueError, RecursionError) as error:
            return [Problem(expected, f"holds what no record may: {error}")]
    return []


def _check_head(export: Export, history: History, key: bytes, chain: bool) -> tuple[bool, list[Problem]]:
    head = export.head
    problems = []
    if export.public_key != key.hex():
        problems.append(
            Problem(
                head.sequence,
                f"is the head of a ledger of key {export.public_key[:16]}…, {key.hex()[:16]}… was pinned",
            )
        )
    if history.public_key not in (None, key.hex()):
        problems.append(Problem(1, f"begins a ledger of another key than {key.hex()[:16]}…"))
    signed = is_signed(key, head.sequence, bytes.fromhex(head.hash), bytes.fromhex(head.signature))
    if not signed:
        problems.append(Problem(head.sequence, "is a head whose signature is not the key's"))
    elif chain and head.sequence != history.sequence:
        missing = min(head.sequence, history.sequence) + 1
        what = "is missing" if head.sequence > history.sequence else "stands after the signed head"
        problems.append(Problem(missing, f"{what}: the head is record {head.sequence}"))
    elif chain and head.hash != history.head:
        problems.append(
            Problem(
                head.sequence, "is not what the head's signature was made of: it or one before was altered"
            )
        )
    return signed and export.public_key == key.hex() == (history.public_key or key.hex()), problems


def _compare(
    history: History,
    counted: Sequence[Reservation],
    run: str,
    recorded: Sequence[Mapping[str, Any]],
    notes: list[str],
) -> list[Problem]:
    """Every recorded release is a reservation of the run, and every committed one is recorded."""
    problems = []
    seen: set[int] = set()
    unclipped: list[int] = []
    for position, value in enumerate(recorded, 1):
        try:
            release = msgspec.convert(value, _Recorded)
            event = event_from_dict(release.event)
        except (DPError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            problems.append(Problem(None, f"release {position} of the run's own record is none: {error}"))
            continue
        number = release.ledger_sequence
        if number in seen:
            problems.append(Problem(number, "is recorded by the run twice"))
        seen.add(number)
        problems += [Problem(number, what) for what in _differences(history, run, release, event)]
    for number in sorted(history.void):
        found = history.reservations[number]
        if found.run == run:
            notes.append(
                f"Record {number} reserved {found.event} and was made void: not counted, on the holder's "
                "word that nothing was drawn."
            )
    for found in counted:
        if found.clip_norm is None:
            unclipped.append(found.sequence)
        if found.sequence in seen:
            continue
        if found.sequence in history.committed:
            problems.append(Problem(found.sequence, f"commits {found.event}, which the run did not record"))
        else:
            notes.append(
                f"Record {found.sequence} reserved {found.event} and was never committed: counted as spent."
            )
    if unclipped:
        what = f"Record {unclipped[0]}" + (f" and {len(unclipped) - 1} more" if unclipped[1:] else "")
        notes.append(f"{what}: the clip norm is not in the ledger, only in the run's own record.")
    return problems


def _differences(history: History, run: str, release: _Recorded, event: Event) -> list[str]:
    """What a recorded release says otherwise than its reservation, or than its own event."""
    found = history.reservations.get(release.ledger_sequence)
    if found is None:
        return ["is recorded by the run, and is no reservation in the ledger"]
    inner, count = _taken_apart(found.event)
    sampled = isinstance(inner, Poisson)
    rate = inner.sample_rate if isinstance(inner, Poisson) else 1.0
    noise = getattr(inner.event if isinstance(inner, Poisson) else inner, "noise_multiplier", math.nan)
    checks = {
        f"is of run {found.run!r}, not of {run!r}": found.run == run,
        "was made void, and the run recorded a release under it": found.sequence not in history.void,
        f"reserves {found.event}, the run recorded {event}": found.event == event,
        f"reserves {count} releases, the run recorded {release.steps} steps": count == release.steps,
        f"was {'' if sampled else 'not '}sampled by 'poisson', the run recorded {release.sampler!r}": (
            (release.sampler == "poisson") == sampled
        ),
        f"has sample rate {rate}, the run recorded {release.sample_rate}": rate == release.sample_rate,
        f"has noise multiplier {noise}, the run recorded {release.noise_multiplier}": (
            noise == release.noise_multiplier
        ),
        f"was clipped to {found.clip_norm}, the run recorded {release.clip_norm}": (
            found.clip_norm in (None, release.clip_norm)
        ),
        f"is recorded with a clip norm of {release.clip_norm}, which bounds nothing": (
            release.clip_norm > 0 and math.isfinite(release.clip_norm)
        ),
    }
    return [what for what, holds in checks.items() if not holds]


def _taken_apart(event: Event) -> tuple[Event, int]:
    """One release, and how many of it; also of events that have no price."""
    return (event.event, event.count) if isinstance(event, Repeated) else (event, 1)


def _beyond_budget(history: History, run: str, delta: float, costs: Mapping[str, float]) -> list[Problem]:
    """What the run says or costs otherwise than the budget that its holder signed before it began."""
    found = []
    for (_, name), budget in history.run_budgets.items():
        if name != run:
            continue
        limit, fixed = float(budget.epsilon or 0), float(budget.delta or 0)
        if fixed != delta:
            what = f"fixes the run's budget at δ = {fixed:g}, the run is told to be priced at δ = {delta:g}"
            found.append(Problem(budget.sequence, what))
        elif costs.get("PLD", 0.0) > limit:
            what = f"allows the run ε = {limit:g}, its releases cost {costs['PLD']:.4f}"
            found.append(Problem(budget.sequence, what))
    return found


def _price(
    history: History,
    counted: Sequence[Reservation],
    delta: float,
    problems: list[Problem],
    notes: list[str],
) -> dict[str, float]:
    """Epsilon by every accountant that can tell; and whether they agree."""
    relations = {history.relations[found.dataset][1] for found in counted}
    datasets = {found.dataset for found in counted}
    if len(datasets) > 1:
        problems.append(Problem(None, f"the run released about several datasets: {sorted(datasets)}"))
        return {}
    costs: dict[str, float] = {}
    events = [found.event for found in counted]
    accountants: tuple[By, ...] = ("PLD", "RDP", "PRV")
    for by in accountants:
        try:
            costs[by] = epsilon(events, delta, by=by, neighboring=next(iter(relations), "add-or-remove-one"))
        except PrivacyParameterError as error:
            problems.append(Problem(None, f"cannot be priced: {error}"))
            return {}
        except DPError as error:
            if by == "PRV" and "PLD" in costs:  # the second opinion has a narrower range
                notes.append(f"PRV gives no price here: {error}")
                continue
            problems.append(Problem(None, f"cannot be priced by {by}: {error}"))
        except (ArithmeticError, ValueError, MemoryError, RuntimeError) as error:
            # A price is an accountant's upper bound; one that breaks down on odd parameters gives none.
            notes.append(f"{by} gives no price here: {type(error).__name__}.")
        except ImportError as error:
            notes.append(f"{by} was not computed: {error}. Install the extra `torch`.")
    problems += _disagreements(costs)
    return costs


def _disagreements(costs: Mapping[str, float]) -> list[Problem]:
    pld, rdp, prv = (costs.get(by, math.nan) for by in ("PLD", "RDP", "PRV"))
    found = []
    if math.isfinite(pld + prv) and abs(prv - pld) > 0.01 * pld + 0.011:
        found.append(Problem(None, f"the accountants disagree: PLD {pld:.4f}, PRV {prv:.4f}"))
    # Below 0.5 the conversion from RDP and PLD's grid may cross by a hair.
    if pld >= 0.5 and rdp < pld:
        found.append(Problem(None, f"the accountants disagree: PLD {pld:.4f}, RDP {rdp:.4f}"))
    return found


def _place(problem: Problem) -> float:
    return math.inf if problem.record is None else problem.record
