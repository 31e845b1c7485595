"""Orders: from a leased chunk to what its machine is told to run, and the files that must come of it."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from renderonline.database import Database
from renderonline.database.work_loading import TaskFacts, load_attempt, load_facts
from renderonline.engines.commands import Command, build, steps_resolved
from renderonline.engines.definition import EngineDefinition
from renderonline.engines.loading import parse_definition
from renderonline.farm.arguments import OUTPUT_DIRECTORY, placeholders, strip_program
from renderonline.farm.command_line import split
from renderonline.farm.frames import FrameRange, covering, parse_frames
from renderonline.protocol.codec import to_wire
from renderonline.protocol.link import Assign, ExpectedOutput, Limits

_KEPT: Final = 512


@dataclass(frozen=True, slots=True)
class Order:
    """An attempt's order. `wanted`: the files that the whole chunk needs (name -> frame; empty: the engine names
    none), also when only some are still to be rendered."""

    assign: Assign
    wanted: Mapping[str, int | None] = field(default_factory=dict)
    uses_directory: bool = True
    """Whether the command names the attempt's directory, so that what appears in it are results."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What does not change between the orders of one task."""

    facts: TaskFacts
    definition: EngineDefinition | None
    words: tuple[str, ...]
    values: Mapping[str, str]
    frames: tuple[int, ...]


class Orders:
    """Writes orders. Keeps what it learned about the latest tasks."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tasks: OrderedDict[int, _Known] = OrderedDict()
        self._definitions: OrderedDict[str, EngineDefinition] = OrderedDict()

    def knows(self, task_id: int) -> bool:
        """Whether the task's facts are here."""
        return task_id in self._tasks

    def forget(self, task_id: int) -> None:
        """The task ended or changed."""
        self._tasks.pop(task_id, None)

    def learn(self, facts: TaskFacts) -> None:
        """Take a task's facts; `InvalidRequest` when its engine's definition or frames can't be understood."""
        definition = self._definition(facts.definition)
        if facts.template is None:
            words = strip_program(split(facts.arguments), _names(facts, definition))
        else:
            words = strip_program(facts.template, _names(facts, definition))
        frames = parse_frames(facts.frames) if facts.frames else ()
        self._tasks[facts.task_id] = _Known(facts, definition, words, _values(facts, definition), frames)
        if len(self._tasks) > _KEPT:
            self._tasks.popitem(last=False)

    async def of_attempt(self, attempt_id: int) -> Order | None:
        """The order of an attempt that was leased before, also of one that is over; None when it or its task is gone.

        `InvalidRequest` when it can't be written any more.
        """
        attempt = await self._database.read(partial(load_attempt, attempt_id=attempt_id))
        if attempt is None:
            return None
        if not self.knows(attempt.task_id):
            facts = await self._database.read(partial(load_facts, task_ids=(attempt.task_id,)))
            if attempt.task_id not in facts:
                return None
            self.learn(facts[attempt.task_id])
        return self.write(
            attempt.task_id,
            attempt_id=attempt_id,
            token=attempt.token,
            chunk_id=attempt.chunk_id,
            frames=attempt.frames,
            directory=attempt.directory,
        )

    def write(
        self,
        task_id: int,
        *,
        attempt_id: int,
        token: str,
        chunk_id: int,
        frames: FrameRange | None,
        directory: str,
        landed: frozenset[str] = frozenset(),
    ) -> Order:
        """The order for a leased chunk of a task that was learned. Where files have landed before, only what is
        missing is rendered, if that is one range. `InvalidRequest` when the command can't be written."""
        known = self._tasks[task_id]
        self._tasks.move_to_end(task_id)
        command = whole = self._command(known, frames, directory)
        if landed and whole.expected:
            missing = self._missing(known, whole, landed)
            command = whole if missing is None else self._command(known, missing, directory)
        definition = known.definition
        assign = Assign(
            attempt=attempt_id,
            token=token,
            task=task_id,
            chunk=chunk_id,
            engine=known.facts.engine,
            argv=command.argv,
            directory=directory,
            inputs=(known.facts.scene,),
            expected=tuple(ExpectedOutput(one.name, one.frame) for one in command.expected),
            frames=command.frames,
            environment=dict(command.environment),
            limits=_limits(definition),
            reading=to_wire(definition.reading) if definition else {},
        )
        uses_directory = known.facts.template is not None and OUTPUT_DIRECTORY in placeholders(known.words)
        return Order(assign, {one.name: one.frame for one in whole.expected}, uses_directory)

    def _command(self, known: _Known, frames: FrameRange | None, directory: str) -> Command:
        if known.facts.template is None:  # a render of the existing system: its arguments are complete
            return Command(known.words)
        return build(
            known.definition,
            known.words,
            known.values,
            chunk=frames,
            task_frames=known.frames,
            scene=known.facts.scene,
            output_directory=directory,
        )

    def _missing(self, known: _Known, whole: Command, landed: frozenset[str]) -> FrameRange | None:
        missing = [one.frame for one in whole.expected if one.name not in landed]
        frames = [frame for frame in missing if frame is not None]
        if known.definition is None or not frames or len(frames) != len(missing):
            return None
        ranges = steps_resolved(known.definition, covering(frames))
        return ranges[0] if len(ranges) == 1 else None

    def _definition(self, toml: str | None) -> EngineDefinition | None:
        if not toml:
            return None
        if toml not in self._definitions:
            self._definitions[toml] = parse_definition(toml)
            if len(self._definitions) > _KEPT:
                self._definitions.popitem(last=False)
        return self._definitions[toml]


def _names(facts: TaskFacts, definition: EngineDefinition | None) -> tuple[str, ...]:
    return (facts.engine, *(definition.executables if definition else ()))


def _values(facts: TaskFacts, definition: EngineDefinition | None) -> Mapping[str, str]:
    """The submitted values; arguments that the definition got since then have their default."""
    defaults = {one.id: one.default for one in definition.arguments if one.default is not None} if definition else {}
    return {**defaults, **(facts.values or {})}


def _limits(definition: EngineDefinition | None) -> Limits:
    if definition is None:
        return Limits()
    return Limits(time_s=definition.time_s, stall_s=definition.stall_s, memory_mib=definition.memory_mib)
