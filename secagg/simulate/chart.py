"""Chart: lines on logarithmic axes as one SVG file, light or dark as its reader prefers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH: Final = 560
_HEIGHT: Final = 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 118, 44, 46
_STYLE: Final = """\
svg{background:#fff;color:#222;font:12px system-ui,sans-serif}
text{fill:currentColor}.title{font-weight:600;font-size:14px}.grid{stroke:#8884}
path{fill:none;stroke-width:1.8}.s0{--c:#1f6fb2}.s1{--c:#b3541e}.s2{--c:#2b7d4f}.s3{--c:#7a4fa3}
.s path{stroke:var(--c)}.s circle,.s text{fill:var(--c)}
@media(prefers-color-scheme:dark){svg{background:#16181c;color:#ddd}
.s0{--c:#7ab8f0}.s1{--c:#f0a070}.s2{--c:#7fd0a0}.s3{--c:#c3a2ea}}"""


@dataclass(frozen=True)
class Line:
    """A series: its label, and points in the order of x, all positive."""

    label: str
    points: Sequence[tuple[float, float]]


def panel(title: str, lines: Sequence[Line], x_label: str, y_label: str) -> str:
    """One chart as an ``<g>`` element; the unit of both axes grows by factors of ten."""
    x = _Axis([x for line in lines for x, _ in line.points], _LEFT, _WIDTH - _RIGHT)
    y = _Axis([y for line in lines for _, y in line.points], _HEIGHT - _BOTTOM, _TOP)
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = [f'<text class="title" x="8" y="18">{escape(title)}</text>']
    parts.append(f'<text x="8" y="36">{escape(y_label)}</text>')
    for tick in x.ticks():
        at = x.at(tick)
        parts.append(f'<path class="grid" d="M{at} {_TOP}V{bottom}"/>')
        parts.append(f'<text x="{at}" y="{bottom + 17}" text-anchor="middle">{_short(tick)}</text>')
    for tick in y.ticks():
        at = y.at(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {at}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{at + 4}" text-anchor="end">{_short(tick)}</text>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 10}" text-anchor="middle">{escape(x_label)}</text>')
    for number, line in enumerate(lines):
        parts.append(_series(line, number % 4, x, y))
    return "<g>" + "".join(parts) + "</g>"


def page(title: str, panels: Sequence[str]) -> str:
    """A file with charts below each other."""
    height = _HEIGHT * len(panels)
    placed = (f'<g transform="translate(0 {_HEIGHT * i})">{each}</g>' for i, each in enumerate(panels))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(title)}" '
        f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">'
        f"<style>{_STYLE}</style>{''.join(placed)}</svg>\n"
    )


class _Axis:
    """Places of values on a logarithmic axis."""

    def __init__(self, values: Sequence[float], low: float, high: float) -> None:
        if not values or min(values) <= 0:
            raise ValueError("Expected positive values for a logarithmic axis.")
        self._first, self._last = math.log10(min(values)), math.log10(max(values))
        self._low, self._high = low, high

    def at(self, value: float) -> float:
        """Where a value is."""
        span = self._last - self._first
        share = (math.log10(value) - self._first) / span if span else 0.5
        return round(self._low + share * (self._high - self._low), 1)

    def ticks(self) -> list[float]:
        """Powers of ten within, or 1, 2, 5 times them where those are few."""
        powers = range(math.floor(self._first), math.ceil(self._last) + 1)
        tens, fine = ([f * 10.0**p for p in powers for f in factors] for factors in ((1,), (1, 2, 5)))
        coarse = self._within(tens)
        return coarse if len(coarse) > 2 else self._within(fine)

    def _within(self, ticks: Sequence[float]) -> list[float]:
        return [t for t in ticks if self._first - 1e-9 <= math.log10(t) <= self._last + 1e-9]


def _series(line: Line, colour: int, x: _Axis, y: _Axis) -> str:
    places = [(x.at(px), y.at(py)) for px, py in line.points]
    path = "".join(f"{'L' if i else 'M'}{px} {py}" for i, (px, py) in enumerate(places))
    dots = "".join(
        f'<circle cx="{px}" cy="{py}" r="3"><title>{escape(line.label)}: {vx:,.4g}, {vy:.4g}</title></circle>'
        for (px, py), (vx, vy) in zip(places, line.points, strict=True)
    )
    end_x, end_y = places[-1]
    label = f'<text x="{end_x + 8}" y="{end_y + 4}">{escape(line.label)}</text>'
    return f'<g class="s s{colour}"><path d="{path}"/>{dots}{label}</g>'


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
