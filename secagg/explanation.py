"""Explain: what a server learns from a schema, how precisely, and what it costs; before anything is sent."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .encoding import Encoding
from .layout import Run
from .reductions import MaskedReduction
from .schema import Schema

_LIMITS = """Nobody learns one client's masked value, unless all the others of its round pool theirs: they can
subtract them from the sum. Sums of two rounds whose cohorts differ by one client differ by about
that client's value. Masks hide inputs, not what the sum itself tells: that is what noise is for."""


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
    """

    field: str
    reduction: str
    learned: str
    quantum: float | None
    bits: int | None
    bytes: int


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
        rows = [("field", "reduction", "the server learns", "quantum", "bits", "bytes")]
        for line in self.lines:
            quantum = "" if line.quantum is None else f"{line.quantum:.3g}"
            bits = "" if line.bits is None else str(line.bits)
            rows.append((line.field, line.reduction, line.learned, quantum, bits, str(line.bytes)))
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        table = "\n".join(
            "  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows
        )
        size, cost = 8 * self.words, self.bytes_per_value
        summary = f"A vector has {size} bytes, {cost:.2f} a value, for up to {self.num_clients} clients."
        return f"{table}\n\n{summary}\n{_LIMITS}"


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
            lines.append(Line(name, field.kind, field.disclosure, None, None, 0))
        for run in runs.get(name, ()):
            lines.append(_line(schema.masked[name], run))
    values = sum(field.size for field in schema.masked.values())
    return Explanation(tuple(lines), num_clients, encoding.words, values)


def _line(field: MaskedReduction, run: Run) -> Line:
    name = run.field if run.kind == "value" else f"{run.field} ({run.kind})"
    reduction = {"clipped": "counted", "peak": "summed"}.get(run.carrier, field.kind)
    quantum = None if run.carrier == "truth" else field.quantum_of(run.kind)
    return Line(name, reduction, field.says(run.kind), quantum, run.width, 8 * run.words)
