"""Orders: from a leased chunk to what its machine runs, and the files that it must write.

The directories of attempts: known while a machine may still write there, removed when nobody needs them.
"""

import asyncio
import contextlib
import os
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

import structlog
from msgspec.structs import replace

from renderonline.database.door import Database
from renderonline.database.queue_rows import (
    AttemptFacts,
    TaskFacts,
    download_paths,
    load_attempt,
    load_facts,
    load_owners,
)
from renderonline.engines.command_lines import Command, build, frame_of_name, frames_pattern, reading_of
from renderonline.engines.definition import FILM_READING, EngineDefinition, SceneCheck, parse_definition
from renderonline.farm.arguments import OUTPUT_DIRECTORY, placeholders, split, strip_program
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.frames import FrameRange, is_among, parse_frames
from renderonline.farm.machines import DEVICE
from renderonline.farm.needs import Needs
from renderonline.farm.result_names import FILM_ENGINE, FORMATS, NOTHING_MORE, Film
from renderonline.protocol.link import Assign, ExpectedOutput, Limits, to_wire
from renderonline.storage.landing import attempts_on_disk, kept_mark, remove_attempt
from renderonline.storage.names import task_directory

_KEPT: Final = 512
definition_of = lru_cache(_KEPT)(parse_definition)


@dataclass(frozen=True, slots=True)
class Order:
    """An attempt's order. `wanted`: the files that the whole chunk needs (name -> frame; empty: the engine names
    none), also when only some are still to be rendered. `uses_directory`: the command names the attempt's directory,
    so that what appears in it are results. `of_others`: which names are for other chunks' results."""

    assign: Assign
    wanted: Mapping[str, int | None]
    uses_directory: bool
    of_others: Callable[[str], bool] = lambda _name: False

    def takes(self, name: str) -> bool:
        """Whether a file of this name, relative to the attempt's directory, can be one of its results."""
        if not self.wanted or name in self.wanted:
            return True
        return self.assign.more.takes(name) and not self.of_others(name.partition("/")[0])


class _Known:
    """What does not change between the orders of one task."""

    def __init__(self, facts: TaskFacts) -> None:
        self.facts = facts
        self.definition = definition = definition_of(facts.definition) if facts.definition else None
        names = (facts.engine, *(definition.executables if definition else ()))
        self.words = strip_program(split(facts.arguments) if facts.template is None else facts.template, names)
        # Arguments that the definition got since the submission have their default.
        arguments = definition.arguments if definition else ()
        defaults = {one.id: one.default for one in arguments if one.default is not None}
        self.values = {**defaults, **(facts.values or {})}
        self.frames = parse_frames(facts.frames) if facts.frames else ()
        self._span = (min(self.frames), max(self.frames)) if self.frames else ()
        self.uses_directory = facts.template is not None and OUTPUT_DIRECTORY in placeholders(self.words)
        self._readings: dict[bool, Mapping[str, Any]] = {}
        self.root = str(task_directory(facts.scene, facts.file_name))
        self.results = os.path.join(self.root, facts.results_in) if facts.results_in else self.root
        self.pattern = frames_pattern(definition, self.values, self.frames) if definition else ""
        self._is_frame = is_among(facts.frames) if facts.frames else lambda _frame: False

    def expects(self, name: str) -> bool:
        """Whether a file of this name is a frame of the task, or is called as a film of it is."""
        films = (Film(kind).file_name(self.facts.file_name) for kind in FORMATS)
        return self._is_frame(frame_of_name(self.pattern, name)) or name in films

    def command(self, frames: FrameRange | None, directory: str) -> Command:
        if self.facts.template is None:  # a render of the existing system: its arguments are complete
            return Command(self.words)
        return build(
            self.definition,
            self.words,
            self.values,
            chunk=frames,
            task_frames=self.frames if frames is None else self._span,
            scene=self.facts.scene,
            output_directory=directory,
        )

    def reading(self, *, film: bool) -> Mapping[str, Any]:
        if film not in self._readings:
            definition, strict = self.definition, bool(self.facts.strict)
            rules = FILM_READING if film else definition and reading_of(definition, self.values, strict=strict)
            self._readings[film] = to_wire(rules) if rules else {}
        return self._readings[film]

    def film(self) -> Command:
        """The film of what has landed; `InvalidRequest` when the names of the frames are not known."""
        film = Film.parse(self.facts.film)
        if not self.pattern:
            raise InvalidRequest(f"Nobody knows which files of engine {self.facts.engine} are frames.")
        name = film.file_name(self.facts.file_name)
        words = (self.results, self.pattern, self.facts.frames, str(film), name)
        return Command(words, (ExpectedOutput(name),))


class Orders:
    """Writes orders. Keeps what it learned about the latest tasks."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tasks: OrderedDict[int, _Known] = OrderedDict()
        self._marks: dict[str, tuple[str, str]] = {}

    def knows(self, task_id: int) -> bool:
        return task_id in self._tasks

    def takes_steps(self, task_id: int) -> bool:
        """Whether the task's engine is known to take a range with a step."""
        known = self._tasks.get(task_id)
        frames = known.definition.frames if known is not None and known.definition is not None else None
        return frames is not None and bool(frames.step)

    def forget(self, task_id: int) -> None:
        """The task ended or changed."""
        self._tasks.pop(task_id, None)

    def learn(self, facts: TaskFacts) -> None:
        """Take a task's facts; `InvalidRequest` when its engine's definition or frames can't be understood."""
        self._tasks[facts.task_id] = _Known(facts)
        if len(self._tasks) > _KEPT:
            self._tasks.popitem(last=False)

    async def of_attempt(self, attempt_id: int, needs: Needs | None = None) -> Order | None:
        """The order of an attempt that was leased before, also of one that is over; None when it or its task is gone.
        `needs`: what it takes of its machine. `InvalidRequest` when it can't be written any more."""
        attempt = await self._database.read(partial(load_attempt, attempt_id=attempt_id))
        if attempt is None:
            return None
        attempt.needs = needs or attempt.needs
        return self.write(attempt) if await self._learned(attempt) else None

    async def of_check(self, attempt: AttemptFacts, check: SceneCheck) -> tuple[Assign, TaskFacts] | None:
        """What tells a machine to look at a task's scene (`attempt` has no row), and the task's facts; None when the
        task is gone. `InvalidRequest` when it can't be written."""
        if not await self._learned(attempt):
            return None
        if (known := self._tasks.get(attempt.task_id)) is None:
            return None  # it ended meanwhile
        if known.frames:
            attempt.frames = FrameRange(known.frames[0], known.frames[0])
        assign = self.write(attempt).assign
        limits = replace(assign.limits, time_s=check.time_s)
        environment = {**assign.environment, **check.environment}
        looking = replace(assign, expected=(), more=NOTHING_MORE, environment=environment, limits=limits)
        return looking, known.facts

    async def _learned(self, attempt: AttemptFacts) -> bool:
        """Have ready what the order of an attempt needs; False when its task is gone."""
        if not self.knows(attempt.task_id):
            facts = await self._database.read(partial(load_facts, task_ids=(attempt.task_id,)))
            if attempt.task_id not in facts:
                return False
            self.learn(facts[attempt.task_id])
        await self.see_mark(attempt.directory)
        return True

    async def see_mark(self, directory: str) -> None:
        """Have the mark ready by which a machine knows that it shares the place of this attempt's directory."""
        place = _download_path(directory)
        if place not in self._marks:
            with contextlib.suppress(OSError):  # then no machine finds one, and each works in a directory of its own
                self._marks[place] = await asyncio.to_thread(kept_mark, place)

    def write(self, attempt: AttemptFacts, missing: FrameRange | None = None) -> Order:
        """The order for an attempt at a task that was learned, of which perhaps only some frames are `missing`.
        `InvalidRequest` when the command can't be written."""
        known = self._tasks[attempt.task_id]
        self._tasks.move_to_end(attempt.task_id)
        definition = None if attempt.film else known.definition
        command = whole = known.film() if attempt.film else known.command(attempt.frames, attempt.directory)
        if missing is not None:
            command = known.command(missing, attempt.directory)
        # A command of the existing system that does not name the attempt's directory writes beside the scene.
        beside = () if known.uses_directory or attempt.film or known.definition is not None else (known.root,)
        place = _download_path(attempt.directory)
        mark, token = self._marks.get(place, (place, ""))
        assign = Assign(
            attempt=attempt.attempt_id,
            token=attempt.token,
            task=attempt.task_id,
            chunk=attempt.chunk_id,
            engine=FILM_ENGINE if attempt.film else known.facts.engine,
            argv=command.argv,
            directory=attempt.directory,
            inputs=() if attempt.film else (known.facts.scene,),
            expected=command.expected,
            frames=command.frames,
            environment=dict(command.environment),
            limits=limits_of(definition, len(command.frames)) if definition else Limits(),
            reading=known.reading(film=attempt.film),
            root=known.results if attempt.film else known.root,
            mark=mark,
            mark_token=token,
            network=definition is not None and definition.network,
            ascii_paths=definition is not None and definition.ascii_paths,
            sandbox_read=definition.sandbox_read if definition else (),
            sandbox_write=(*beside, *(definition.sandbox_write if definition else ())),
            more=definition.outputs.more if definition and definition.outputs else NOTHING_MORE,
            cards=_cards(attempt, known.definition),
            card_memory_mib=attempt.needs.gpu_memory_mib,
            draws=attempt.needs.draws and not attempt.film,
        )
        return Order(assign, {one.name: one.frame for one in whole.expected}, known.uses_directory, known.expects)


def _cards(attempt: AttemptFacts, definition: EngineDefinition | None) -> int:
    """How many graphics cards an attempt gets for itself; -1: it sees all of them, as of old."""
    manages = definition is not None and any(one.id == DEVICE for one in definition.arguments)
    return attempt.needs.gpus if manages or attempt.needs.gpus or attempt.film else -1


def limits_of(definition: EngineDefinition, frames: int) -> Limits:
    """The limits of an attempt at this number of frames; 0: it is not known, as in renders of the existing system."""
    times = [limit for limit in (definition.time_s, definition.frame_time_s * frames) if limit > 0]
    return Limits(min(times, default=0.0), definition.stall_s, definition.memory_mib)


def _download_path(directory: str) -> str:
    """Where an attempt's directory is (`storage.landing.attempt_directory`)."""
    return os.path.dirname(os.path.dirname(directory))


_log = structlog.get_logger(__name__)

OURS: Final = 2**31
"""Attempt ids of this farm lie at most so far from the newest; other farms began elsewhere
(R7.1 Attempt id on the wire)."""
_REMOVED_AFTER_S: Final = 0.5
"""Directories that are not needed any more are removed together after this time, in one turn of a thread."""
MOST_SENT: Final = 50_000
"""Files that an attempt sends, repeated ones too."""


class Folder(NamedTuple):
    """An attempt's directory, the machine that may write there, and the attempt's token."""

    directory: str
    machine_id: int
    token: str


class AttemptFiles:
    """Knows which directories are there. Removal happens in the background and may fail: the next start sweeps."""

    def __init__(self, database: Database, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        self._database, self._spawn = database, spawn
        self._folders: dict[int, Folder] = {}
        self._received: Counter[int] = Counter()
        self._unneeded: list[str] = []

    def know(self, attempt_id: int, folder: Folder) -> None:
        """An attempt was leased, or found live at start."""
        self._folders[attempt_id] = folder

    def token(self, attempt_id: int, machine_id: int) -> str | None:
        """The token of an attempt that is this machine's; None when that is not known here."""
        folder = self._folders.get(attempt_id)
        return folder.token if folder is not None and folder.machine_id == machine_id else None

    def receives(self, attempt_id: int, folder: Folder) -> None:
        """A machine sends a file of an attempt. `InvalidRequest` when it sends far too many."""
        self.know(attempt_id, folder)
        self._received[attempt_id] += 1
        if self._received[attempt_id] > MOST_SENT:
            raise InvalidRequest(f"An attempt sends at most {MOST_SENT} files.", code="not_wanted")

    def forget_late(self, attempt_id: int, folder: Folder) -> None:
        """A file came when its attempt had ended: its directory may be there once more."""
        if attempt_id not in self._folders:
            self.know(attempt_id, folder)
            self.remove(folder.machine_id, (attempt_id,))

    def remove(self, machine_id: int, attempt_ids: Iterable[int]) -> None:
        """These attempts of a machine are over, as it has said (or it is gone for good). Those of others stay
        (R14 Authority first)."""
        over = [number for number in attempt_ids if self.token(number, machine_id) is not None]
        if over and not self._unneeded:
            asyncio.get_running_loop().call_later(_REMOVED_AFTER_S, self._remove_unneeded)
        for number in over:
            self._unneeded.append(self._folders.pop(number).directory)
            del self._received[number]

    def _remove_unneeded(self) -> None:
        directories, self._unneeded = self._unneeded, []
        self._spawn(asyncio.to_thread(_remove_all, directories))

    def remove_unheld(self, machine_id: int, held: Collection[int]) -> None:
        """A machine says what it still has: everything else that it had is over."""
        mine = [number for number, folder in self._folders.items() if folder.machine_id == machine_id]
        self.remove(machine_id, [number for number in mine if number not in held])

    async def sweep(self, newest: int) -> None:
        """At start: remove what a stop left behind. Attempts that were lost keep theirs until their machine is back.
        `newest`: an attempt id that no attempt before this start reaches."""
        found: dict[int, str] = {}
        for path in await self._database.read(download_paths):
            found |= await asyncio.to_thread(attempts_on_disk, path)
        owners = await self._database.read(partial(load_owners, attempt_ids=sorted(found)))
        stale = []
        for attempt_id, directory in found.items():
            owner = owners.get(attempt_id)
            if owner is not None and not owner.over:
                self.know(attempt_id, Folder(directory, owner.machine_id, owner.token))
            elif owner is not None or newest - OURS < attempt_id < newest:
                stale.append(directory)
        if stale:
            _log.info("Directories of old attempts are removed", count=len(stale))
            await asyncio.to_thread(_remove_all, stale)


def _remove_all(directories: Iterable[str]) -> None:
    for directory in directories:
        if not remove_attempt(directory):
            _log.warning("An attempt's directory could not be removed", directory=directory)
