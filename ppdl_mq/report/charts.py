"""Line charts as inline SVG, drawn in the page's own colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH: Final = 640
_HEIGHT: Final = 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 16, 14, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a chart.

    Args:
        name: what its points are called when pointed at.
        css: class that gives it its colour.
        points: (x, y), both in the units of the axes.
        marks: whether each point is marked.
    """

    name: str
    css: str
    points: tuple[tuple[float, float], ...]
    marks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A labelled place on the horizontal axis."""

    at: float
    label: str


def line_chart(lines: Sequence[Line], *, ticks: Sequence[Tick], x_label: str, title: str, y_from: float = 0.0) -> str:
    """Draw shares over something else.

    Args:
        lines: y from 0 to 1; later ones lie on top.
        ticks: of the horizontal axis; the first and the last are its ends.
        x_label: what the horizontal axis shows.
        title: for those who cannot see it.
        y_from: where the vertical axis begins.
    """
    x_from, x_to = ticks[0].at, ticks[-1].at

    def x(value: float) -> float:
        return _LEFT + (value - x_from) / (x_to - x_from or 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (max(value, y_from) - y_from) / (1 - y_from) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">']
    for step in range(6):
        level = y_from + (1 - y_from) * step / 5
        parts.append(f'<path class="grid" d="M{_LEFT} {y(level):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text class="y" x="{_LEFT - 8}" y="{y(level) + 4:.1f}">{level:.0%}</text>')
    below = _HEIGHT - _BOTTOM + 18
    parts += [f'<text class="x" x="{x(tick.at):.1f}" y="{below}">{escape(tick.label)}</text>' for tick in ticks]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="x" x="{middle:.1f}" y="{_HEIGHT - 4}">{escape(x_label)}</text>')
    for line in lines:
        path = " ".join(f"{x(at):.1f},{y(share):.1f}" for at, share in line.points)
        parts.append(f'<polyline class="{line.css}" points="{path}"><title>{escape(line.name)}</title></polyline>')
        if line.marks:
            parts += [
                f'<circle class="{line.css}" cx="{x(at):.1f}" cy="{y(share):.1f}" r="4">'
                f"<title>{escape(line.name)}: {share:.1%}</title></circle>"
                for at, share in line.points
            ]
    return "".join([*parts, "</svg>"])
