"""Which renderers an engine's program has (Blender: Cycles, EEVEE, those of add-ons): asked once and remembered.

A scene that wants another one can't be rendered there. Blocking.
"""

import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Final

from renderonline.engines.children import ask
from renderonline.engines.definition import EngineDefinition

MOST: Final = 64
"""Renderers of one program."""
_FILE: Final = "renderers.json"


def renderers_of(
    prefix: Sequence[str], version: str, definition: EngineDefinition, time_s: float, directory: Path | None
) -> tuple[str, ...]:
    """The renderers that the program lists, sorted; () when it lists none, or nobody knows how to ask. The answer is
    kept in `directory` for as long as the program stays what it is."""
    if not definition.renderers_arguments:
        return ()
    key = _key(prefix, version, definition)
    known = _known(directory)
    if (told := known.get(key)) is not None:
        return tuple(told)
    answer = ask([*prefix, *definition.renderers_arguments], time_s)
    named = _listed(answer.out, definition.renderers_after) if answer.code == 0 else ()
    found = sorted(set(named))[:MOST]
    if found and directory is not None:
        _keep(directory, {**known, key: found})
    return tuple(found)


def _listed(lines: Sequence[str], title: str) -> Iterator[str]:
    """The names below the list's title."""
    below = dropwhile(lambda line: line != title, lines)
    next(below, None)
    return takewhile(lambda line: re.fullmatch(r"\w{1,64}", line, re.ASCII) is not None, below)


def _key(prefix: Sequence[str], version: str, definition: EngineDefinition) -> str:
    with suppress(OSError):
        state = os.stat(prefix[0])
        version = f"{version} {state.st_size} {state.st_mtime_ns}"
    return sha256("\0".join((*prefix, version, *definition.renderers_arguments)).encode(errors="replace")).hexdigest()


def _known(directory: Path | None) -> dict[str, list[str]]:
    with suppress(OSError, ValueError, TypeError, AttributeError):
        if directory is not None:
            known = json.loads((directory / _FILE).read_text(encoding="utf-8"))
            return {str(key): [str(name) for name in names] for key, names in known.items()}
    return {}


def _keep(directory: Path, known: dict[str, list[str]]) -> None:
    """Without it the program is only asked again."""
    aside = directory / f".{_FILE}.{secrets.token_hex(8)}"
    with suppress(OSError):
        aside.write_text(json.dumps(known), encoding="utf-8")
        aside.replace(directory / _FILE)
