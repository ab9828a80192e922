"""Numbers and tables as people read them, for terminals and pages alike: floor 7."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["gone", "percent", "small", "table"]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """Columns of text, aligned; those in `numeric` to the right.

    Example:
        >>> print(table(("client", "ε"), [("a", "7.9"), ("clinic-10", "12.0")], numeric=(1,)))
        client        ε
        a           7.9
        clinic-10  12.0
    """
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in numeric else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def gone(clients: Iterable[tuple[str, str | None, bool]], named: int = 6) -> str:
    """Who vanished at which stage, and whether an answer came late; empty where nobody did.

    Example:
        >>> gone([("clinic-0", None, False), ("clinic-3", "shares", False), ("clinic-5", "unmask", True)])
        'clinic-3 at shares, clinic-5 at unmask (late)'
    """
    said = [f"{name} at {stage}" + " (late)" * late for name, stage, late in clients if stage is not None]
    return ", ".join(said[:named]) + (f" and {len(said) - named} more" if len(said) > named else "")


def percent(value: float | None) -> str:
    """A share as people read it.

    Example:
        >>> percent(0.8889)
        '88.9 %'
    """
    return "–" if value is None else f"{100 * value:.1f} %"


def small(value: float) -> str:
    """A number without needless zeros, small ones as 1e-3.

    Example:
        >>> small(0.001), small(8.0), small(1.18)
        ('1e-3', '8', '1.18')
    """
    if 0 < abs(value) < 0.01:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"
