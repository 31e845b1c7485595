"""What the scene of a submission says of itself: read in a child (R13), and compared with what the machines have."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from renderonline.engines.commands import argtypes, values_of_scene
from renderonline.engines.definition import FACT_READERS, EngineDefinition
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.needs import NOTHING, Ability, Needs
from renderonline.renderapi.machines import Machine
from renderonline.renderapi.task_requests import Prepared, prepare
from renderonline.storage.confined import Confined

MEMORY_BYTES: Final = 1 << 30


class SceneFacts:
    """Reads scenes, one at a time of each kind. `machines`: all of the farm."""

    def __init__(self, machines: Callable[[], Iterable[Machine]]) -> None:
        self._machines = machines
        self._readers = {
            name: (asyncio.Lock(), Confined(called, memory_bytes=MEMORY_BYTES)) for name, called in FACT_READERS.items()
        }

    async def close(self) -> None:
        for _, child in self._readers.values():
            await asyncio.to_thread(child.close)

    async def read(self, reader: str, scene: str, files: Callable[[], Mapping[str, str]]) -> dict[str, Any]:
        """The facts of a scene among `files` (name -> path, "" for one that is on its way), and `missing_inputs`: names
        of files that it needs besides. {} when nobody reads such scenes; `InvalidRequest` (`broken_scene`) when it is
        not whole."""
        if not reader:
            return {}
        turn, child = self._readers[reader]
        try:
            async with turn:  # here, and not in a thread that others need
                told = await asyncio.to_thread(lambda: child.call(scene, files()))
        except TimeoutError:
            return {"warnings": [f"it could not be read within {child.time_s:g} s"]}
        except EOFError:
            told = {"broken": "its content can't be read"}
        if "broken" in told:
            raise InvalidRequest(f"{scene} can't be rendered: {told['broken']}.", code="broken_scene")
        return {**told["facts"], "missing_inputs": told["missing"]}

    async def applied(self, prepared: Prepared, files: Callable[[], Mapping[str, str]]) -> Prepared:
        """A request with what its scene says of itself as defaults, for machines that can open it. `InvalidRequest`
        when the scene is broken, or newer than what any machine has (`scene_too_new`)."""
        definition, scene = prepared.definition, prepared.scene
        if definition is None or not (facts := await self.read(definition.facts, scene, files)):
            return prepared
        needs = self._needs(definition, scene, facts.get("version", ""))
        known = {one.argtype_id: one for one in argtypes(definition)}
        told = values_of_scene(definition, next(iter(facts.get("scenes", ())), {}))
        given = {name: value for name, value in prepared.request.arguments.items() if name in known}
        request = replace(prepared.request, arguments={**told, **given})
        found = await asyncio.to_thread(prepare, request, prepared.engine, definition, known, scene)
        return replace(found, needs=prepared.needs.joined(needs), facts=facts)

    def _needs(self, definition: EngineDefinition, scene: str, version: str) -> Needs:
        """An engine that is not older than the scene; nothing where machines don't say what they have."""
        name, needs = definition.name.casefold(), Needs(engine_version=version)
        offered = {there for one in self._machines() if (there := _offered(one).get(name)) is not None}
        if not (version and offered and all(offered)):
            return NOTHING
        if all(Ability(0, ((name, one),)).lacks(name, needs) for one in offered):
            message = (
                f"{scene} was saved by {definition.label} {version}; the machines have {', '.join(sorted(offered))}."
            )
            raise InvalidRequest(f"{message} Save it with such a version, or update a machine.", code="scene_too_new")
        return needs


def _offered(machine: Machine) -> Mapping[str, str]:
    """Its engines (case-folded) and their versions; of one that is away what it said last."""
    said = [one for one in machine.facts.get("engines", ()) if isinstance(one, Mapping)]
    offers = machine.offers or {str(one.get("name")): str(one.get("version", "")) for one in said}
    return {name.casefold(): version for name, version in offers.items()}
