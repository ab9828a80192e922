"""Learning curves of every family of optimizers: one SVG each, and the tables of docs/learning-curves.md.

A case's value is the lowest loss of its family against that of the plain method that the family starts from.
The words of the page are written by hand; what stands between its ``<!-- table: NAME -->`` and
``<!-- end -->`` is written here.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from threadpoolctl import threadpool_limits

from privopt.report.charts import Line, line_chart
from privopt.report.style import PAGE
from privopt.schedules import rates

from .families import FAMILIES, FEDERATED, Family, best_federated
from .harness import Benchmark, Case
from .learning import PROBLEMS, STEPS, Curve

DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Shown:
    """What a family came to.

    Attributes:
        title: What the figure is called.
        panels: Its charts, each an SVG element.
        curves: The best curves, by problem, then by method.
    """

    title: str
    panels: Sequence[str]
    curves: Mapping[str, Mapping[str, Curve]]


def cases(docs: Path = DOCS) -> Iterator[Benchmark]:
    """A figure and a table each."""
    made: dict[str, Callable[[], Shown]] = {
        **{name: functools.partial(show, family) for name, family in FAMILIES.items()},
        "federated": show_federated,
    }
    for name, make in made.items():
        yield Benchmark(f"curves: {name}", functools.partial(_case, name, make, docs))


def _case(name: str, make: Callable[[], Shown], docs: Path) -> Case:
    # Arrays this small are slower on two threads, whose sums come in an order of their own too.
    with threadpool_limits(1):
        shown = make()
    file = docs / "assets" / "curves" / f"{name}.svg"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(figure(shown), "utf-8")
    page = docs / "learning-curves.md"
    page.write_text(with_table(page.read_text("utf-8"), name, table(shown)), "utf-8")
    title, curves = next(iter(shown.curves.items()))
    plain, *others = curves
    at, best = curves[plain].final, min(curves[label].final for label in others)
    return Case(f"curves: {name}, {title}", best, at, plain, best / at, best, at, best / at, 1, unit="")


# ---- training ---------------------------------------------------------------------------------------------


def show(family: Family) -> Shown:
    """Train every method of a family on each of its problems."""
    panels, found = [], {}
    if family.rates:
        panels.append(_rates_chart(family))
    for name in family.problems:
        problem = PROBLEMS[name]()
        curves = {method.label: method.best(problem) for method in family.methods}
        found[problem.title] = curves
        panels.append(_loss_chart(problem.title, curves, "step", problem.measures))
    return Shown(family.title, panels, found)


def show_federated() -> Shown:
    """Run a federation by every federated method."""
    title = "Digits, five clients, linear model"
    curves = {label: best_federated(label) for label in FEDERATED}
    chart = _loss_chart(title, curves, "round", "loss on all clients' rows")
    return Shown("Federated methods", [chart], {title: curves})


# ---- figures ----------------------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _MARGIN = 560, 300, 20


def _rates_chart(family: Family) -> str:
    lines = []
    for method in family.methods:
        share = rates(method.make(1.0).lrate, STEPS)
        lines.append(Line(method.label, [(float(t), share[t]) for t in range(0, STEPS, 5)]))
    return _chart("Learning rate", lines, "step", "share of the rate given")


def _loss_chart(title: str, curves: Mapping[str, Curve], x: str, measures: str) -> str:
    lines = [
        Line(label, [(at, math.log10(y)) for at, y in curve.points if 0 < y < math.inf])
        for label, curve in curves.items()
    ]
    return _chart(title, lines, x, f"log₁₀ of the {measures}")


def _chart(title: str, lines: Sequence[Line], x: str, y_label: str) -> str:
    # The report's charts are of rounds, and say so under the pointer; they have few lines, and six colours.
    chart = line_chart(title, lines, x_label=x, y_label=y_label).replace(", round ", f", {x} ")
    count = itertools.count()
    return re.sub('class="series ', lambda found: found[0] + "dashed " * (next(count) >= 6), chart)


def figure(shown: Shown) -> str:
    """A family's charts below each other, as an SVG file that needs no page and follows light and dark."""
    size = f'width="{_WIDTH}" height="{_HEIGHT}"'
    placed = [
        panel.replace("<svg ", f'<svg x="{_MARGIN}" y="{_MARGIN + i * (_HEIGHT + _MARGIN)}" {size} ', 1)
        for i, panel in enumerate(shown.panels)
    ]
    height = _MARGIN + len(placed) * (_HEIGHT + _MARGIN)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH + 2 * _MARGIN} {height}">',
            f"<title>{escape(shown.title)}</title>",
            f"<style>{_style()}</style>",
            '<rect class="card" width="100%" height="100%" rx="10"/>',
            *placed,
            "</svg>",
            "",
        ]
    )


def _style() -> str:
    """The report's colours and what it says of charts; lines from the seventh on are dashed."""
    colours = PAGE[PAGE.index(":root {") : PAGE.index("* { box-sizing")]
    charts = [line for line in PAGE.splitlines() if re.match(r"\.(chart (text|\.)|series|s\d) ?", line)]
    own = [
        'text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }',
        ".card { fill: var(--card); }",
        ".dashed path { stroke-dasharray: 6 4; }",
    ]
    return "\n".join(["", colours.rstrip(), *charts, *own, ""])


# ---- tables -----------------------------------------------------------------------------------------------


def table(shown: Shown) -> str:
    """The final losses, each with the rate that gave it, in Markdown."""
    labels = list(next(iter(shown.curves.values())))
    rows = [
        "| method | " + " | ".join(shown.curves) + " |",
        "|---|" + "---|" * len(shown.curves),
        *(
            f"| {label} | " + " | ".join(_cell(curves[label]) for curves in shown.curves.values()) + " |"
            for label in labels
        ),
    ]
    return "\n".join(rows)


def _cell(curve: Curve) -> str:
    return f"{curve.final:.2g} ({curve.lrate:.2g})" if math.isfinite(curve.final) else "diverges"


def with_table(page: str, name: str, written: str) -> str:
    """The page with the table of that name in its place.

    Raises:
        ValueError: If the page has no place for it.
    """
    place = re.compile(rf"(?<=<!-- table: {re.escape(name)} -->\n).*?(?=<!-- end -->)", re.S)
    if not place.search(page):
        raise ValueError(f"Expected '<!-- table: {name} -->' and '<!-- end -->' in the page, got none.")
    return place.sub(lambda _: f"\n{written}\n\n", page, count=1)
