"""Counts the house: how large `src` is, which names occur twice, how high its rooms are stacked.

    python -m scripts.house            every figure, with its limit
    python -m scripts.house --names    and what is behind it
    python -m scripts.house --check    exit code 1 when a limit is exceeded

What is counted, everywhere in the same way:

- Files are the `.py` files below `src`, lines their line ends, characters those of their text.
- A module's name is its file's name without `.py`; a package is a directory and has no name of its own here. A class is
  a `class` statement at any depth. Names in `allowed_twice` may be repeated.
- The floors of a room (a package) are the modules in the longest chain of imports that stays inside it.
- The main floor are the modules that fit a pattern of `main_floor` (`*` stands for any text, dots too). A wing import
  is an import from the main floor of a module that is not on it.

Patterns and limits stand in `pyproject.toml`, in the table `[tool.renderonline.house]`.
"""

import argparse
import ast
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
TABLE: Final = "[tool.renderonline.house]"


class WrongTable(Exception):
    """The table in `pyproject.toml` has a key or names a room that means nothing, or imports form a circle."""


@dataclass(frozen=True)
class Module:
    """A module of `src`: its dotted name (that of a package ends in `.__init__`) and its text."""

    name: str
    text: str

    @property
    def lines(self) -> int:
        return self.text.count("\n")

    @cached_property
    def _nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.text, self.name)))

    @property
    def classes(self) -> list[str]:
        return [node.name for node in self._nodes if isinstance(node, ast.ClassDef)]

    @property
    def imported(self) -> set[tuple[str, str]]:
        """What is imported at any depth, as (module, name in it); the name is empty for `import module`."""
        found = set[tuple[str, str]]()
        for node in self._nodes:
            if isinstance(node, ast.Import):
                found |= {(alias.name, "") for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found |= {(node.module, alias.name) for alias in node.names}
        return found


@dataclass(frozen=True)
class Figure:
    """One count, what is behind it, and the most that it may be (None: anything)."""

    label: str
    value: int
    limit: int | None = None
    names: Sequence[str] = ()

    @property
    def exceeded(self) -> bool:
        return self.limit is not None and self.value > self.limit

    def __str__(self) -> str:
        limit = "" if self.limit is None else f"at most {self.limit:,}"
        return f"{self.label:<28}{self.value:>12,}  {limit:<20}{'EXCEEDED' if self.exceeded else ''}".rstrip()


class House:
    """The modules below a directory `src`, by name, and which of them each imports."""

    def __init__(self, src: Path) -> None:
        names = {path: ".".join(path.relative_to(src).with_suffix("").parts) for path in sorted(src.rglob("*.py"))}
        self.modules = {name: Module(name, path.read_text(encoding="utf-8")) for path, name in names.items()}
        self.imports = {name: self._imports(module) - {name} for name, module in self.modules.items()}

    def _imports(self, module: Module) -> set[str]:
        """A name may be a module, a package, or something in the module or package that is named before it."""
        wanted = [(f"{source}.{name}", source) for source, name in module.imported]
        known = ([one for place in places for one in (place, f"{place}.__init__")] for places in wanted)
        return {found for places in known if (found := next(filter(self.modules.__contains__, places), ""))}

    def repeated_modules(self, allowed: Iterable[str]) -> list[str]:
        return self._repeated(((name.rpartition(".")[2], name) for name in self.modules), allowed)

    def repeated_classes(self, allowed: Iterable[str]) -> list[str]:
        return self._repeated(((one, name) for name, module in self.modules.items() for one in module.classes), allowed)

    @staticmethod
    def _repeated(named: Iterable[tuple[str, str]], allowed: Iterable[str]) -> list[str]:
        places: dict[str, list[str]] = {}
        for name, place in named:
            places.setdefault(name, []).append(place)
        left = sorted(name for name, where in places.items() if len(where) > 1 and name not in set(allowed))
        return [f"{name}: {', '.join(places[name])}" for name in left]

    def fitting(self, pattern: str) -> set[str]:
        """The modules that fit a pattern; a package by its name or as `package.__init__`."""
        return {
            name
            for name in self.modules
            if fnmatchcase(name, pattern) or fnmatchcase(name.removesuffix(".__init__"), pattern)
        }

    def wing_imports(self, main_floor: set[str]) -> dict[str, list[str]]:
        """What modules of the main floor import that is not on it, by the module."""
        leaving = {name: sorted(self.imports[name] - main_floor) for name in sorted(main_floor)}
        return {name: wings for name, wings in leaving.items() if wings}

    def longest_chain(self, room: str) -> list[str]:
        """The modules of the longest chain of imports inside a package, the lowest first. `WrongTable` when there is no
        such package or its imports form a circle."""
        inside = {name for name in self.modules if name.startswith(f"{room}.")}
        if not inside:
            raise WrongTable(f"{TABLE} floors: there is no package {room!r}.")
        below = {name: self.imports[name] & inside for name in inside}
        chains: dict[str, list[str]] = {}
        try:
            for name in TopologicalSorter(below).static_order():
                longest = max((chains[other] for other in sorted(below[name])), key=len, default=[])
                chains[name] = [*longest, name]
        except CycleError as error:
            raise WrongTable(f"Imports form a circle: {' -> '.join(error.args[1])}") from None
        return max((chains[name] for name in sorted(chains)), key=len)


def figures(house: House, table: Mapping[str, Any]) -> list[Figure]:
    """Every figure with its limit. `WrongTable` names a key that is none."""
    left = dict(table)
    patterns, allowed, floors = left.pop("main_floor", []), left.pop("allowed_twice", []), left.pop("floors", {})
    modules = house.modules.values()
    longest = max(modules, key=lambda module: module.lines)
    fitting = {pattern: house.fitting(pattern) for pattern in patterns}
    main_floor = set[str]().union(*fitting.values())
    unused = [pattern for pattern, names in fitting.items() if not names]
    leaving = house.wing_imports(main_floor)
    wings = [f"{name} imports {', '.join(others)}" for name, others in leaving.items()]
    modules_twice, classes_twice = house.repeated_modules(allowed), house.repeated_classes(allowed)
    found = [
        Figure("lines", sum(module.lines for module in modules), left.pop("most_lines", None)),
        Figure("characters", sum(len(module.text) for module in modules), left.pop("most_characters", None)),
        Figure("files", len(modules), left.pop("most_files", None)),
        Figure("longest file", longest.lines, left.pop("longest_file", None), [longest.name]),
        Figure("module names used twice", len(modules_twice), left.pop("repeated_modules", None), modules_twice),
        Figure("class names used twice", len(classes_twice), left.pop("repeated_classes", None), classes_twice),
        Figure("files of the main floor", len(main_floor), None, sorted(main_floor)),
        Figure(
            "lines of the main floor",
            sum(house.modules[name].lines for name in main_floor),
            left.pop("main_floor_lines", None),
        ),
        Figure("patterns that fit no module", len(unused), 0, unused),
        Figure("wing imports", sum(map(len, leaving.values())), left.pop("wing_imports", None), wings),
    ]
    for room, most in floors.items():
        chain = house.longest_chain(room)
        found.append(Figure(f"floors of {room}", len(chain), most, chain))
    if left:
        raise WrongTable(f"{TABLE} has no key {sorted(left)[0]!r}.")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.house", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="a checkout; this one unless another is named")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a limit is exceeded")
    parser.add_argument("--names", action="store_true", help="print what is behind each figure")
    options = parser.parse_args(arguments)
    project = tomllib.loads((options.root / "pyproject.toml").read_text(encoding="utf-8"))
    table = project.get("tool", {}).get("renderonline", {}).get("house", {})
    try:
        found = figures(House(options.root / "src"), table)
    except WrongTable as error:
        print(error, file=sys.stderr)
        return 2
    for figure in found:
        print(figure)
        if options.names or (options.check and figure.exceeded):
            print(*(f"    {name}" for name in figure.names), sep="\n", end="\n" if figure.names else "")
    return int(options.check and any(figure.exceeded for figure in found))


if __name__ == "__main__":
    sys.exit(main())
