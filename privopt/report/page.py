"""A run told on one page: floor 7, ``report.html`` from nothing but the run's folder.

The page is self-contained: no script, no font, no picture from elsewhere, so that it can be mailed, archived
and opened without a network. All text that comes from the run is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TypeAlias

import msgspec

from ..checkpoint import write_atomic
from .charts import Line, Reference, line_chart
from .dropouts import dropout_section, gone_in, summary
from .folder import RoundLine, RunFolder, read_run
from .style import PAGE, byte_count, count, html_table, number, paragraph, section, tile
from .text import percent, small

__all__ = ["render", "write_report"]

Points: TypeAlias = tuple[tuple[float, float], ...]


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into a run's folder, whole or not at all.

    Args:
        folder: The run's folder, with ``run.json``, ``config.json`` and ``metrics.jsonl``.

    Returns:
        The page's path.

    Raises:
        RunFolderError: If the folder is not, or not wholly, a run's.
        OSError: If the page cannot be written.
    """
    path = Path(folder) / "report.html"
    write_atomic(path, render(read_run(folder)).encode())
    return path


def render(run: RunFolder) -> str:
    """The page as text."""
    facts = run.run
    sections = [
        section("Result", _result_charts(run) + _aborted_note(run)),
        dropout_section(run),
        section("Privacy", _privacy(run)),
        section("What the server learned", _learned(run)),
        section("What left the clients without a price", _disclosed(run)),
        section("Rounds", _rounds_table(run)),
        section("Configuration", _config(run)),
    ]
    return Template(PAGE).substitute(
        title=escape(facts.id),
        created=escape(str(facts.created)),
        version=escape(facts.privopt_version),
        summary=escape(_summary(run)),
        tiles="".join(_tiles(run)),
        sections="".join(sections),
    )


# --- what is told -----------------------------------------------------------------------------------------


def _last(rounds: Sequence[RoundLine], name: str) -> float | None:
    return next((v for line in reversed(rounds) if (v := getattr(line, name)) is not None), None)


def _spent(run: RunFolder) -> dict[str, tuple[float | None, int | None, str]]:
    """Latest epsilon, releases and status of each client; a round that says nothing changes nothing."""
    latest: dict[str, tuple[float | None, int | None, str]] = {
        client.id: (None, None, "not in a round yet") for client in run.run.clients
    }
    for line in run.rounds:
        for name, at in line.clients.items():
            epsilon, steps, _ = latest.get(name, (None, None, ""))
            latest[name] = (
                at.epsilon if at.epsilon is not None else epsilon,
                at.steps if at.steps is not None else steps,
                at.status,
            )
    return latest


def _summary(run: RunFolder) -> str:
    facts = run.run
    model = (
        f"{run.config.get('model', {}).get('name', 'model')}, {count(facts.model.parameters, 'parameter')}"
    )
    data = facts.data or str(run.config.get("data", {}).get("name", "data"))
    privacy = "local differential privacy" if facts.dp else "no differential privacy"
    masks = "secure aggregation" if facts.masks else "updates sent in clear"
    return f"{count(len(facts.clients), 'client')} · {data} · {model} · {privacy} · {masks}"


def _tiles(run: RunFolder) -> Iterable[str]:
    facts = run.run
    accuracy, twin = _last(run.rounds, "accuracy"), facts.twin.accuracy if facts.twin else None
    yield tile(
        "Accuracy on public test rows",
        percent(accuracy),
        f"{percent(twin)} without privacy" if twin is not None else "no run without privacy to compare",
    )
    if facts.dp:
        spent = [e for e, _, _ in _spent(run).values() if e is not None]
        yield tile(
            "Largest ε of a client",
            number(max(spent, default=None), ".2f"),
            f"budget {facts.dp.epsilon:g} at δ = {small(facts.dp.delta)}, per {facts.dp.unit}",
        )
    else:
        yield tile("Largest ε of a client", "∞", "trained without differential privacy")
    done = sum(line.status == "ok" for line in run.rounds)
    aborted = len(run.rounds) - done
    planned = run.config.get("rounds", len(run.rounds))
    notes = [f"of {planned} planned", f"{aborted} aborted" if aborted else "", summary(run.rounds)]
    yield tile("Rounds", f"{done}", ", ".join(filter(None, notes)))
    sent = sum(line.bytes_up or 0 for line in run.rounds)
    clients = max(1, len(facts.clients))
    note = f"{byte_count(sent / clients / max(1, len(run.rounds)))} a round"
    yield tile("Sent by each client", byte_count(sent / clients), note)


def _result_charts(run: RunFolder) -> str:
    ok = [line for line in run.rounds if line.status == "ok"]
    crosses = [
        (line.round, f"round {line.round} aborted: {line.reason or 'no reason recorded'}")
        for line in run.rounds
        if line.status == "aborted"
    ]
    twin = run.run.twin.accuracy if run.run.twin else None
    accuracy = line_chart(
        "Accuracy by round",
        [Line("this run", [(li.round, 100 * li.accuracy) for li in ok if li.accuracy is not None])],
        x_label="round",
        y_label="accuracy on public test rows (%)",
        unit=" %",
        references=[Reference(f"without privacy {percent(twin)}", 100 * twin)] if twin is not None else [],
        crosses=crosses,
    )
    loss = line_chart(
        "Loss by round",
        [
            Line("test rows", [(li.round, li.loss) for li in ok if li.loss is not None]),
            Line(
                "clients' rows", [(li.round, li.training_loss) for li in ok if li.training_loss is not None]
            ),
        ],
        x_label="round",
        y_label="cross-entropy (nats)",
        unit=" nats",
        crosses=crosses,
        from_zero=True,
    )
    return f'<div class="pair">{accuracy}{loss}</div>'


def _aborted_note(run: RunFolder) -> str:
    aborted = [line for line in run.rounds if line.status == "aborted"]
    if not aborted:
        return ""
    # In clear, the vectors of those who did answer were seen before the round was given up.
    learned = (
        "learned nothing there" if run.run.masks else "used nothing of it, though it saw what had arrived"
    )
    spent = ", and what the clients had prepared is counted as spent all the same" if run.run.dp else ""
    return paragraph(f"{count(len(aborted), 'round')} aborted (× on the axis): the server {learned}{spent}.")


def _privacy(run: RunFolder) -> str:
    plan = run.run.dp
    if plan is None:
        return paragraph(
            "This run trained without differential privacy: updates depend on single rows without a bound. "
            "Masks, if on, hide who sent what, not what the sum says."
        )
    chart = line_chart(
        "ε spent by round",
        _epsilon_lines(run),
        x_label="round",
        y_label=f"ε at δ = {small(plan.delta)} (PLD)",
        references=[Reference(f"budget {plan.epsilon:g}", plan.epsilon)],
        from_zero=True,
    )
    std = plan.noise_multiplier * plan.clip_norm
    rows = [
        ["protected", f"one {plan.unit} ({plan.neighboring.replace('_', '-').lower()})"],
        ["budget of each client", f"ε ≤ {plan.epsilon:g} at δ = {small(plan.delta)}"],
        ["batches", f"Poisson, each row with probability {plan.sample_rate:g}"],
        ["clipping", f"L2 norm of one sample's gradient ≤ {plan.clip_norm:g}"],
        [
            "noise",
            f"{plan.noise_multiplier:.4g} × {plan.clip_norm:g} = {std:.4g}, the standard deviation "
            "on the sum of a batch",
        ],
        ["plan", f"{plan.steps} steps in each of {plan.rounds} rounds, {plan.planned_steps} releases"],
    ]
    by_client = html_table(
        ("client", "releases", "ε spent", "of budget", "ledger", "last round"),
        (
            (
                name,
                number(steps, "d"),
                number(epsilon, ".3f"),
                percent(epsilon / plan.epsilon if epsilon is not None else None),
                "exported" if name in run.ledgers else "–",
                status,
            )
            for name, (epsilon, steps, status) in _spent(run).items()
        ),
        numeric=(1, 2, 3),
    )
    return (
        f'<div class="pair">{chart}{html_table(("", ""), rows, style="plain")}</div>'
        + by_client
        + paragraph(
            "ε was read from the clients' ledgers as they went. `privopt audit` on this folder recomputes it "
            "from the signed exports, three ways."
        )
    )


def _epsilon_lines(run: RunFolder) -> list[Line]:
    """One line per distinct trajectory: clients that spent alike share one."""
    return _alike(
        {
            client.id: tuple(
                (line.round, at.epsilon)
                for line in run.rounds
                if (at := line.clients.get(client.id)) is not None and at.epsilon is not None
            )
            for client in run.run.clients
        }
    )


def _alike(series: Mapping[str, Points]) -> list[Line]:
    """One line for those whose points are all the same, named after the first."""
    names: dict[Points, list[str]] = {}
    for name, points in series.items():
        names.setdefault(points, []).append(name)
    return [
        Line(same[0] if len(same) == 1 else f"{same[0]} +{len(same) - 1}", points)
        for points, same in names.items()
        if points
    ]


def _steps(run: RunFolder, quanta: Mapping[str, float | None]) -> list[Line]:
    """Quantum of each adaptive field by round, in millionths: it is proportional to the field's bound."""
    first: dict[str, float] = {}
    for line in run.rounds:
        for name, bound in line.bounds.items():
            first.setdefault(name, bound)
    return _alike(
        {
            name: tuple(
                (line.round, 1e6 * quantum * line.bounds[name] / start)
                for line in run.rounds
                if name in line.bounds
            )
            for name, start in first.items()
            if (quantum := quanta.get(name)) is not None and start > 0
        }
    )


def _learned(run: RunFolder) -> str:
    masks = run.run.masks
    if masks is None:
        return paragraph("Masks were off: the server saw every client's vector, not only the sum.")
    intro = (
        f"Each round, the server decoded one sum over the clients, of {count(len(masks.explain), 'field')}; "
        "a single client's masked vector is uniform noise to it."
    )
    if masks.bytes_per_value is not None:
        intro += f" Values travel at {masks.bits} bits, {masks.bytes_per_value:.2f} bytes each."
    quanta = html_table(
        ("field", "combined as", "what the server learns", "bits", "quantum"),
        (
            (
                entry.field,
                entry.reduction,
                entry.learned,
                number(entry.bits, "d"),
                "–" if entry.quantum is None else small(entry.quantum),
            )
            for entry in masks.explain
        ),
        numeric=(3, 4),
    )
    precision = line_chart(
        "Rounding step by round",
        _steps(run, {entry.field: entry.quantum for entry in masks.explain}),
        x_label="round",
        y_label="quantum of one client's value (in millionths)",
        unit="e-6",
        from_zero=True,
    )
    clipped = paragraph("No value was beyond its bound in any round.")
    if any(values for line in run.rounds for values in line.clipped.values()):
        fields = dict.fromkeys(name for line in run.rounds for name in line.clipped)
        clipped = line_chart(
            "Values beyond the bound by round",
            _alike(
                {
                    name: tuple(
                        (li.round, float(li.clipped[name])) for li in run.rounds if name in li.clipped
                    )
                    for name in fields
                }
            ),
            x_label="round",
            y_label="clipped values, all clients",
            from_zero=True,
        )
    note = paragraph(
        "The table tells the quantum at the first round's bound. An adaptive bound then follows from the sum "
        "alone: wanted is twice the 8th root of the sum of the 8th powers of the clients' largest values, "
        "which is twice the largest of all, or somewhat more. A bound below that rises to it at once, and so "
        "at least doubles when a value was clipped; one above falls by 3 % a round, or by half when it is "
        "more than 4 times as large. No bound leaves its declared limits. A smaller bound is a finer step."
    )
    return paragraph(intro) + quanta + f'<div class="pair">{precision}{clipped}</div>' + note


def _disclosed(run: RunFolder) -> str:
    items = "".join(
        f"<li>{escape(item if isinstance(item, str) else msgspec.json.encode(item).decode())}</li>"
        for item in run.run.disclosed
    )
    rest = (
        "Nothing else left the clients but noised values."
        if run.run.dp
        else "Without differential privacy, the update itself has no price either."
    )
    return (f"<ul>{items}</ul>" if items else paragraph("Nothing was declared.")) + paragraph(rest)


def _rounds_table(run: RunFolder) -> str:
    def row(line: RoundLine) -> list[str]:
        spent = [at.epsilon for at in line.clients.values() if at.epsilon is not None]
        taking_part = sum(at.status == "ok" for at in line.clients.values())
        return [
            str(line.round),
            line.status if line.status == "ok" else f"aborted: {line.reason or 'no reason recorded'}",
            f"{taking_part} of {len(run.run.clients)}",
            gone_in(line) or "–",
            percent(line.accuracy),
            number(line.loss, ".4f"),
            number(max(spent, default=None), ".3f"),
            byte_count(line.bytes_up),
            byte_count(line.bytes_down),
            number(line.seconds, ".2f"),
        ]

    columns = ("round", "status", "in the sum", "gone", "accuracy", "loss", "largest ε", "sent", "received")
    table = html_table((*columns, "seconds"), map(row, run.rounds), numeric=(0, 2, 4, 5, 6, 7, 8, 9))
    return f"<details><summary>{count(len(run.rounds), 'round')}, one line each</summary>{table}</details>"


def _config(run: RunFolder) -> str:
    text = msgspec.json.format(msgspec.json.encode(run.config), indent=2).decode()
    owners = [("server", run.run.server.public_key), *((c.id, c.public_key) for c in run.run.clients)]
    keys = html_table(("party", "Ed25519 public key"), owners, style="keys")
    return (
        f"<details><summary>config.json</summary><pre>{escape(text)}</pre></details>"
        f"<details><summary>Pinned keys</summary>{keys}</details>"
    )
