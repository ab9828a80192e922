"""Line charts as inline SVG: floor 7, drawn for the report by hand so that they follow its light and dark.

Colours are CSS variables of the page, text is text, every point tells its values under the pointer, and
nothing is loaded: a chart is a string of a few kilobytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Line", "Reference", "line_chart", "nice_ticks"]

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 112, 52, 44
_COLOURS = 6


@dataclass(frozen=True)
class Line:
    """One series: a label and ``(x, y)`` points in order of x; gaps are points that are left out."""

    label: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Reference:
    """A dashed horizontal line with its label, such as a budget."""

    label: str
    y: float


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover [low, high], about so many.

    Example:
        >>> nice_ticks(0.0, 8.0)
        [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= span / about * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    unit: str = "",
    references: Sequence[Reference] = (),
    crosses: Sequence[tuple[float, str]] = (),
    from_zero: bool = False,
) -> str:
    """A chart of a few series over rounds, as an ``<svg>`` element.

    Args:
        title: What it shows; also read out by screen readers.
        lines: The series; the label stands at the line's end.
        x_label: Name of the x axis.
        y_label: Name and unit of the y axis.
        unit: Appended to values under the pointer.
        references: Dashed lines.
        crosses: Rounds marked on the x axis, each with the text that says why.
        from_zero: Whether the y axis starts at zero whatever the values.

    Returns:
        The element; an explaining paragraph if there is no finite value.
    """
    drawn = [
        Line(line.label, points)
        for line in lines
        if (points := [(x, y) for x, y in line.points if math.isfinite(y)])
    ]
    if not drawn:
        return f'<p class="empty">{escape(title)}: nothing was measured.</p>'
    xs = [x for line in drawn for x, _ in line.points] + [x for x, _ in crosses]
    ys = [y for line in drawn for _, y in line.points] + [r.y for r in references if math.isfinite(r.y)]
    y_ticks = nice_ticks(0.0 if from_zero else min(ys), max(ys))
    x_ticks = [t for t in nice_ticks(min(xs), max(xs), 6) if t == int(t) and min(xs) <= t <= max(xs)]
    plane = _Plane(min(xs), max(xs), y_ticks[0], y_ticks[-1])
    parts = [
        f'<svg class="chart" role="img" aria-label="{escape(title)}" viewBox="0 0 {_WIDTH} {_HEIGHT}">',
        f'<text class="title" x="0" y="14">{escape(title)}</text>',
        f'<text class="label" x="0" y="31">{escape(y_label)}</text>',
        *_axes(plane, x_ticks, y_ticks, x_label),
        *(_reference(plane, reference) for reference in references if math.isfinite(reference.y)),
        *(_cross(plane, x, why) for x, why in crosses),
    ]
    ends = _spread([plane.y(line.points[-1][1]) for line in drawn])
    for number, (line, end) in enumerate(zip(drawn, ends, strict=True)):
        parts.append(_series(plane, line, number % _COLOURS, end, unit))
    return "\n".join([*parts, "</svg>"])


@dataclass(frozen=True)
class _Plane:
    """Maps values to the drawing's coordinates."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low) if self.x_high > self.x_low else 0.5
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 2)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 2)


def _axes(plane: _Plane, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str) -> list[str]:
    left, right, bottom = _LEFT, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    decimals = max(0, *(-math.floor(math.log10(abs(b - a)) + 1e-9) for a, b in itertools.pairwise(y_ticks)))
    if any(round(t, decimals) != t for t in y_ticks):
        decimals += 1  # steps of 2.5
    parts = []
    for tick in y_ticks:
        y = plane.y(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{y + 4}" text-anchor="end">{tick:,.{decimals}f}</text>'
        )
    for tick in x_ticks:
        x = plane.x(tick)
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    at = f'x="{(left + right) / 2}" y="{_HEIGHT - 8}"'
    parts.append(f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="label" {at} text-anchor="middle">{escape(x_label)}</text>')
    return parts


def _reference(plane: _Plane, reference: Reference) -> str:
    y = plane.y(reference.y)
    beside = y - 5 if y > _TOP + 14 else y + 15
    return (
        f'<line class="reference" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text class="note" x="{_LEFT + 6}" y="{beside}">{escape(reference.label)}</text>'
    )


def _cross(plane: _Plane, x: float, why: str) -> str:
    at, bottom = plane.x(x), _HEIGHT - _BOTTOM
    return (
        f'<path class="cross" d="M{at - 4} {bottom - 4}l8 8m0 -8l-8 8"><title>{escape(why)}</title></path>'
    )  # fmt: skip


def _series(plane: _Plane, line: Line, colour: int, label_y: float, unit: str) -> str:
    path = " ".join(f"{'L' if i else 'M'}{plane.x(x)} {plane.y(y)}" for i, (x, y) in enumerate(line.points))
    dots = "".join(
        f'<circle cx="{plane.x(x)}" cy="{plane.y(y)}" r="2.6"><title>'
        f"{escape(line.label)}, round {x:g}: {y:.4g}{escape(unit)}</title></circle>"
        for x, y in line.points
    )
    at = f'x="{plane.x(line.points[-1][0]) + 8}" y="{label_y + 4}"'
    label = line.label if len(line.label) <= 16 else line.label[:15] + "…"
    return (
        f'<g class="series s{colour}"><path d="{path}"/>{dots}'
        f'<text class="end" {at}>{escape(label)}<title>{escape(line.label)}</title></text></g>'
    )


def _spread(heights: Sequence[float], gap: float = 14.0) -> list[float]:
    """Label heights moved apart so that none lies on another, in the order of the lines."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    # Neighbours: the second list is one longer, on purpose.
    for below, above in zip(order[1:], order, strict=False):
        placed[below] = max(placed[below], placed[above] + gap)
    overflow = max(0.0, max(placed) - (_HEIGHT - _BOTTOM))
    return [y - overflow for y in placed] if overflow else placed
