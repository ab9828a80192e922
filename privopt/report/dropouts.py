"""Who vanished from which round, and at which stage: floor 7, one section of the report and one check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from ..federation.settings import STAGES, Dropouts
from ..setup.tables import Config
from .charts import Line, Reference, line_chart
from .folder import RoundLine, RunFolder
from .style import count, html_table, paragraph, section
from .text import gone

__all__ = ["dropout_faults", "dropout_section", "gone_in", "summary"]

_AFTER_VECTOR = ("consistency", "unmask")


def gone_in(line: RoundLine) -> str:
    """Who vanished from one round and when, and who gave wrong shares, in words; empty where nobody did."""
    told = _told(line)
    wrong = f"wrong shares: {', '.join(line.faulty)}" if line.faulty else ""
    return "; ".join(filter(None, (told, wrong)))


def _told(line: RoundLine, named: int = 6) -> str:
    return gone(((name, at.dropped, at.late) for name, at in line.clients.items()), named)


def dropout_section(run: RunFolder) -> str:
    """Survivors by round, and for each client how often it vanished at which stage; empty if nobody did."""
    if not any(at.dropped for line in run.rounds for at in line.clients.values()):
        return ""
    least = run.config.get("masks", {}).get("min_clients") if run.run.masks else None
    chart = line_chart(
        "Clients in the sum by round",
        [Line("in the sum", [(li.round, float(_counted(li))) for li in run.rounds if li.status == "ok"])],
        x_label="round",
        y_label="clients",
        references=[] if least is None else [Reference(f"fewest {least}", float(least))],
        crosses=[
            (li.round, f"round {li.round} aborted: {li.reason or 'no reason recorded'}")
            for li in run.rounds
            if li.status == "aborted"
        ],
        from_zero=True,
    )
    gone_at = Counter((n, at.dropped) for li in run.rounds for n, at in li.clients.items())
    late = Counter(n for li in run.rounds for n, at in li.clients.items() if at.late)
    stages = [stage for stage in ("values", *STAGES) if any(at == stage for _, at in gone_at)]
    rows = [
        [
            client.id,
            str(sum(li.clients[client.id].status == "ok" for li in run.rounds if client.id in li.clients)),
            *(str(gone_at[client.id, stage] or "–") for stage in stages),
            str(late[client.id] or "–"),
        ]
        for client in run.run.clients
    ]
    columns = ("client", "rounds in the sum", *(f"gone at {stage}" for stage in stages), "late")
    table = html_table(columns, rows, numeric=range(1, len(columns)))
    share = run.config.get("dropout", 0)
    planned = f"{100 * share:g} % of the clients were to vanish from each round. " if share else ""
    note = paragraph(
        f"{planned}A client that vanishes before its vector came is not in the sum. One that vanishes after "
        "it is: shares that the others hold take its mask off. What comes late is refused and changes "
        "nothing."
    )
    return section("Dropouts", f'<div class="pair">{chart}{table}</div>{note}{_aborted_table(run)}')


def _aborted_table(run: RunFolder) -> str:
    """Everybody who vanished from the rounds that came to nothing; empty where there is none of these."""
    rows = [
        [str(line.round), line.reason or "no reason recorded", _told(line, named=len(line.clients)) or "–"]
        for line in run.rounds
        if line.status == "aborted"
    ]
    return html_table(("aborted round", "reason", "gone"), rows, numeric=(0,)) if rows else ""


def _counted(line: RoundLine) -> int:
    return sum(at.status == "ok" for at in line.clients.values())


def dropout_faults(rounds: Sequence[RoundLine], config: Config) -> Iterator[str]:
    """Clients that vanished and yet count, or the reverse; and such as were to vanish and did not."""
    for line in rounds:
        for name, at in line.clients.items():
            where = f"round {line.round} of metrics.jsonl"
            if at.status == "ok" and at.dropped is not None and at.dropped not in _AFTER_VECTOR:
                yield f"{where} counts {name!r}, which was gone at {at.dropped}"
            if at.status == "dropped" and (
                at.dropped is None or (line.status == "ok" and at.dropped in _AFTER_VECTOR)
            ):
                yield f"{where} leaves {name!r} out, which was gone at {at.dropped}"
        if config.server.selection.how == "all":  # else nobody but the run knows who was asked
            yield from _not_as_drawn(line, config)


def _not_as_drawn(line: RoundLine, config: Config) -> Iterator[str]:
    """The clients that `dropout` let vanish follow from the seed, for trial runs."""
    for name, drawn in Dropouts(config.dropout, config.seed).draw(line.round, line.clients).items():
        at = line.clients[name]
        if at.status == "ok" and not drawn.counts:
            yield (
                f"round {line.round} of metrics.jsonl counts {name!r}, which config.json's dropout takes out "
                f"at {drawn.stage}"
            )


def summary(rounds: Sequence[RoundLine]) -> str:
    """How many rounds lost how many clients, in words; empty where none did."""
    lost = [sum(at.dropped is not None for at in line.clients.values()) for line in rounds]
    hit = sum(number > 0 for number in lost)
    return f"{count(sum(lost), 'dropout')} in {count(hit, 'round')}" if hit else ""
