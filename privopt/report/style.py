"""The frame, the style and the pieces of `privopt.report`'s page: floor 7, text alone.

Colours are variables, given twice: for light and for dark. The six series colours are told apart by people
with the common colour-vision deficiencies (after Okabe and Ito 2008), and each line carries its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["PAGE", "byte_count", "count", "html_table", "number", "paragraph", "section", "tile"]


def section(title: str, body: str) -> str:
    """A card with a heading."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def tile(name: str, value: str, note: str) -> str:
    """One figure, large, with its name above and a note below."""
    return (
        f'<div class="tile"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="note">{escape(note)}</div></div>'
    )


def html_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = (), style: str = ""
) -> str:
    """A table of text; columns in `numeric` stand to the right."""

    def cells(tag: str, values: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="n">{escape(v)}</{tag}>' if i in numeric else f"<{tag}>{escape(v)}</{tag}>"
            for i, v in enumerate(values)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<thead><tr>{cells('th', columns)}</tr></thead>"
    return f'<div class="scroll"><table class="{style}">{head}<tbody>{body}</tbody></table></div>'


def paragraph(text: str) -> str:
    """A paragraph, in which `backticks` mark code."""
    return "<p>" + re.sub("`(.*?)`", r"<code>\1</code>", escape(text)) + "</p>"


def number(value: float | None, digits: str = ".3g") -> str:
    """A number, or a dash for none."""
    return "–" if value is None else format(value, digits)


def byte_count(size: float | None) -> str:
    """Bytes in the unit that people read."""
    if size is None:
        return "–"
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def count(number: int, thing: str) -> str:
    """``1 round``, ``2 rounds``."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title · privopt</title>
<style>
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --card: #ffffff; --ink: #1d2125; --soft: #5d666f; --line: #e3e6e8; --axis: #9aa3ab;
  --s0: #0b66b0; --s1: #c25100; --s2: #00805f; --s3: #a2447f; --s4: #8a6d00; --s5: #43708c; --bad: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --card: #1b1f23; --ink: #e4e8eb; --soft: #9ba5ae; --line: #2d3339; --axis: #66707a;
    --s0: #63b1f2; --s1: #f29a5a; --s2: #45c9a3; --s3: #e08fc0; --s4: #dcbf45; --s5: #93bcd4; --bad: #f2867d;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; font-weight: 650; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 0 0 14px; font-weight: 650; }
p { margin: 12px 0 0; max-width: 76ch; color: var(--soft); }
header p { margin: 2px 0 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px; }
.tiles { margin: 26px 0 0; }
.tile, section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 16px 18px; }
.tile .name, .tile .note { color: var(--soft); font-size: 13px; }
.tile .value { font-size: 30px; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums; }
section { padding: 22px 24px 24px; margin-top: 18px; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); }
.pair { gap: 12px 32px; }
.scroll + .pair { margin-top: 26px; }
.pair > * { align-self: center; }
.scroll { overflow-x: auto; margin-top: 14px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--soft); font-weight: 550; font-size: 13px; white-space: nowrap; }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
tbody tr:last-child td { border-bottom: 0; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
table.plain thead { display: none; }
table.plain td:first-child { color: var(--soft); white-space: nowrap; }
table.keys td:last-child, pre, code { font: 12.5px/1.5 ui-monospace, "Liberation Mono", monospace; }
table.keys td:last-child { overflow-wrap: anywhere; }
ul { margin: 0; padding-left: 20px; }
details { margin-top: 6px; }
summary { cursor: pointer; color: var(--soft); }
pre { overflow-x: auto; background: var(--page); padding: 14px; }
pre { border: 1px solid var(--line); border-radius: 8px; }
footer { color: var(--soft); font-size: 13px; margin-top: 26px; }
footer p { max-width: 90ch; margin-top: 6px; }
.empty { align-self: center; }
.chart { width: 100%; height: auto; display: block; }
.chart text { fill: var(--soft); font-size: 12px; }
.chart .title { fill: var(--ink); font-size: 13.5px; font-weight: 600; }
.chart .tick { font-variant-numeric: tabular-nums; }
.chart .grid { stroke: var(--line); }
.chart .axis { stroke: var(--axis); }
.chart .reference { stroke: var(--soft); stroke-dasharray: 5 4; }
.chart .cross { stroke: var(--bad); stroke-width: 1.8; fill: none; }
.series path { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.series circle { fill: var(--c); stroke: var(--card); stroke-width: 1; }
.series circle:hover { r: 4.5px; }
.chart .series .end { fill: var(--c); font-weight: 550; }
.s0 { --c: var(--s0); } .s1 { --c: var(--s1); } .s2 { --c: var(--s2); }
.s3 { --c: var(--s3); } .s4 { --c: var(--s4); } .s5 { --c: var(--s5); }
@media print { section, .tile { break-inside: avoid; } main { padding: 0; } }
</style>
</head>
<body>
<main>
<header>
<h1>$title</h1>
<p>$summary</p>
</header>
<div class="tiles">$tiles</div>
$sections
<footer>
<p>Written by privopt $version from the files of this run's folder, started $created.</p>
<p>The page shows that the records agree with each other. That the declared code ran is not something a file
can show: for that, each data holder runs its own client.</p>
</footer>
</main>
</body>
</html>
"""
