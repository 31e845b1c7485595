"""Draws the house: the modules of every room of `src`, those of the main floor first and marked, into
docs/images/house.svg.

    python -m scripts.draw_house [--check]

The rows are the layers of the import contract "Imports run one way" in pyproject.toml: a row imports only from those
below it. The main floor is the list `main_floor` in the same file.
"""

import argparse
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "house.svg"
WIDTH, LINE, HEAD, GAP, COLUMN = 1180, 17, 30, 14, 180
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#1c2733}.room{font-weight:600;font-size:14px}"
    ".main{font-weight:600}.floor{fill:#fff0c2}.box{fill:#f6f8fa;stroke:#c5d0da}"
)


class Module(NamedTuple):
    """A module of a room; `on_main_floor` ones come first."""

    name: str
    on_main_floor: bool


def rooms(main_floor: list[str]) -> dict[str, list[Module]]:
    """The modules of each room, without the packages' own files."""
    source = ROOT / "src" / "renderonline"
    found: dict[str, list[Module]] = {}
    for path in sorted(source.rglob("*.py")):
        room, *rest = path.relative_to(source).with_suffix("").parts
        if rest and not rest[-1].startswith("__"):
            name = ".".join(rest)
            marked = any(fnmatchcase(f"renderonline.{room}.{name}", pattern) for pattern in main_floor)
            found.setdefault(room, []).append(Module(name, marked))
    return {room: sorted(modules, key=lambda one: not one.on_main_floor) for room, modules in found.items()}


def draw() -> str:
    """The picture as SVG text."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    found = rooms(settings["renderonline"]["house"]["main_floor"])
    layers = next(one["layers"] for one in settings["importlinter"]["contracts"] if one["type"] == "layers")
    parts: list[str] = []
    top = GAP
    for layer in layers:
        names = [name.strip() for name in layer.split("|")]
        width = (WIDTH - GAP * (len(names) + 1)) // len(names)
        columns = width // COLUMN
        height = HEAD + max(-(-len(found[name]) // columns) for name in names) * LINE + 10
        for place, name in enumerate(names):
            left = GAP + place * (width + GAP)
            parts.append(f'<rect class="box" x="{left}" y="{top}" width="{width}" height="{height}" rx="8"/>')
            parts.append(f'<text class="room" x="{left + 10}" y="{top + 20}">{name}</text>')
            parts += _lines(found[name], left + 10, top + HEAD, (width - 10) // columns, columns)
        top += height + GAP
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}"><style>{STYLE}</style>'
    return "\n".join((head, *parts, "</svg>\n"))


def _lines(modules: list[Module], left: int, top: int, width: int, columns: int) -> list[str]:
    depth, parts = -(-len(modules) // columns), []
    for number, module in enumerate(modules):
        x, y = left + number // depth * width, top + number % depth * LINE
        if module.on_main_floor:
            parts.append(f'<rect class="floor" x="{x - 4}" y="{y}" width="{width - 6}" height="{LINE}"/>')
        style = ' class="main"' if module.on_main_floor else ""
        parts.append(f'<text{style} x="{x}" y="{y + 13}">{module.name}</text>')
    return parts


def main() -> None:
    """Write the picture; with `--check` change nothing and fail if it is out of date."""
    parser = argparse.ArgumentParser(description="Draw docs/images/house.svg from the code.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if the picture is out of date")
    drawn = draw()
    if parser.parse_args().check:
        sys.exit(0 if PICTURE.read_text() == drawn else "The picture is out of date: python -m scripts.draw_house")
    PICTURE.write_text(drawn)


if __name__ == "__main__":
    main()
