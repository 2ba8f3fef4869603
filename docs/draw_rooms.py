"""Draws the rooms of the house from its imports: `python docs/draw_rooms.py` writes `docs/rooms.svg`.

What belongs here: which room imports which, and the picture. Not here: which imports are allowed (`pyproject.toml`,
held by import-linter).

A room is a folder of a package; a package's own modules, outside any folder, are one more. Rooms stand in rows, one a
package, from the one that nobody of its package imports on the left to the one that imports nobody on the right. So
within a package every arrow runs from left to right, and an arrow that ran back would be seen at once.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

import grimp

PACKAGES: Final = ("pipelines", "medsam_core", "storage")
PICTURE: Final = Path(__file__).with_name("rooms.svg")

_WIDTH, _HEIGHT, _GAP = 132, 44, 26
_MARGIN, _LEFT = 20, 120
_ROWS: Final = {"pipelines": 220, "medsam_core": 520, "storage": 810}
"""Top edge of each package's row; the space above it is for the arrows between its rooms."""
_COLOURS: Final = {"pipelines": "#3b6ea5", "medsam_core": "#2f855a", "storage": "#b7791f"}

Arrows = Collection[tuple[str, str]]
"""Pairs of an importing and an imported room."""


@dataclass(frozen=True)
class Room:
    """A room of the house.

    Attributes:
        name: `package.folder`, or `package` for the modules outside its folders.
    """

    name: str

    @property
    def package(self) -> str:
        """The package it belongs to."""
        return self.name.partition(".")[0]

    @property
    def title(self) -> str:
        """What the picture calls it."""
        return self.name.partition(".")[2] or "(own modules)"


def rooms_and_arrows() -> tuple[list[Room], Arrows]:
    """Return the rooms, each package's in the order of its row, and which imports which."""
    graph = grimp.build_graph(*PACKAGES)
    folders = {name for name in graph.modules if name.count(".") == 1 and graph.find_children(name)}
    homes = {name: _room_of(name, folders) for name in graph.modules}
    arrows = {
        (homes[importer], homes[imported])
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
        if homes[importer] != homes[imported]
    }
    names = {home for name, home in homes.items() if name != home}
    return [Room(name) for name in _ordered(names, arrows)], arrows


def _room_of(module: str, folders: set[str]) -> str:
    parts = module.split(".")
    folder = ".".join(parts[:2])
    return folder if folder in folders else parts[0]


def _ordered(names: set[str], arrows: Arrows) -> list[str]:
    """Return the rooms package by package, importers before what they import; rooms in a circle by name."""
    ordered: list[str] = []
    for package in PACKAGES:
        left = sorted(name for name in names if name.partition(".")[0] == package)
        while left:
            free = [name for name in left if not any((other, name) in arrows for other in left)]
            ordered.append((free or left)[0])
            left.remove(ordered[-1])
    return ordered


def draw(rooms: list[Room], arrows: Arrows) -> str:
    """Return the picture as SVG text; equal rooms and arrows give equal text."""
    places = {room.name: _place(room, [other for other in rooms if other.package == room.package]) for room in rooms}
    right = max(x for x, _ in places.values()) + _WIDTH + _MARGIN
    bottom = max(_ROWS.values()) + _HEIGHT + _MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right} {bottom}" font-family="sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9" '
        'markerUnits="userSpaceOnUse" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="context-stroke"/></marker></defs>',
        f'<rect width="{right}" height="{bottom}" fill="#ffffff"/>',
    ]
    lines += [_arrow(pair, places) for pair in sorted(arrows)]
    lines += [_label(package) for package in PACKAGES]
    lines += [_box(room, places[room.name]) for room in rooms]
    return "\n".join([*lines, "</svg>", ""])


def _place(room: Room, row: list[Room]) -> tuple[int, int]:
    return _LEFT + row.index(room) * (_WIDTH + _GAP), _ROWS[room.package]


def _label(package: str) -> str:
    y = _ROWS[package] + _HEIGHT // 2 + 5
    return f'<text x="{_MARGIN}" y="{y}" font-size="14" font-weight="bold" fill="{_COLOURS[package]}">{package}</text>'


def _box(room: Room, place: tuple[int, int]) -> str:
    x, y = place
    middle = x + _WIDTH // 2
    return (
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="7" fill="#ffffff" '
        f'stroke="{_COLOURS[room.package]}" stroke-width="2"/>'
        f'<text x="{middle}" y="{y + 27}" font-size="14" text-anchor="middle">{escape(room.title)}</text>'
    )


def _arrow(pair: tuple[str, str], places: Mapping[str, tuple[int, int]]) -> str:
    """Return an arrow: an arch above the row within a package, a straight line down to another package."""
    importer, imported = pair
    (x0, y0), (x1, y1) = places[importer], places[imported]
    start, end = x0 + _WIDTH // 2, x1 + _WIDTH // 2
    if y0 == y1:
        backwards = end < start
        start, end = (start - 14, end + 14) if backwards else (start + 14, end - 14)
        rise = y0 - 18 - abs(end - start) // 5
        path = f"M{start} {y0} C{start} {rise} {end} {rise} {end} {y1 - 2}"
    else:
        path = f"M{start} {y0 + _HEIGHT} L{end} {y1 - 2}"
    colour = _COLOURS[importer.partition(".")[0]]
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-opacity="0.5" '
        f'marker-end="url(#tip)"><title>{importer} imports {imported}</title></path>'
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(*rooms_and_arrows()))
