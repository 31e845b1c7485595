"""What the scene of a submission says about itself.

`SceneFacts` reads scenes in child processes (R13 Hostile content), remembers what they said, and compares it with what
the machines have. `Looks` runs such slow work: users take turns, a bounded number at once, and work whose client has
disconnected is ended (R14 Authority first).
"""

import asyncio
import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

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
from renderonline.serving.bodies import disconnected
from renderonline.serving.web import step_back
from renderonline.storage.confined import Confined

T = TypeVar("T")
Gone = Callable[[], Awaitable[object]]
"""Returns when the client has disconnected."""

AT_ONCE: Final = 4
"""Pieces of work of one kind. With fewer, a few users with large scenes would keep all others waiting."""
MEMORY_BYTES: Final = 1 << 30
TIME_S: Final = 30.0
"""Memory and time for one scene (R13 Hostile content)."""
REMEMBERED_BYTES: Final = 16 << 20
"""Facts of scenes that are remembered; the oldest are forgotten first."""

Files = Callable[[], Mapping[str, tuple[str, str]]]
"""Name -> path and a text that changes with the content; both "" for a file that is not complete. Blocks."""


def client_of(request: Request) -> Gone:
    """The client of a request whose body was read, or that has none."""
    return partial(disconnected, request.receive)


class Looks:
    """One kind of slow work, `at_once` pieces of it at the same time and one of each user. It runs in threads of its
    own, so that short work never waits for it; with `modest` they have a lower priority than everything else."""

    def __init__(self, kind: str, at_once: int = AT_ONCE, *, modest: bool = False) -> None:
        self._slots = asyncio.Semaphore(at_once)
        self._users = WeakValueDictionary[int, asyncio.Lock]()
        self._threads = ThreadPoolExecutor(at_once, kind, step_back if modest else None)

    async def look(self, user_id: int, work: Callable[[threading.Event], T], gone: Gone) -> T:
        """Return what `work` returns, called in the user's turn. When the client disconnects (`ClientDisconnect`), or
        the caller is canceled, `work` is not called any more, or its event is set: then it must end soon."""
        working = asyncio.create_task(self._look(user_id, work))
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
        """The user's turn. A user who just had one comes after all other users who wait: a user asks for a slot only
        once at a time, and slots are granted in the order in which they were asked for."""
        lock = self._users.setdefault(user_id, asyncio.Lock())
        async with lock, self._slots:
            yield


class SceneFacts:
    """Reads scenes, in turn. `machines`: all of the farm; `found`: the sandbox of the child processes that read scenes;
    `roots`: the directories of users' files."""

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
        """The facts of a scene among `files`, and `missing_inputs`: names of other files that it needs. Returns {} for
        an engine whose scenes are not read. Raises `InvalidRequest` (`broken_scene`), `ClientDisconnect`."""
        if not reader:
            return {}
        roots = tuple(sorted(map(str, await self._roots())))
        within = tuple(f"{root}/" for root in roots)

        def look(stopped: threading.Event) -> dict[str, Any]:
            found = files()
            key = _key(user_id, reader, scene, found)
            answer = self._known.get(key)
            if answer is None:
                paths = {name: path for name, (path, _) in found.items()}
                # Files outside the roots, because their engine had another download path: their own directories.
                beside = {os.path.dirname(path) for path in paths.values() if path and not path.startswith(within)}
                answer = self._readers[reader].read(scene, paths, (*roots, *sorted(beside)), stopped)
                if "unread" not in answer:
                    self._known.put(key, answer)
            return answer

        answer = await self._looks.look(user_id, look, gone)
        if "broken" in answer:
            raise InvalidRequest(f"{scene} can't be rendered: {answer['broken']}.", code="broken_scene")
        if "unread" in answer:
            return {"warnings": [f"not looked at: frames of {scene} and files that it needs ({answer['unread']})"]}
        return {**answer["facts"], "missing_inputs": answer["missing"]}

    async def applied(self, user_id: int, prepared: Prepared, files: Files, gone: Gone) -> Prepared:
        """A request with the facts of its scene as defaults, for machines that can open the scene. Raises
        `InvalidRequest` when the scene is broken, or newer than the engine of every machine (`scene_too_new`)."""
        definition, scene = prepared.definition, prepared.scene
        if definition is None:
            return prepared
        facts = await self.read(user_id, definition.facts, scene, files, gone)
        if not facts:
            return prepared
        needs = self._version_needs(definition, scene, facts.get("version", ""))
        _check_frames(prepared, facts)
        known = {one.argtype_id: one for one in argtypes(definition)}
        chosen = scene_asked_for(facts, prepared.request.arguments)
        if "unbaked" in chosen:
            facts = {**facts, "unbaked": chosen["unbaked"]}
        defaults = values_of_scene(definition, chosen)
        if prepared.request.frames:
            defaults = without_frames(definition, defaults)
        requested = {name: value for name, value in prepared.request.arguments.items() if name in known}
        request = replace(prepared.request, arguments={**defaults, **requested})
        found = await asyncio.to_thread(heavy(prepare), request, prepared.engine, definition, known, scene)
        renderer = found.values.get("engine") or str(chosen.get("engine", ""))
        renderer_needs, problem = self._renderer_needs(definition, renderer)
        if problem and request.exact:
            raise InvalidRequest(f"{scene} can't be rendered: {problem}.", code=NO_RENDER_ENGINE)
        if problem:  # clients of v1 get a warning instead of an error
            facts = {**facts, "warnings": [*facts.get("warnings", ()), problem]}
        needs = prepared.needs.joined(needs).joined(renderer_needs)
        needs = with_device(needs, found.values, chosen)
        return replace(found, needs=needs, facts=facts, default_names=prepared.default_names)

    def _version_needs(self, definition: EngineDefinition, scene: str, version: str) -> Needs:
        """Needs an engine that is not older than the scene; nothing where a machine does not report its version."""
        name, needs = definition.name.casefold(), Needs(engine_version=version)
        versions = {found for machine in self._machines() if (found := offered(machine).get(name)) is not None}
        if not (version and versions and all(versions)):
            return NOTHING
        if all(Ability(0, ((name, found),)).lacks(name, needs) for found in versions):
            message = (
                f"{scene} was saved by {definition.label} {version}; the machines have {', '.join(sorted(versions))}."
            )
            raise InvalidRequest(f"{message} Save it with such a version, or update a machine.", code="scene_too_new")
        return needs

    def _renderer_needs(self, definition: EngineDefinition, renderer: str) -> tuple[Needs, str]:
        """Needs the renderer that the scene names; or says why no machine has it. Every Blender has Blender's own
        renderers, whose names changed; a machine that does not report its renderers may have any."""
        if renderer.startswith("BLENDER_") or not is_renderer(renderer):
            return NOTHING, ""
        name = definition.name.casefold()
        reported = [renderers_said(machine).get(name, ()) for machine in self._machines() if name in offered(machine)]
        if not reported or any(renderer in found or not found for found in reported):
            return Needs(renderer=renderer), ""
        has = ", ".join(sorted({found for renderers in reported for found in renderers}))
        advice = "set up a Blender that has it, or choose another engine: --arg engine=CYCLES"
        return NOTHING, f"no machine's {definition.label} has the render engine {renderer}, only {has}: {advice}"


def _check_frames(prepared: Prepared, facts: Mapping[str, Any]) -> None:
    """Raise `InvalidRequest` (`frames_unknown`) when nobody named the frames and the scene could not be read for them:
    the engine's default would render a few of them and succeed (R16 No false success). Clients of v1 name the frames,
    or want the default."""
    request, definition = prepared.request, prepared.definition
    unnamed = {one.id for one in definition.arguments if one.fact in ("start", "end")} if definition else set()
    if request.exact and "scenes" not in facts and not request.frames and unnamed - set(request.arguments):
        raise InvalidRequest(
            f"Which frames? {prepared.scene} could not be read for them: name the frames, such as 1-250.",
            code="frames_unknown",
        )


class Readers:
    """Child processes that read scenes of one kind. One more than are in use is ready. Every method blocks."""

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
        """A child's answer about a scene: `facts` and `missing`, why it is `broken`, or why it was `unread`. The
        sandbox of the child allows it to read `roots`."""
        child = self._take(roots)
        try:
            answer: dict[str, Any] = child.call(scene, files, 0, stopped=stopped)
            return answer
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
        """Make a child available again, after a restart if it was ended."""
        with self._lock:
            if self._closed:
                child.close()
                return
            self._ready.append(child)
        with contextlib.suppress(OSError):
            child.start()


class Answers:
    """Recent answers about scenes, by the content of the scene and its files. Safe in any thread."""

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
        answer: dict[str, Any] = orjson.loads(found)
        return answer

    def put(self, key: bytes, answer: dict[str, Any]) -> None:
        written = orjson.dumps(answer)
        with self._lock:
            self._bytes += len(written) - len(self._known.pop(key, b""))
            self._known[key] = written
            while self._bytes > REMEMBERED_BYTES:
                self._bytes -= len(self._known.popitem(last=False)[1])


def _key(user_id: int, reader: str, scene: str, files: Mapping[str, tuple[str, str]]) -> bytes:
    """The key of an answer. It has the user's id, so that nobody learns about the files of others."""
    states = (word for name, (_, state) in files.items() for word in (name, state))
    return blake3("\0".join((str(user_id), reader, scene, *states)).encode(errors="surrogatepass")).digest()
