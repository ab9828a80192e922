"""Records of a ledger: their form, the chain of hashes over them, and what replaying them says.

Place in the picture: the ledger writes these records and the audit reads them; both replay them with the same
`History`, so that they cannot disagree on what counts.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec

from .errors import DPError, LedgerError
from .events import Event, event_from_dict

__all__ = [
    "Export",
    "Head",
    "History",
    "Record",
    "Reservation",
    "Stored",
    "canonical",
    "hash_body",
    "verify_format",
]

FORMAT: Final = 2
"""Newest format. Format 1 knew no projects; its ledgers are read and written on as they are."""
GENESIS: Final = "00" * 32
MAX_NAME: Final = 256

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
Sequence = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Kind = Literal["create", "run-budget", "budget", "reserve", "commit", "void", "project", "project-budget"]


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line of a ledger. Fields that a kind does not have are absent from its bytes.

    Attributes:
        sequence: Its number; the first is 1, and none is left out.
        previous: Hash of the record before, hexadecimal; zeros in the first.
        kind: What it says.
        time: When it was written, UTC, by the holder's clock; says nothing that is relied upon.
        versions: Versions of the format and of the packages that wrote and priced it.
        ledger: Random id of the ledger, in `create`.
        public_key: Key that signs the ledger's heads, hexadecimal, in `create`.
        dataset: Which data; in all but `create` and `project-budget`.
        run: Which run; in `reserve`, `commit`, `void` and `run-budget`.
        unit: What one unit of privacy is; in `reserve`.
        neighboring: Relation under which the event is priced; in `reserve`.
        event: What is released; in `reserve`.
        reservation: Number of the reservation that is committed or void.
        epsilon: Budget.
        delta: Budget.
        order: Rényi order at which a dataset's or project's budget is filtered; fixed by its first record.
        clip_norm: What one sample's gradient was clipped to; in `reserve`, where its writer said so.
        project: Which project; in `project` (it takes the dataset in) and `project-budget`.
    """

    sequence: Sequence
    previous: Hash
    kind: Kind
    time: Annotated[str, msgspec.Meta(max_length=64)]
    versions: Annotated[dict[str, str], msgspec.Meta(max_length=16)]
    ledger: str | None = None
    public_key: Hash | None = None
    dataset: Name | None = None
    run: Name | None = None
    unit: Name | None = None
    neighboring: Literal["add-or-remove-one", "replace-one"] | None = None
    event: dict[str, Any] | None = None
    reservation: Sequence | None = None
    epsilon: Annotated[float, msgspec.Meta(gt=0)] | None = None
    delta: Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None
    order: Annotated[float, msgspec.Meta(gt=1)] | None = None
    clip_norm: Annotated[float, msgspec.Meta(gt=0)] | None = None
    project: Name | None = None

    def to_bytes(self) -> bytes:
        """Canonical bytes, which the hash covers: JSON, sorted keys, no spaces, ASCII, shortest floats.

        The standard library's encoder is used because its floats are Python's `repr`, the same for ever.
        """
        return canonical(msgspec.to_builtins(self))

    @classmethod
    def from_bytes(cls, body: bytes) -> Record:
        """Read what `to_bytes` wrote.

        Raises:
            LedgerError: If the bytes are no record, or not its canonical ones, or of a newer format.
        """
        try:
            record = msgspec.json.decode(body, type=cls)
        except (ValueError, RecursionError) as error:
            verify_format(body, "versions", "ledger")
            raise LedgerError(f"Expected the bytes of a record, got others: {error}.") from error
        if record.to_bytes() != body:
            raise LedgerError(f"Expected record {record.sequence} in canonical form.", record.sequence)
        return record


# What a record of each kind holds, beside what all hold. A field too many is as wrong as one missing.
_FIELDS: Final[dict[str, frozenset[str]]] = {
    "create": frozenset({"ledger", "public_key"}),
    "run-budget": frozenset({"dataset", "run", "epsilon", "delta"}),
    "budget": frozenset({"dataset", "epsilon", "delta", "order"}),
    "reserve": frozenset({"dataset", "run", "unit", "neighboring", "event"}),
    "commit": frozenset({"dataset", "run", "reservation"}),
    "void": frozenset({"dataset", "run", "reservation"}),
    "project": frozenset({"dataset", "project"}),
    "project-budget": frozenset({"project", "epsilon", "delta", "order"}),
}
_OPTIONAL: Final = frozenset().union(*_FIELDS.values())


class Stored(Record, frozen=True, kw_only=True):
    """A record as an export holds it: with the hash of its canonical bytes."""

    hash: Hash

    def bare(self) -> Record:
        """The record without its hash."""
        values = {name: getattr(self, name) for name in Record.__struct_fields__}
        return Record(**values)


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last record of a ledger, signed: it stands for all before it."""

    sequence: Sequence
    hash: Hash
    signature: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{128}$")]


class Export(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A whole ledger, to be read by others. Only its newest head is signed.

    The signatures of older heads are left out on purpose: with them, whoever holds an export could cut off
    its end and still show a signature that fits.
    """

    format: Literal[1, 2]
    public_key: Hash
    records: list[Stored]
    head: Head

    def to_bytes(self) -> bytes:
        """The export as JSON, a record a line."""
        lines = ",\n".join(canonical(msgspec.to_builtins(record)).decode() for record in self.records)
        head = canonical(msgspec.to_builtins(self.head)).decode()
        start = f'{{"format":{self.format},"public_key":"{self.public_key}","records":['
        return f'{start}\n{lines}\n],"head":{head}}}\n'.encode()


def verify_format(data: bytes, *path: str) -> None:
    """Say so where bytes that cannot be read are of a newer format than this one.

    Raises:
        LedgerError: If they are.
    """
    try:
        found = msgspec.json.decode(data)
        for name in path:
            found = found[name]
        newer = int(found) > FORMAT
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return  # then it is told as what it is
    if newer:
        raise LedgerError(
            f"Expected a ledger of format 1 to {FORMAT}, got one of format {found}: a newer version of "
            "privopt wrote it. Read it with that version, or a newer one."
        )


def canonical(value: Any) -> bytes:
    """JSON in the one form that is hashed and signed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def hash_body(body: bytes) -> str:
    """SHA-256 of a record's canonical bytes, hexadecimal; they hold the hash before, hence the chain."""
    return hashlib.sha256(body).hexdigest()


@dataclass(frozen=True)
class Reservation:
    """A release that a ledger has counted, before anything of it is drawn.

    Attributes:
        sequence: Number of its record.
        dataset: Which data.
        event: What may be released.
        run: Which run.
        clip_norm: What one sample's gradient is clipped to; None where it was not written down.
    """

    sequence: int
    dataset: str
    event: Event
    run: str
    clip_norm: float | None = None


class History:
    """What the records say so far, one applied after the other.

    Guarantees:
        - A record that is out of order, not chained to the one before, or contradicts an earlier one raises
          LedgerError with its number, and changes nothing.
        - A reservation counts from its record on, for ever, unless it was made void before a commit.

    Attributes:
        sequence: Number of the last record applied.
        head: Its hash.
        ledger: Id of the ledger.
        public_key: Key that the first record names, hexadecimal.
        reservations: All of them, by number, void ones included.
        committed: Numbers of the committed ones.
        void: Numbers of the void ones.
        run_budgets: Records by dataset and run.
        budgets: Newest records by dataset.
        relations: Unit and relation of each dataset, fixed by its first reservation.
        projects: Project of each dataset that is in one.
        project_budgets: Newest records by project.
    """

    def __init__(self) -> None:
        self.sequence = 0
        self.head = GENESIS
        self.ledger: str | None = None
        self.public_key: str | None = None
        self.reservations: dict[int, Reservation] = {}
        self.committed: set[int] = set()
        self.void: set[int] = set()
        self.run_budgets: dict[tuple[str, str], Record] = {}
        self.budgets: dict[str, Record] = {}
        self.relations: dict[str, tuple[str, str]] = {}
        self.projects: dict[str, str] = {}
        self.project_budgets: dict[str, Record] = {}

    def apply(self, record: Record, own_hash: str) -> None:
        """Take the next record; `own_hash` is the hash of its bytes."""
        expected = self.sequence + 1
        if record.sequence != expected:
            raise LedgerError(
                f"Expected record {expected}, found record {record.sequence} in its place.", expected
            )
        if record.previous != self.head:
            # The record's own bytes are hashed by the caller, so what does not fit is the one before it.
            raise LedgerError(
                f"Expected record {self.sequence} as record {expected} was chained to it, found another.",
                max(self.sequence, 1),
            )
        self._verify_form(record)
        getattr(self, "_" + record.kind.replace("-", "_"))(record)
        self.sequence, self.head = record.sequence, own_hash

    def counted(self, dataset: str | None = None, run: str | None = None) -> list[Reservation]:
        """Reservations that count as spent, oldest first."""
        return [
            found
            for number, found in self.reservations.items()
            if number not in self.void and dataset in (None, found.dataset) and run in (None, found.run)
        ]

    def members(self, project: str) -> set[str]:
        """Datasets of a project."""
        return {dataset for dataset, found in self.projects.items() if found == project}

    def _verify_form(self, record: Record) -> None:
        held = {name for name in _OPTIONAL if getattr(record, name) is not None}
        if record.clip_norm is not None and record.kind != "reserve":
            held.add("clip_norm")
        if held != _FIELDS[record.kind]:
            wrong = sorted(held ^ _FIELDS[record.kind])
            raise LedgerError(
                f"Record {record.sequence} ({record.kind}) lacks or should not have {wrong}.", record.sequence
            )
        if (record.kind == "create") != (record.sequence == 1):
            raise LedgerError(f"Record {record.sequence} is {record.kind!r}: out of place.", record.sequence)

    def _create(self, record: Record) -> None:
        self.ledger, self.public_key = record.ledger, record.public_key

    def _run_budget(self, record: Record) -> None:
        name = (str(record.dataset), str(record.run))
        if name in self.run_budgets:
            raise LedgerError(
                f"Record {record.sequence} changes the budget of run {record.run!r}.", record.sequence
            )
        self.run_budgets[name] = record

    def _budget(self, record: Record) -> None:
        self._filter(record, self.budgets, "dataset", str(record.dataset))

    def _project_budget(self, record: Record) -> None:
        self._filter(record, self.project_budgets, "project", str(record.project))

    def _filter(self, record: Record, budgets: dict[str, Record], what: str, name: str) -> None:
        earlier = budgets.get(name)
        if earlier is not None and earlier.order != record.order:
            raise LedgerError(
                f"Record {record.sequence} changes the Rényi order of {what} {name!r}.", record.sequence
            )
        budgets[name] = record

    def _project(self, record: Record) -> None:
        dataset, project = str(record.dataset), str(record.project)
        if dataset in self.projects:
            raise LedgerError(
                f"Record {record.sequence} puts dataset {dataset!r} into a project again.", record.sequence
            )
        own = self.relations.get(dataset)
        if own is not None:
            self._verify_relation(record, project, own)
        self.projects[dataset] = project

    def _verify_relation(self, record: Record, project: str, relation: tuple[str, str]) -> None:
        """Divergences under different relations do not add up to anything."""
        for other in self.members(project):
            if self.relations.get(other, relation) != relation:
                raise LedgerError(
                    f"Record {record.sequence} has unit and relation {relation} for dataset "
                    f"{record.dataset!r}; dataset {other!r} of the same project {project!r} has "
                    f"{self.relations[other]}.",
                    record.sequence,
                )

    def _reserve(self, record: Record) -> None:
        dataset = str(record.dataset)
        try:
            event = event_from_dict(record.event)
        except (DPError, TypeError, ValueError, ArithmeticError) as error:
            raise LedgerError(
                f"Record {record.sequence} reserves something that is no event: {error}", record.sequence
            ) from error
        relation = (str(record.unit), str(record.neighboring))
        if dataset in self.projects:
            self._verify_relation(record, self.projects[dataset], relation)
        if self.relations.setdefault(dataset, relation) != relation:
            raise LedgerError(
                f"Record {record.sequence} has another unit or relation than dataset {dataset!r} had before.",
                record.sequence,
            )
        self.reservations[record.sequence] = Reservation(
            record.sequence, dataset, event, str(record.run), record.clip_norm
        )

    def _commit(self, record: Record) -> None:
        self._open(record)
        self.committed.add(int(record.reservation or 0))

    def _void(self, record: Record) -> None:
        self._open(record)
        self.void.add(int(record.reservation or 0))

    def _open(self, record: Record) -> None:
        number = int(record.reservation or 0)
        found = self.reservations.get(number)
        if found is None or number in self.void or number in self.committed:
            state = "unknown" if found is None else "void" if number in self.void else "committed"
            raise LedgerError(
                f"Record {record.sequence} ({record.kind}) refers to reservation {number}, which is {state}.",
                record.sequence,
            )
        if (found.dataset, found.run) != (record.dataset, record.run):
            raise LedgerError(
                f"Record {record.sequence} ({record.kind}) names another dataset or run than reservation "
                f"{number}.",
                record.sequence,
            )
