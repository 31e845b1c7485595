"""Which engines a machine can run: what its settings name, what `renderonline engine install` set up, what is on PATH.

Every program found is asked for its version, once, all at the same time, and with a deadline: a program that hangs
or can't start is no engine. Blocking: call it in a thread.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Final

import structlog

from renderonline.engines.blender.install import ask, installed, launched
from renderonline.engines.definition import EngineDefinition
from renderonline.sandbox.privacy import write_private

PROBE_TIME_S: Final = 20.0
MOST_RENDERERS: Final = 64
"""Renderers of one program."""
_RENDERERS_FILE: Final = "renderers.json"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FoundEngine:
    """An engine that this machine can run: `prefix` is its program; `version` "" if unknown, `renderers` () if it does
    not say what it can render with."""

    name: str
    prefix: tuple[str, ...]
    version: str = ""
    renderers: tuple[str, ...] = ()

    @property
    def launched(self) -> tuple[str, ...]:
        """What its command lines begin with on a linked machine. On one of the existing system that is `prefix`: there
        a template may say all that the program itself understands."""
        return launched(self.prefix, self.version) if self.name == "blender" else self.prefix


def find_engines(
    configured: Mapping[str, str | Sequence[str]],
    definitions: Mapping[str, EngineDefinition],
    engines_directory: Path | None = None,
) -> tuple[FoundEngine, ...]:
    """The engines of this machine by name, sorted.

    `configured` (engine name -> path of the executable, or the words that its command lines begin with) wins, whatever
    its letter case; then what was installed under `engines_directory`; then the definitions' programs on PATH.
    An engine whose program is missing or does not answer is left out with a warning.
    """
    by_name = {name.casefold(): definition for name, definition in definitions.items()}
    candidates = _configured(configured)
    for name in by_name.keys() - candidates.keys():
        # So far there is one engine that can be installed.
        ours = installed(engines_directory / name) if engines_directory is not None and name == "blender" else None
        on_path = next(filter(None, map(shutil.which, by_name[name].executables)), None)
        if ours is not None:
            candidates[name] = FoundEngine(name, ours.prefix, ours.version)
        elif on_path is not None:
            candidates[name] = FoundEngine(name, (on_path,))
    with ThreadPoolExecutor(max_workers=8) as threads:
        probe = partial(_probe, directory=engines_directory)
        probed = threads.map(lambda found: probe(found, by_name.get(found.name)), candidates.values())
        return tuple(sorted((found for found in probed if found), key=lambda found: found.name))


def _configured(configured: Mapping[str, str | Sequence[str]]) -> dict[str, FoundEngine]:
    candidates: dict[str, FoundEngine] = {}
    for name, value in configured.items():
        words = (value,) if isinstance(value, str) else tuple(value)
        program = shutil.which(words[0]) if words else None
        if program is None:
            _log.warning("The configured program of an engine does not exist.", engine=name, program=" ".join(words))
            continue
        candidates[name.casefold()] = FoundEngine(name.casefold(), (program, *words[1:]))
    return candidates


def _probe(found: FoundEngine, definition: EngineDefinition | None, *, directory: Path | None) -> FoundEngine | None:
    """The engine with its version and renderers; None when its program can't be started, hangs or fails."""
    if definition is None:
        return found
    version = found.version
    if not version and definition.version_arguments:
        answer = ask([*found.prefix, *definition.version_arguments], PROBE_TIME_S)
        if answer.code != 0:
            _log.warning("An engine's program does not answer.", engine=found.name, program=" ".join(found.prefix))
            return None
        said = "\n".join((*answer.out, *answer.err))
        match = re.search(definition.version_regex, said) if definition.version_regex else None
        version = (match[1] if match.re.groups else match[0]) if match else ""
    renderers = renderers_of(found.prefix, version, definition, PROBE_TIME_S, directory)
    return replace(found, version=version, renderers=renderers)


def renderers_of(
    prefix: Sequence[str], version: str, definition: EngineDefinition, time_s: float, directory: Path | None
) -> tuple[str, ...]:
    """The renderers that the program lists, sorted; () when it lists none, or nobody knows how to ask. The answer is
    kept in `directory` for as long as the program stays what it is."""
    if not definition.renderers_arguments:
        return ()
    key = _key(prefix, version, definition)
    known = _known(directory)
    if (remembered := known.get(key)) is not None:
        return tuple(remembered)
    answer = ask([*prefix, *definition.renderers_arguments], time_s)
    named = _listed(answer.out, definition.renderers_after) if answer.code == 0 else ()
    found = sorted(set(named))[:MOST_RENDERERS]
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
            known = json.loads((directory / _RENDERERS_FILE).read_text(encoding="utf-8"))
            return {str(key): [str(name) for name in names] for key, names in known.items()}
    return {}


def _keep(directory: Path, known: dict[str, list[str]]) -> None:
    """Without it the program is only asked again."""
    with suppress(OSError):
        write_private(directory / _RENDERERS_FILE, json.dumps(known), durable=False)
