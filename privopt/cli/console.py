"""What the command line shows while it works: floor 7, tables, and an observer of a run.

On a terminal a run is a heading, a line a round, and a bar; elsewhere it is plain lines, and with JSON it is
silent until its one object. Nothing here knows how a run works.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from ..report.text import gone, percent, small

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Console"]


class Console:
    """Prints what a command says, and how a run goes (an observer of `privopt.federation`).

    Args:
        as_json: Print one JSON object at the end and nothing before it.
        out: Where to; standard output by default.
        folder: Where the run is kept, if that is known before it starts.
    """

    def __init__(
        self, *, as_json: bool = False, out: IO[str] | None = None, folder: Path | None = None
    ) -> None:
        self.as_json = as_json
        self.out = out or sys.stdout
        self.folder = folder
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    # ---- any command -------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """Text for people; left out where JSON was asked for."""
        if self.as_json:
            return
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self.out, flush=True)

    def give(self, value: Any) -> None:
        """The one JSON object of a command; left out where text was asked for."""
        if self.as_json:
            print(json.dumps(value, ensure_ascii=False, indent=2), file=self.out, flush=True)

    # ---- observer ----------------------------------------------------------------------------------------

    def started(self, facts: dict[str, Any]) -> None:
        """The heading."""
        config = facts["config"]
        self.folder = self.folder or Path(config["out"]) / facts["id"]
        self._rounds = int(config["rounds"])
        self._twin: float | None = None
        self.say(f"Federation  {_federation(facts)}")
        self.say(f"Privacy     {_privacy(facts['dp'])}")
        self.say(f"Masks       {_masks(facts['masks'], config['masks'].get('hybrid', False))}")
        if rates := facts.get("rates"):  # earlier versions kept none
            self.say(f"Rates       clients {_rates(rates['client'])} · server {_rates(rates['server'])}")
        if not self.as_json and self.out.isatty():
            self._start()

    def _start(self) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
            console=RichConsole(file=self.out),
            transient=True,
        )
        self._task = self._bar.add_task("", total=self._rounds)
        self._bar.start()

    def round_done(self, line: dict[str, Any]) -> None:
        """A line, and the bar."""
        width = len(str(self._rounds))
        self.say(f"round {line['round']:>{width}}/{self._rounds}  {_round(line)}")
        if self._bar is not None and self._task is not None:
            done = line["round"]
            # After the last round the twin still trains.
            note = "" if done < self._rounds else "comparing with the same run without privacy …"
            self._bar.update(self._task, completed=done, description=note)

    def twin_done(self, facts: dict[str, Any]) -> None:
        """Kept for the summary."""
        self._twin = facts.get("accuracy")

    def finished(self, outcome: dict[str, Any]) -> None:
        """The summary."""
        self._stop()
        parts = [
            f"accuracy {percent(outcome.get('accuracy'))}" if outcome.get("accuracy") is not None else ""
        ]
        if self._twin is not None:
            parts.append(f"without privacy {percent(self._twin)}")
        if outcome.get("epsilon") is not None:
            parts.append(f"ε spent {outcome['epsilon']:.2f} at δ = {small(outcome['delta'])}")
        if aborted := outcome.get("aborted"):
            parts.append(f"{aborted} round{'' if aborted == 1 else 's'} aborted")
        self.say("Result      " + " · ".join(filter(None, parts)))
        folder = outcome.get("folder", self.folder)
        kept = "report.html, model.safetensors" + (", ledgers/" if outcome.get("epsilon") is not None else "")
        self.say(f"Run kept in {folder} — {kept}")
        self.give(outcome)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _federation(facts: dict[str, Any]) -> str:
    model, parameters = facts["config"]["model"]["name"], facts["model"]["parameters"]
    data = facts.get("data") or facts["config"]["data"]["name"]
    share = facts["config"].get("dropout", 0)
    trial = f" · {100 * share:g} % vanish from each round" if share else ""
    return f"{len(facts['clients'])} clients · {data} · {model}, {parameters:,} parameters{trial}"


def _privacy(plan: dict[str, Any] | None) -> str:
    if plan is None:
        return "off: updates depend on single rows without a bound (dp.enabled=true turns it on)"
    return (
        f"per {plan['unit']}, {plan['neighboring']} · ε ≤ {plan['epsilon']:g}, δ = {small(plan['delta'])} "
        f"for every client · Poisson q={plan['sample_rate']:g} · clip {plan['clip_norm']:g} · "
        f"noise {plan['noise_multiplier']:.3g}"
    )


def _masks(masks: dict[str, Any] | None, hybrid: bool) -> str:
    if masks is None:
        return "off: the server sees every client's vector (masks.enabled=true hides it)"
    keys = "X25519 with ML-KEM-768" if hybrid else "X25519"
    sums = sum(line.get("reduction") in ("summed", "averaged", "counted") for line in masks["explain"])
    each = masks.get("bytes_per_parameter")
    return (
        f"{keys} + AES-CTR, {masks['bits']} bits a value, {masks['bytes_per_value']:.1f} bytes a value"
        + (f", {each:.1f} a parameter" if each is not None else "")
        + f" · the server learns {sums} sums a round (privopt explain)"
    )


def _rates(rates: dict[str, Any]) -> str:
    """Rate and decay, and where groups have another."""
    parts = [_rate(rates["lrate"])]
    if rates["w_decay"] != 0:
        parts.append(f"decay {_rate(rates['w_decay'])}")
    for group in rates["groups"]:
        where = f"{group['match']!r}"
        if group["lrate"] is not None:
            parts.append(f"{where} {_rate(group['lrate'])}")
        if group["lrate_scale"] != 1:
            parts.append(f"{where} times {group['lrate_scale']:g}")
        if group["w_decay"] is not None:
            parts.append(f"{where} decay {_rate(group['w_decay'])}")
    return ", ".join(parts)


def _rate(rate: Any) -> str:
    """A number, or a schedule with all its parameters: those that a bare name takes show here."""
    match rate:
        case [str(name), dict(config)]:
            return f"{name}({', '.join(f'{key}={_rate(value)}' for key, value in config.items())})"
        case float():
            return f"{rate:g}"
        case _:
            return str(rate)


def _round(line: dict[str, Any]) -> str:
    spent = [client["epsilon"] for client in line["clients"].values() if client.get("epsilon") is not None]
    stopped = [name for name, client in line["clients"].items() if client["status"] == "stopped"]
    if line["status"] != "ok":
        parts = [f"aborted: {line.get('reason') or 'no reason given'}"]
    else:
        parts = [
            f"accuracy {percent(line['accuracy']):>7}" if line.get("accuracy") is not None else "",
            f"loss {line['loss']:.3f}" if line.get("loss") is not None else "",
        ]
    parts.append(f"ε {max(spent):.2f}" if spent else "")
    parts.append(f"out of budget: {', '.join(stopped)}" if stopped else "")
    parts.append(_dropped(line))
    parts.append(f"wrong shares: {', '.join(wrong)}" if (wrong := line.get("faulty")) else "")
    return "  ".join(filter(None, parts))


def _dropped(line: dict[str, Any]) -> str:
    """How many are in the sum, and who vanished at which stage; empty where nobody did."""
    clients = line["clients"]
    told = gone((name, at.get("dropped"), at.get("late", False)) for name, at in clients.items())
    if not told:
        return ""
    counted = sum(client["status"] == "ok" for client in clients.values())
    summed = f"{counted} of {len(clients)} in the sum, " if line["status"] == "ok" else ""
    return f"{summed}gone: {told}"
