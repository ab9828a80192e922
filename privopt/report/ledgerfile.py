"""One ledger for a reader: floor 7, `privopt ledger`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from dp import Ledger, LedgerError, LedgerKey, epsilon
from dp.audit import CheckedExport, check_export
from dp.budgets import Total, totals
from dp.events import event_from_dict
from dp.heads import read_heads

from ..setup.tables import ConfigError
from .audit import public_key
from .folder import RunFolderError
from .text import small, table

__all__ = ["LedgerFile", "audit_export", "open_live", "totals_dicts", "totals_text"]

_RUNS = ("dataset", "run", "reservations", "ε spent (PLD)", "of at most", "δ")
_TOTALS = (
    "of",
    "name",
    "project",
    "runs",
    "releases",
    "ε spent (PLD)",
    "by the filter",
    "of at most",
    "left",
    "δ",
)


@dataclass(frozen=True)
class LedgerFile:
    """One ledger, checked by itself.

    Attributes:
        path: The export, or the live ledger that was exported for the check.
        checked: What was found.
    """

    path: Path
    checked: CheckedExport

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return self.checked.ok

    def to_dict(self, *, records: bool = False) -> dict[str, Any]:
        """Ready for JSON; with every record if asked for."""
        checked, export = self.checked, self.checked.export
        found: dict[str, Any] = {
            "path": str(self.path),
            "ok": self.ok,
            "chain": checked.chain,
            "signature": checked.signature,
            "public_key": export.public_key if export else None,
            "records": len(export.records) if export else 0,
            "runs": [dict(zip(_RUNS, row, strict=True)) for row in self._runs()] if self.ok else [],
            "totals": totals_dicts(totals(checked.history)) if self.ok else [],
            "heads": checked.held,
            "problems": [asdict(problem) for problem in checked.problems],
            "notes": checked.notes,
        }
        if records:
            found["records"] = msgspec.to_builtins(export.records) if export else []
        return found

    def records_text(self) -> str:
        """Every record, a line each, and what was spent."""
        if self.checked.export is None:
            return str(self)
        rows = [
            [str(r.sequence), r.time, r.kind, r.dataset or "", r.run or "", _content(r), r.hash[:12]]
            for r in self.checked.export.records
        ]
        columns = ("record", "written", "kind", "dataset", "run", "what", "hash")
        return f"{table(columns, rows, numeric=(0,))}\n\n{self}"

    def __str__(self) -> str:
        checked = self.checked
        lines = [f"chain {_word(checked.chain)} · signature {_word(checked.signature)}"]
        if checked.export is not None:
            lines[0] += f" · {len(checked.export.records)} records · key {checked.export.public_key}"
        if checked.problems:
            lines.append(
                "First fault: "
                + "; also: ".join(str(problem).rstrip(".") for problem in checked.problems)
                + "."
            )
        elif runs := self._runs():
            lines += ["", table(_RUNS, [list(map(str, row)) for row in runs], numeric=(2, 3, 4, 5))]
        if not checked.problems and (found := totals(checked.history)):
            lines += ["", totals_text(found)]
        return "\n".join([*lines, *([""] if checked.notes else []), *checked.notes])

    def _runs(self) -> list[tuple[str, str, int, float, float, str]]:
        """Each run that has a budget: what it released and spent, by PLD at the budget's delta."""
        history = self.checked.history
        rows = []
        for (dataset, run), budget in history.run_budgets.items():
            counted = history.counted(dataset, run)
            relation = history.relations.get(dataset, ("", "add-or-remove-one"))[1]
            limit, delta = float(budget.epsilon or 0), float(budget.delta or 0)
            spent = epsilon([found.event for found in counted], delta, neighboring=relation)
            rows.append((dataset, run, len(counted), round(spent, 4), limit, small(delta)))
        return rows


def audit_export(
    path: str | Path, *, key: str | None = None, heads: Path | None = None, peer: str | None = None
) -> LedgerFile:
    """Check one ledger: the JSON that a run exports, or a live ``ledger.sqlite`` with its key beside it.

    Args:
        path: The file.
        key: The holder's public key in hex, pinned elsewhere; None trusts the one that the export names.
        heads: A file of heads that a peer kept; the ledger has to hold all that are about it.
        peer: That peer's public key in hex; None trusts the one that the heads name.

    Returns:
        What was found.

    Raises:
        ConfigError: If a key is none.
        RunFolderError: If the file cannot be read.
        LedgerError: If a live ledger cannot be opened or trusted, or the heads are none.
    """
    path = Path(path)
    for name, text in (("key", key), ("peer", peer)):
        if text is not None and public_key(text) is None:
            raise ConfigError(f"Expected --{name} as 64 hexadecimal digits, got {len(text)} characters.")
    trusted = public_key(peer)
    kept: dict[str, Any] = {
        "heads": None if heads is None else read_heads(heads),
        "peers": None if trusted is None else [trusted],
    }
    if not _is_live(path):
        return LedgerFile(path, check_export(path, public_key=public_key(key), **kept))
    with tempfile.TemporaryDirectory(prefix="privopt-") as folder:
        with open_live(path) as ledger:
            ledger.export(Path(folder, "export.json"))
            pinned = public_key(key) or ledger.public_key
        return LedgerFile(path, check_export(Path(folder, "export.json"), public_key=pinned, **kept))


def open_live(path: Path) -> Ledger:
    """A holder's own ledger, with its key beside it.

    Raises:
        RunFolderError: If the file cannot be read.
        LedgerError: If it is an export, has no key beside it, or cannot be trusted.
    """
    if not _is_live(path):
        raise LedgerError(
            f"Expected a holder's ledger.sqlite, got {path}, which is none: only the holder sets budgets."
        )
    secret = path.with_name("ledger.key")
    if not secret.exists():
        raise LedgerError(
            f"Expected ledger.key beside {path}, which its holder keeps there, got none. "
            "Others check an export."
        )
    return Ledger.open(path, LedgerKey.load(secret))


def totals_dicts(found: Sequence[Total]) -> list[dict[str, Any]]:
    """Totals ready for JSON; infinity, which JSON does not know, as text."""
    return [
        {name: "infinity" if value == float("inf") else value for name, value in row.items()}
        for row in (asdict(total) | {"left": total.left} for total in found)
    ]


def totals_text(found: Sequence[Total]) -> str:
    """What was spent and is left, a line a project and a data set."""
    if not found:
        return "Nothing was released, and no budget is set."
    rows = [
        (
            total.kind,
            total.name,
            total.project or "–",
            str(total.runs),
            str(total.reservations),
            *(_number(value) for value in (total.epsilon, total.filtered, total.limit, total.left)),
            "–" if total.delta is None else small(total.delta),
        )
        for total in found
    ]
    return table(_TOTALS, rows, numeric=(3, 4, 5, 6, 7, 8, 9))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _is_live(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    except OSError as error:
        raise RunFolderError(
            f"Expected a ledger, got {path}: {error.strerror}. A run exports them to ledgers/ in its folder."
        ) from error


def _word(holds: bool) -> str:
    return "ok" if holds else "FAULT"


def _content(record: Any) -> str:
    if record.event is not None:
        try:
            return str(event_from_dict(record.event))
        except ValueError:
            return "(no event)"
    if record.reservation is not None:
        return f"of record {record.reservation}"
    if record.epsilon is not None:
        whose = f"project {record.project}: " if record.project else ""
        return f"{whose}ε ≤ {record.epsilon:g} at δ = {small(record.delta)}"
    if record.project is not None:
        return f"in project {record.project}"
    return f"key {record.public_key[:12]}…" if record.public_key else ""
