"""What surrounds the engine of an attempt (box, cards, environment), and the kernels that drivers compile for Cycles.

HPCServer has the kernels compiled once, with a scene of its own, only where there is a card, beside the work, at the
lowest priority and without a slot. Every attempt gets a copy, because the drivers write into their caches: no scene can
change what the next one runs. The same small render shows whether a card works at all, which no engine's output may
decide for other attempts.

Sources: CUDA C++ Programming Guide, appendix CUDA Environment Variables; OptiX Programming Guide, section Compilation
cache; oneAPI DPC++ `EnvironmentVariables.md` (`SYCL_CACHE_DIR`); compute-runtime `COMPILER_CACHE.md`
(`NEO_CACHE_DIR`). Cycles' own kernels for CUDA and HIP come with Blender.
"""

import asyncio
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from renderonline.engines.blender.install import LAUNCHER, with_launcher
from renderonline.engines.blender.launcher.task_options import FOUND_NONE, TRY_CARDS
from renderonline.farm.errors import RenderOnlineError
from renderonline.farm.machines import NO_DEVICE
from renderonline.hpcserver.boxes import Boxes, Outside, Scratch, clean_environment, in_ascii, link, unlink
from renderonline.hpcserver.card_rack import FoundCard, Rack, device_files, variables
from renderonline.hpcserver.outputs import AttemptVerdict, handed_back
from renderonline.hpcserver.processes import Processes
from renderonline.hpcserver.resources import InThread, Launch
from renderonline.protocol.link import Assign

log = structlog.get_logger(__name__)

INPUTS: Final = "RENDERONLINE_INPUTS"
"""The variable that tells an engine where its task's files lie."""
ENGINE: Final = "blender"
COMPILE_S: Final = 1800.0
TRY_S: Final = 300.0
LARGEST: Final = 2 << 30
"""Bytes of compiled kernels; larger caches are not copied for attempts."""
NICE: Final = 19
CACHES: Final[Mapping[str, str]] = {
    "CUDA_CACHE_PATH": "cuda", "OPTIX_CACHE_PATH": "optix", "SYCL_CACHE_DIR": "sycl", "NEO_CACHE_DIR": "neo",
}  # fmt: skip


class AttemptSetup:
    """The `resources.EngineSetup` of this machine. `write_log` adds lines to the attempt's log; `passed`: environment
    variables that the operator passes to engines."""

    def __init__(
        self,
        assign: Assign,
        write_log: Callable[[Sequence[str]], None],
        in_thread: InThread,
        *,
        boxes: Boxes,
        scratch: Scratch,
        rack: Rack,
        kernels: "Kernels",
        passed: Collection[str] = (),
    ) -> None:
        self._assign, self._write_log, self._in_thread, self._passed = assign, write_log, in_thread, passed
        self._boxes, self._scratch, self._rack, self._kernels = boxes, scratch, rack, kernels
        self._name = str(assign.attempt)
        self._cards: Sequence[FoundCard] | None = None
        """None: the engine may use all cards of this machine."""
        self._links: tuple[Path, Mapping[str, str]] = (Path(), {})
        self._outside = Outside()

    def make(self) -> Path:
        return self._scratch.make(self._name)

    def remove(self, *, reuse: bool) -> None:
        if not (reuse and self._scratch.give_back(self._name)):
            _ = self._in_thread(self._scratch.remove, self._name)

    def take_cards(self) -> AttemptVerdict | None:
        wanted = self._assign.cards
        if wanted < 0:
            return None
        self._cards = self._rack.take(self._name, wanted, self._assign.card_memory_mib) if wanted else ()
        return handed_back("The graphics cards of this machine are taken.") if self._cards is None else None

    def release_cards(self) -> None:
        self._rack.release(self._name)

    async def launch(self, assign: Assign) -> Launch:
        place, directory = self._scratch.place(self._name), Path(assign.directory)
        argv, links = in_ascii(assign)
        self._links = (directory, links)
        if links:
            await self._in_thread(link, directory, links)
        box = self._boxes.of(assign, place, self._devices())
        self._outside = Outside(box)
        wanted = {**assign.environment, INPUTS: assign.root}
        environment = clean_environment(os.environ, wanted, place, also=self._passed)
        if self._cards is not None:
            environment |= variables(self._cards)
        if self._cards:
            environment |= await self._in_thread(self._kernels.hand_out, place)
        return Launch(argv, environment, box)

    async def remove_links(self) -> None:
        if self._links[1]:
            await self._in_thread(unlink, *self._links)

    def read(self, lines: Sequence[str]) -> None:
        self._outside.take(lines)

    async def outside_box(self) -> Sequence[str]:
        return await self._in_thread(self._outside.found) if self._outside else ()

    async def believed(self, failure: tuple[str, str] | None) -> tuple[str, str] | None:
        # An engine may fail to use its cards only because of its scene: when Blender, run by us, can't use them either,
        # they get no more work.
        if failure is None or failure[0] != NO_DEVICE:
            return failure
        cards = self._cards if self._cards and self._assign.engine.casefold() == ENGINE else ()
        refused = [card for card in cards if await self._kernels.refuses((card,))]
        if refused:
            self._rack.mark_unusable(refused, failure[1])
        return failure if refused else ("error", failure[1])

    def _devices(self) -> Sequence[str] | None:
        """The device files that the engine may open in its box; None: those of all cards."""
        cards = self._cards
        if cards == () and self._assign.draws:
            cards = self._rack.drawable or None
            name = cards[0].card.name if cards else "whatever this machine draws with"
            self._write_log([f"RenderOnline: it has no graphics card of its own, and may draw on {name} as others do."])
        return None if cards is None else device_files(cards)


class Kernels:
    """The compiled kernels of one HPCServer. `prefix`: the first words of Blender's command lines, () without."""

    def __init__(self, home: Path, prefix: Sequence[str], processes: Processes, boxes: Boxes, scratch: Scratch) -> None:
        self._home = home / "kernels"
        self._prefix, self._processes, self._boxes, self._scratch = tuple(prefix), processes, boxes, scratch
        self._ready = False
        self._runs = 0

    async def compile(self, rack: Rack) -> None:
        """Compile the kernels for each kind of card here, one after the other. Never raises."""
        sorts = {(one.card.kind, one.card.name): one for one in rack.found}
        if not self._prefix or not sorts:
            return
        for one in sorts.values():
            log.info("render kernels are compiled for a graphics card; work goes on meanwhile", card=one.card.name)
            code = await self._run((one,), COMPILE_S, self._home)
            outcome = {0: "render kernels are ready", FOUND_NONE: "Blender's Cycles can't use this graphics card"}
            log.info(outcome.get(-1 if code is None else code, "no render kernels were compiled"), card=one.card.name)
        self._ready = True

    async def refuses(self, cards: Sequence[FoundCard]) -> bool:
        """Whether Blender can't use these cards with a scene of our own."""
        return bool(self._prefix) and await self._run(cards, TRY_S) == FOUND_NONE

    def hand_out(self, place: Path) -> dict[str, str]:
        """Copy the kernels into an attempt's scratch directory; returns the variables that name them. Blocks."""
        own = place / "tmp" / "kernels"
        with suppress(OSError, shutil.Error):
            if self._ready and sum(file.stat().st_size for file in self._home.rglob("*")) < LARGEST:
                shutil.copytree(self._home, own, symlinks=True)
        return _environment(_made(own))

    async def _run(self, cards: Sequence[FoundCard], seconds: float, home: Path | None = None) -> int | None:
        """The exit code of our script on these cards; None when it could not be run or took too long."""
        self._runs += 1
        name, lines = f"kernels-{self._runs}", list[str]()
        try:
            place = self._scratch.make(name)
            caches = _made(home or place / "tmp" / "kernels")
            process = await self._processes.start(
                name,
                command(self._prefix),
                directory=place,
                environment=clean_environment(os.environ, {}, place) | variables(cards) | _environment(caches),
                on_lines=lines.extend,
                nice=NICE,
                box=self._boxes.of_ours(ENGINE, place, caches, str(LAUNCHER), device_files(cards)),
            )
            try:
                async with asyncio.timeout(seconds):
                    return (await process.wait()).code
            finally:
                process.stop("SIGKILL", 0.0)
        except (RenderOnlineError, OSError, TimeoutError) as error:
            lines.append(str(error) or "it took too long")
            return None
        finally:
            for line in lines[-3:]:
                log.debug("render kernels", line=line[:500])
            await asyncio.to_thread(self._scratch.remove, name)


def command(prefix: Sequence[str]) -> list[str]:
    """The command line that tries the cards with the Blender of this `prefix`: our launcher does it, even in a Blender
    that is too old to render with it."""
    return [*with_launcher(prefix), TRY_CARDS]


def _made(caches: Path) -> Path:
    """The directory `caches`, with the directories in it: no driver makes them all."""
    with suppress(OSError):
        for folder in CACHES.values():
            (caches / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    return caches


def _environment(caches: Path) -> dict[str, str]:
    limits = {"CUDA_CACHE_MAXSIZE": str(LARGEST), "SYCL_CACHE_PERSISTENT": "1", "NEO_CACHE_PERSISTENT": "1"}
    return {name: str(caches / folder) for name, folder in CACHES.items()} | limits
