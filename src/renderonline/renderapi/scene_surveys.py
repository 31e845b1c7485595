"""Who is next, where many ask for what only a few may do at once: users in turn, one thing of each at a time
(R14 Authority first).

Slow looks at what users sent: in turn, a bounded number at once, ended when who asked has gone
(R14 Authority first).

What the scene of a submission says of itself: read in a child (R13 Hostile content), and compared with what the
machines have.
"""

import asyncio
import contextlib
import os
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import orjson
from blake3 import blake3
from starlette.requests import ClientDisconnect, Request

from renderonline.engines.command_lines import argtypes, scene_asked_for, values_of_scene, without_frames
from renderonline.engines.definition import FACT_READERS, EngineDefinition
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.machines import with_device
from renderonline.farm.needs import NOTHING, Ability, Needs, is_renderer
from renderonline.farm.settling import NO_RENDER_ENGINE
from renderonline.renderapi.connected_machines import Machine, offered, renderers_said
from renderonline.renderapi.memory import heavy
from renderonline.renderapi.requests import Prepared, prepare
from renderonline.sandbox.box import Found
from renderonline.serving.web import step_back
from renderonline.storage.confined import Confined

Asker = TypeVar("Asker")


class Turns(Generic[Asker]):
    """Askers of users. `at_once`: how many have their turn at the same time, all users together.

    A user who has just had a turn comes after all others who wait; within a user the oldest asker is first.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._waiting: dict[int, deque[Asker]] = {}
        self._having: set[int] = set()

    def ask(self, user_id: int, asker: Asker) -> None:
        """Wait for a turn."""
        self._waiting.setdefault(user_id, deque()).append(asker)

    def give_up(self, user_id: int, asker: Asker) -> None:
        """Wait no more; nothing happens when the turn has come already."""
        askers = self._waiting.get(user_id, deque())
        if asker in askers:
            askers.remove(asker)
        if not askers:
            self._waiting.pop(user_id, None)

    def next(self) -> tuple[int, Asker] | None:
        """The user and the asker whose turn begins now; None when nobody's does."""
        if len(self._having) >= self._at_once:
            return None
        user_id = next((one for one in self._waiting if one not in self._having), None)
        if user_id is None:
            return None
        askers = self._waiting.pop(user_id)
        asker = askers.popleft()
        if askers:
            self._waiting[user_id] = askers  # behind all others
        self._having.add(user_id)
        return user_id, asker

    def end(self, user_id: int) -> None:
        """The user's turn is over."""
        self._having.discard(user_id)


AT_ONCE: Final = 4
"""Of one kind. With fewer, a few users with large scenes would be all that goes on."""

T = TypeVar("T")
Gone = Callable[[], Awaitable[object]]
"""Comes back when who asked has gone."""


def client_of(request: Request) -> Gone:
    """The client of a request whose body was read, or that has none."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return gone


class Looks:
    """One kind of slow look. Each runs in a thread of its own, so that short work never stands behind it. `modest`:
    those who wait for something else come first."""

    def __init__(self, kind: str, at_once: int = AT_ONCE, *, modest: bool = False) -> None:
        self._turns = Turns[asyncio.Future[None]](at_once)
        self._threads = ThreadPoolExecutor(at_once, kind, step_back if modest else None)

    async def look(self, user_id: int, work: Callable[[threading.Event], T], gone: Gone) -> T:
        """What `work` returns, called in the user's turn. When the asker has gone (`ClientDisconnect`), or the caller
        is canceled, `work` is not called any more, or its event is set: then it must end soon."""
        return await while_there(self._look(user_id, work), gone)

    async def _look(self, user_id: int, work: Callable[[threading.Event], T]) -> T:
        stopped = threading.Event()
        async with self.turn(user_id):
            running = asyncio.get_running_loop().run_in_executor(self._threads, work, stopped)
            try:
                return await asyncio.shield(running)
            finally:  # the turn ends when the thread does
                stopped.set()
                await asyncio.wait({running})

    @contextlib.asynccontextmanager
    async def turn(self, user_id: int) -> AsyncIterator[None]:
        """The user's turn, for work that is done elsewhere."""
        asker = asyncio.get_running_loop().create_future()
        self._turns.ask(user_id, asker)
        self._begin()
        try:
            await asker
        except asyncio.CancelledError:
            if asker.cancelled():
                self._turns.give_up(user_id, asker)
            else:  # the turn came at the same moment
                self._end(user_id)
            raise
        try:
            yield
        finally:
            self._end(user_id)

    def _begin(self) -> None:
        while (found := self._turns.next()) is not None:
            user_id, asker = found
            if asker.done():
                self._turns.end(user_id)
            else:
                asker.set_result(None)

    def _end(self, user_id: int) -> None:
        self._turns.end(user_id)
        self._begin()


async def while_there(work: Coroutine[Any, Any, T], gone: Gone) -> T:
    """What `work` returns; it is canceled when the asker goes first, and `ClientDisconnect` raised."""
    working = asyncio.create_task(work)
    leaving = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


MEMORY_BYTES: Final = 1 << 30
TIME_S: Final = 30.0
"""For one scene (R13 Hostile content)."""
REMEMBERED_BYTES: Final = 16 << 20
"""Of answers about scenes; the oldest go first."""

Files = Callable[[], Mapping[str, tuple[str, str]]]
"""Name -> path and a text that changes with the content; two times "" for a file that is on its way. Blocks."""


class SceneFacts:
    """Reads scenes, in turn. `machines`: all of the farm; `found`: the box for what reads them; `roots`: where users'
    files lie."""

    def __init__(
        self,
        machines: Callable[[], Iterable[Machine]],
        found: Callable[[], Found],
        roots: Callable[[], Awaitable[Collection[Path]]],
    ) -> None:
        self._machines, self._roots = machines, roots
        self._looks = Looks("facts")
        self._readers = {name: Readers(called, found) for name, called in FACT_READERS.items()}
        self._known = Answers()

    async def close(self) -> None:
        for readers in self._readers.values():
            await asyncio.to_thread(readers.close)

    async def read(self, user_id: int, reader: str, scene: str, files: Files, gone: Gone) -> dict[str, Any]:
        """The facts of a scene among `files`, and `missing_inputs`: names of files that it needs besides. {} when
        nobody reads such scenes; `InvalidRequest` (`broken_scene`) when it is not whole; `ClientDisconnect`."""
        if not reader:
            return {}
        roots = tuple(sorted(map(str, await self._roots())))
        within = tuple(f"{root}/" for root in roots)

        def look(stopped: threading.Event) -> dict[str, Any]:
            found = files()
            key = _key(user_id, reader, scene, found)
            told = self._known.get(key)
            if told is None:
                paths = {name: path for name, (path, _) in found.items()}
                # Of an engine that had another download path: the directories themselves.
                beside = {os.path.dirname(path) for path in paths.values() if path and not path.startswith(within)}
                told = self._readers[reader].read(scene, paths, (*roots, *sorted(beside)), stopped)
                if "unread" not in told:
                    self._known.put(key, told)
            return told

        told = await self._looks.look(user_id, look, gone)
        if "broken" in told:
            raise InvalidRequest(f"{scene} can't be rendered: {told['broken']}.", code="broken_scene")
        if "unread" in told:
            return {"warnings": [f"not looked at: frames of {scene} and files that it needs ({told['unread']})"]}
        return {**told["facts"], "missing_inputs": told["missing"]}

    async def applied(self, user_id: int, prepared: Prepared, files: Files, gone: Gone) -> Prepared:
        """A request with what its scene says of itself as defaults, for machines that can open it. `InvalidRequest`
        when the scene is broken, or newer than what any machine has (`scene_too_new`)."""
        definition, scene = prepared.definition, prepared.scene
        if definition is None:
            return prepared
        facts = await self.read(user_id, definition.facts, scene, files, gone)
        if not facts:
            return prepared
        needs = self._needs(definition, scene, facts.get("version", ""))
        _check_frames(prepared, facts)
        known = {one.argtype_id: one for one in argtypes(definition)}
        chosen = scene_asked_for(facts, prepared.request.arguments)
        if "unbaked" in chosen:
            facts = {**facts, "unbaked": chosen["unbaked"]}
        told = values_of_scene(definition, chosen)
        if prepared.request.frames:
            told = without_frames(definition, told)
        given = {name: value for name, value in prepared.request.arguments.items() if name in known}
        request = replace(prepared.request, arguments={**told, **given})
        found = await asyncio.to_thread(heavy(prepare), request, prepared.engine, definition, known, scene)
        renderer = found.values.get("engine") or str(chosen.get("engine", ""))
        renders, doubt = self._renders(definition, renderer)
        if doubt and request.exact:
            raise InvalidRequest(f"{scene} can't be rendered: {doubt}.", code=NO_RENDER_ENGINE)
        if doubt:  # clients of v1 are not refused for it
            facts = {**facts, "warnings": [*facts.get("warnings", ()), doubt]}
        needs = prepared.needs.joined(needs).joined(renders)
        needs = with_device(needs, found.values, chosen)
        return replace(found, needs=needs, facts=facts, default_names=prepared.default_names)

    def _needs(self, definition: EngineDefinition, scene: str, version: str) -> Needs:
        """An engine that is not older than the scene; nothing where machines don't say what they have."""
        name, needs = definition.name.casefold(), Needs(engine_version=version)
        versions = {there for one in self._machines() if (there := offered(one).get(name)) is not None}
        if not (version and versions and all(versions)):
            return NOTHING
        if all(Ability(0, ((name, one),)).lacks(name, needs) for one in versions):
            message = (
                f"{scene} was saved by {definition.label} {version}; the machines have {', '.join(sorted(versions))}."
            )
            raise InvalidRequest(f"{message} Save it with such a version, or update a machine.", code="scene_too_new")
        return needs

    def _renders(self, definition: EngineDefinition, renderer: str) -> tuple[Needs, str]:
        """What a machine needs to render with what the scene names; or why none can. Blender's own renderers are in
        every Blender, under names that changed; a machine that does not say what it has may have any."""
        if renderer.startswith("BLENDER_") or not is_renderer(renderer):
            return NOTHING, ""
        name = definition.name.casefold()
        said = [renderers_said(one).get(name, ()) for one in self._machines() if name in offered(one)]
        if not said or any(renderer in found or not found for found in said):
            return Needs(renderer=renderer), ""
        has = ", ".join(sorted({one for found in said for one in found}))
        advice = "set up a Blender that has it, or choose another engine: --arg engine=CYCLES"
        return NOTHING, f"no machine's {definition.label} has the render engine {renderer}, only {has}: {advice}"


def _check_frames(prepared: Prepared, facts: Mapping[str, Any]) -> None:
    """`InvalidRequest` (`frames_unknown`) when the scene was to say which frames and could not be read: the engine's
    own default would be a few of them, called a success (R16 No false success). Who speaks v1 names them, or means the
    default."""
    request, definition = prepared.request, prepared.definition
    asked = {one.id for one in definition.arguments if one.fact in ("start", "end")} if definition else set()
    if request.exact and "scenes" not in facts and not request.frames and asked - set(request.arguments):
        raise InvalidRequest(
            f"Which frames? {prepared.scene} could not be read for them: name the frames, such as 1-250.",
            code="frames_unknown",
        )


class Readers:
    """The children that read scenes of one kind; one more than are at work is ready. Everything blocks."""

    def __init__(self, called: str, found: Callable[[], Found]) -> None:
        self._called, self._found = called, found
        self._ready: list[Confined] = []
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for child in self._ready:
                child.close()

    def read(
        self, scene: str, files: Mapping[str, str], roots: Sequence[str], stopped: threading.Event
    ) -> dict[str, Any]:
        """What a child says of a scene: `facts` and `missing`, why it is `broken`, or why it was `unread`. In its
        box it reads what lies in `roots`."""
        child = self._take(roots)
        try:
            told: dict[str, Any] = child.call(scene, files, 0, stopped=stopped)
            return told
        except TimeoutError:
            return {"unread": f"it could not be read within {child.time_s:g} s"}
        except EOFError:
            return {"broken": "its content can't be read"}
        finally:
            self._give_back(child)

    def _take(self, roots: Sequence[str]) -> Confined:
        with self._lock:
            child = self._ready.pop(0) if self._ready else self._new(roots)
            child.open(*roots)
            if not self._ready:
                self._ready.append(self._new(roots))
                self._ready[0].start()
            return child

    def _new(self, roots: Sequence[str]) -> Confined:
        found = self._found()
        return Confined(self._called, time_s=TIME_S, memory_bytes=MEMORY_BYTES, found=found, read=roots)

    def _give_back(self, child: Confined) -> None:
        """One that was ended is started again: the next who asks need not wait for it."""
        with self._lock:
            if self._closed:
                child.close()
                return
            self._ready.append(child)
        with contextlib.suppress(OSError):
            child.start()


class Answers:
    """What was said of scenes lately, by what they and the files beside them are. Safe in any thread."""

    def __init__(self) -> None:
        self._known = OrderedDict[bytes, bytes]()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: bytes) -> dict[str, Any] | None:
        with self._lock:
            found = self._known.get(key)
            if found is None:
                return None
            self._known.move_to_end(key)
        told: dict[str, Any] = orjson.loads(found)
        return told

    def put(self, key: bytes, told: dict[str, Any]) -> None:
        written = orjson.dumps(told)
        with self._lock:
            self._bytes += len(written) - len(self._known.pop(key, b""))
            self._known[key] = written
            while self._bytes > REMEMBERED_BYTES:
                self._bytes -= len(self._known.popitem(last=False)[1])


def _key(user_id: int, reader: str, scene: str, files: Mapping[str, tuple[str, str]]) -> bytes:
    """Of one user: nobody learns what others have."""
    states = (word for name, (_, state) in files.items() for word in (name, state))
    return blake3("\0".join((str(user_id), reader, scene, *states)).encode(errors="surrogatepass")).digest()
