"""Explain: what a server learns from a schema, how precisely, and what it costs; before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from textwrap import wrap
from typing import Any, Final

from .encoding import Encoding
from .layout import Run
from .reductions import AllTrue, AnyTrue, MaskedReduction
from .schema import Schema

WIDTH: Final = 100
"""Columns of an explanation's text."""
_NAME_WIDTH: Final = 36


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that leaves a client, or would.

    Attributes:
        field: Name of the field, with what is sent beside its values in brackets.
        reduction: Kind of reduction.
        learned: What the server learns.
        quantum: Precision of one client's value, value units; 1.0 for integers; None where nothing is coded.
        bits: Bits of a lane, wide enough for the sum; None where nothing is coded.
        bytes: Bytes that it takes of a client's vector.
        colluders: What all other clients of a round learn of one client, if they pool what they sent and the
            server gives them the sum. It is what any sum gives: masks cannot change it.
        difference: What the results of two rounds tell of a client that took part in one of them only.
    """

    field: str
    reduction: str
    learned: str
    quantum: float | None
    bits: int | None
    bytes: int
    colluders: str
    difference: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a round discloses and costs.

    Attributes:
        lines: One entry for each thing that leaves a client, in schema order.
        num_clients: Largest cohort that the layout is for.
        words: 64-bit words of one client's vector.
        values: Values of one client, over all masked fields.
    """

    lines: tuple[Line, ...]
    num_clients: int
    words: int
    values: int

    @property
    def bytes_per_value(self) -> float:
        """Bytes of the vector for each value of a client."""
        return 8 * self.words / max(1, self.values)

    def to_dicts(self) -> list[dict[str, Any]]:
        """The lines, ready for JSON."""
        return [asdict(line) for line in self.lines]

    def __str__(self) -> str:
        learned: list[tuple[str, ...]] = [
            ("field", "reduction", "quantum", "bits", "bytes", "the server learns")
        ]
        beyond: dict[tuple[str, str, str], None] = {}  # Of a field, each pair of answers once.
        for line in self.lines:
            quantum = "" if line.quantum is None else f"{line.quantum:.3g}"
            bits = "" if line.bits is None else str(line.bits)
            learned.append((line.field, line.reduction, quantum, bits, str(line.bytes), line.learned))
            field, _, kind = line.field.partition(" (")
            if kind not in ("clipped)", "peak)"):
                beyond[field, line.colluders, line.difference] = None
        size = f"A vector has {8 * self.words} bytes, {self.bytes_per_value:.2f} a value"
        others = f"the {self.num_clients - 1} others" if self.num_clients > 1 else "nobody else"
        parts = [
            _table(learned, (_NAME_WIDTH, 0, 0, 0, 0)),
            f"{size}, for up to {self.num_clients} clients.",
            _paragraph(
                "Nobody learns one client's masked value, unless all the others of its round pool theirs: "
                f"they can subtract them from the sum. What colluders, {others}, then learn of a client "
                "is below; so is what the results of two rounds whose cohorts differ by one client tell of "
                "it. Counts of clipped values, and peaks, follow in the same way."
            ),
            _table([("field", "colluders learn", "two rounds tell"), *beyond], (_NAME_WIDTH, 32)),
            "Masks hide inputs, not what the sum itself tells: that is what noise is for.",
        ]
        return "\n\n".join(parts)


def _paragraph(text: str) -> str:
    return "\n".join(wrap(text, WIDTH))


def _table(rows: Sequence[tuple[str, ...]], limits: tuple[int, ...]) -> str:
    """Rows in columns, the widths of which are limited (0: as wide as need be); the last takes the rest."""
    found = [max(len(row[i]) for row in rows) for i in range(len(limits))]
    widths = [min(width, limit or width) for width, limit in zip(found, limits, strict=True)]
    widths.append(max(20, WIDTH - sum(widths) - 2 * len(widths)))
    return "\n".join(line for row in rows for line in _wrapped(row, widths))


def _wrapped(row: tuple[str, ...], widths: Sequence[int]) -> Iterator[str]:
    """One row, on as many lines as its longest cell takes."""
    cells = [wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
    for parts in zip_longest(*cells, fillvalue=""):
        yield "  ".join(part.ljust(width) for part, width in zip(parts, widths, strict=True)).rstrip()


def explain(schema: Schema, num_clients: int) -> Explanation:
    """Say what a round over `schema` discloses and costs.

    Args:
        schema: Fields; those whose shape was never given hold scalars.
        num_clients: Largest cohort.

    Returns:
        Lines for a program, and a table as its `str`.

    Raises:
        SchemaError: If the schema cannot be laid out for that many clients.

    Example:
        >>> from secagg import Schema, counted, summed
        >>> found = explain(Schema(update=summed(1.0, shape=(1000,)), n=counted()), num_clients=8)
        >>> [(line.field, line.bits) for line in found.lines]
        [('update', 19), ('update (clipped)', 13), ('n', 24)]
        >>> found.bytes_per_value < 2.8
        True
    """
    encoding = Encoding(schema, num_clients)
    runs: dict[str, list[Run]] = {}
    for run in encoding.runs:
        runs.setdefault(run.field, []).append(run)
    lines = []
    for name, field in schema.items():
        if not isinstance(field, MaskedReduction):
            told = (field.remainder, field.difference)
            lines.append(Line(name, field.kind, field.disclosure, None, None, 0, *told))
        for run in runs.get(name, ()):
            lines.append(_line(schema.masked[name], run))
    values = sum(field.size for field in schema.masked.values())
    return Explanation(tuple(lines), num_clients, encoding.words, values)


def _line(field: MaskedReduction, run: Run) -> Line:
    name = run.field if run.kind == "value" else f"{run.field} ({run.kind})"
    reduction = {"clipped": "counted", "peak": "summed"}.get(run.carrier, field.kind)
    quantum = None if isinstance(field, (AnyTrue, AllTrue)) else field.quantum_of(run.kind)
    told = (field.leaves(run.kind), field.tells(run.kind))
    return Line(name, reduction, field.says(run.kind), quantum, run.width, 8 * run.words, *told)
