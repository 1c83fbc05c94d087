"""Panels of lines on logarithmic axes, as one SVG that is readable on a light and on a dark ground."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

WIDTH, HEIGHT = 360, 250  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 34, 34, 40
_COLOURS = ("#3b82f6", "#f97316", "#22a06b")

_STYLE = """
text { font: 11px system-ui, sans-serif; fill: #57606a }
.title { font-size: 13px; font-weight: 600; fill: #24292f }
.grid { stroke: #8b949e; stroke-opacity: .3 }
polyline { fill: none; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #9aa4af } .title { fill: #e6edf3 } }
"""


class Panel(NamedTuple):
    """Milliseconds by a number of something: (number, milliseconds) points by the name of each line."""

    title: str
    axis: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


def svg(panels: Sequence[Panel], columns: int = 2) -> str:
    rows = -(-len(panels) // columns)
    width, height = columns * WIDTH, rows * HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img">\n<style>{_STYLE}</style>'
    ]
    for number, panel in enumerate(panels):
        x, y = number % columns * WIDTH, number // columns * HEIGHT
        parts += [f'<g transform="translate({x} {y})">', *_panel(panel), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel) -> Iterator[str]:
    points = [point for line in panel.lines.values() for point in line]
    x_from, x_to = _decades(x for x, _ in points)
    y_from, y_to = _decades(y for _, y in points)

    def x_at(x: float) -> float:
        return _LEFT + (log10(x) - x_from) / (x_to - x_from) * (WIDTH - _LEFT - _RIGHT)

    def y_at(y: float) -> float:
        return HEIGHT - _BOTTOM - (log10(y) - y_from) / (y_to - y_from) * (HEIGHT - _TOP - _BOTTOM)

    yield _text(_LEFT, 18, panel.title, "start", "title")
    for decade in range(x_from, x_to + 1):
        x = x_at(10.0**decade)
        yield _line(x, _TOP, x, HEIGHT - _BOTTOM)
        yield _text(x, HEIGHT - _BOTTOM + 15, f"{10**decade:,}")
    for decade in range(y_from, y_to + 1):
        y = y_at(10.0**decade)
        yield _line(_LEFT, y, WIDTH - _RIGHT, y)
        yield _text(_LEFT - 6, y + 4, _duration(decade), "end")
    yield _text((WIDTH + _LEFT - _RIGHT) / 2, HEIGHT - 8, panel.axis)
    for number, (name, line) in enumerate(panel.lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        drawn = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in line)
        yield f'<polyline points="{drawn}" stroke="{colour}"/>'
        for x, y in line:
            yield f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="2.5" fill="{colour}"/>'
        yield f'<rect x="{_LEFT + 8}" y="{_TOP + 6 + 15 * number}" width="12" height="3" fill="{colour}"/>'
        yield _text(_LEFT + 25, _TOP + 11 + 15 * number, name, "start")


def _decades(values: Iterable[float]) -> tuple[int, int]:
    """The powers of ten around the values, one apart at least."""
    logarithms = [log10(value) for value in values]
    first, last = floor(min(logarithms)), ceil(max(logarithms))
    return first, max(last, first + 1)


def _duration(decade: int) -> str:
    """A power of ten of milliseconds."""
    return f"{10 ** (decade - 3):,} s" if decade >= 3 else f"{10**decade} ms" if decade >= 0 else f"{10.0**decade:g} ms"


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
