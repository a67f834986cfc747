"""Draw the rooms of plugins/module_utils and who imports whom, as docs/images/rooms.svg.

`make picture` writes the picture; without --write this is a gate that fails where the picture is not up to date.
"""

from __future__ import annotations

import ast
import html
import pathlib
import sys

import rooms

SOURCE = pathlib.Path("plugins/module_utils")
PICTURE = pathlib.Path("docs/images/rooms.svg")
_WIDTH, _GAP_X, _GAP_Y, _LINE, _MARGIN = 190, 26, 62, 15, 16


def edges() -> dict[str, set[str]]:
    """Return for each room the other rooms that its files import now."""
    found: dict[str, set[str]] = {path.name: set() for path in SOURCE.iterdir() if list(path.glob("*.py"))}
    for room, targets in found.items():
        for path in (SOURCE / room).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                targets.update(name.partition(".")[0] for name in rooms.imported(node, room))
        targets &= rooms.MAY_IMPORT[room]  # the gate rooms.py names every other import
    return found


def floors(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the rooms by floor, lowest first: a room stands above every room that it imports."""
    height: dict[str, int] = {}

    def of(room: str) -> int:
        if room not in height:
            height[room] = 1 + max((of(below) for below in graph[room]), default=-1)
        return height[room]

    for room in graph:
        of(room)
    return [sorted(room for room in graph if height[room] == level) for level in range(max(height.values()) + 1)]


def essential(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the graph without the arrows that a longer way says already, so that a reader can follow it."""

    def reach(room: str) -> set[str]:
        return graph[room].union(*(reach(below) for below in graph[room])) if graph[room] else set()

    return {
        room: {below for below in targets if not any(below in reach(other) for other in targets if other != below)}
        for room, targets in graph.items()
    }


def svg() -> str:
    """Return the picture: one box per room with its files, one arrow per import that no longer way implies."""
    graph = edges()
    levels = floors(graph)[::-1]
    files = {room: sorted(path.stem for path in (SOURCE / room).glob("*.py")) for room in graph}
    widest = max(len(level) for level in levels)
    total = widest * (_WIDTH + _GAP_X) - _GAP_X + 2 * _MARGIN
    place: dict[str, tuple[float, float, float]] = {}
    top = float(_MARGIN)
    for level in levels:
        left = (total - (len(level) * (_WIDTH + _GAP_X) - _GAP_X)) / 2
        for index, room in enumerate(level):
            place[room] = (left + index * (_WIDTH + _GAP_X), top, 30 + _LINE * len(files[room]))
        top += max(place[room][2] for room in level) + _GAP_Y
    arrows = [(room, below) for room, targets in sorted(essential(graph).items()) for below in sorted(targets)]
    body = [_arrow(place[room], place[below]) for room, below in arrows]
    for room, (left, upper, high) in sorted(place.items()):
        body.append(f'<rect x="{left:.0f}" y="{upper:.0f}" width="{_WIDTH}" height="{high:.0f}" rx="6" class="room"/>')
        body.append(f'<text x="{left + 10:.0f}" y="{upper + 18:.0f}" class="name">{html.escape(room)}</text>')
        for index, name in enumerate(files[room]):
            y = upper + 36 + _LINE * index
            body.append(f'<text x="{left + 10:.0f}" y="{y:.0f}" class="file">{html.escape(name)}</text>')
    style = (
        ".room{fill:#f6f8fa;stroke:#57606a}.name{font:bold 13px sans-serif;fill:#24292f}"
        ".file{font:12px monospace;fill:#57606a}.arrow{fill:none;stroke:#0969da;stroke-opacity:.55;stroke-width:1.4}"
    )
    head = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total:.0f} {top:.0f}" role="img">',
        "<title>Rooms of plugins/module_utils; an arrow points to the room that is imported</title>",
        f'<style>{style}</style><defs>{head}<path d="M0 0L8 4L0 8z" fill="#0969da"/></marker></defs>',
        f'<rect width="{total:.0f}" height="{top:.0f}" fill="#ffffff"/>',
        *body,
        "</svg>",
    ]) + "\n"  # fmt: skip


def _arrow(upper: tuple[float, float, float], lower: tuple[float, float, float]) -> str:
    x1, y1 = upper[0] + _WIDTH / 2, upper[1] + upper[2]
    x2, y2 = lower[0] + _WIDTH / 2, lower[1]
    bend = (y2 - y1) / 2
    path = f"M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2 - 2:.0f}"
    return f'<path d="{path}" class="arrow" marker-end="url(#tip)"/>'


def main() -> int:
    """Write the picture (--write), or return 1 where the stored one is out of date."""
    picture = svg()
    if "--write" in sys.argv:
        PICTURE.write_text(picture, encoding="utf-8")
        return 0
    if not PICTURE.exists() or PICTURE.read_text(encoding="utf-8") != picture:
        print(f"{PICTURE} does not show the rooms as they are: run make picture")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
