"""What chunks need of a machine besides its engine, and what machines have (R9 Scheduling)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from renderonline.farm.boxes import BoxKind
from renderonline.farm.errors import InvalidRequest

MAX_TAGS: Final = 16
MAX_MEMORY_MIB: Final = 2**26
MAX_GPUS: Final = 64
_BOXES: Final = frozenset(BoxKind)
_WORD: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,49}")
_VERSION: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,5}")


@dataclass(frozen=True, slots=True)
class Needs:
    """What a machine must have: at least this version of the engine ("": any), all these tags, exactly this pool
    ("": the machines of no pool), so much memory and so many graphics cards for the chunk alone, at least this box
    around its engines (a `BoxKind`; "": none is needed). `linked`: a machine of ours, not a v1 machine: only those get
    the variables that an engine's definition sets. `renderer`: what its engine must be able to render with, such as
    `CYCLES`; a machine that does not say what it has may have it. `gpu_memory_mib`: of each card, which is then needed.

    `prefers_gpu`: a card where some machine has one that is usable, else none. `draws`: without a card of its own
    it may draw on one that others use too, unless its engine is known not to draw.
    """

    engine_version: str = ""
    tags: tuple[str, ...] = ()
    pool: str = ""
    memory_mib: int = 0
    gpus: int = 0
    sandbox: str = ""
    linked: bool = False
    renderer: str = ""
    gpu_memory_mib: int = 0
    prefers_gpu: bool = False
    draws: bool = True

    @property
    def is_large(self) -> bool:
        """Whether it takes something of a machine that others need too."""
        return bool(self.memory_mib or self.gpus or self.prefers_gpu)

    @property
    def may_starve(self) -> bool:
        """Whether smaller chunks could keep it waiting for ever: it wants memory, or several cards at once. One card is
        free as often as those that use it end."""
        return bool(self.memory_mib or self.gpus > 1 or self.gpu_memory_mib)

    def on(self, ability: "Ability") -> "Needs":
        """What a chunk with these needs takes of this machine: one that prefers a card takes one where there is one."""
        return replace(self, prefers_gpu=False, gpus=min(1, ability.gpus)) if self.prefers_gpu else self

    def checked(self) -> "Needs":
        """The same in canonical form; `InvalidRequest` names what nobody can need."""
        if self.engine_version and not _VERSION.fullmatch(self.engine_version):
            raise InvalidRequest("An engine's version is numbers with dots between them, such as 4.2 or 5.0.1.")
        for name, most in (("memory_mib", MAX_MEMORY_MIB), ("gpus", MAX_GPUS), ("gpu_memory_mib", MAX_MEMORY_MIB)):
            if not 0 <= getattr(self, name) <= most:
                raise InvalidRequest(f"{name} is a number from 0 to {most:,}.")
        if self.renderer and not is_renderer(self.renderer):
            raise InvalidRequest("renderer is a name such as CYCLES: up to 64 of a-z, A-Z, 0-9 and _.")
        tags, pool = checked_tags(self.tags), checked_pool(self.pool)
        gpus = self.gpus or min(1, self.gpu_memory_mib)
        return replace(self, tags=tags, pool=pool, gpus=gpus, sandbox=checked_box(self.sandbox))

    def joined(self, more: "Needs") -> "Needs":
        """What satisfies both; the pool of `more` counts when it names one. Both are checked."""
        return Needs(
            max(self.engine_version, more.engine_version, key=_parts),
            tuple(sorted({*self.tags, *more.tags})),
            more.pool or self.pool,
            max(self.memory_mib, more.memory_mib),
            max(self.gpus, more.gpus),
            max(self.sandbox, more.sandbox, key=box_of),
            self.linked or more.linked,
            renderer=more.renderer or self.renderer,
            gpu_memory_mib=max(self.gpu_memory_mib, more.gpu_memory_mib),
            prefers_gpu=(self.prefers_gpu or more.prefers_gpu) and not (self.gpus or more.gpus),
            draws=self.draws and more.draws,
        )


NOTHING: Final = Needs()


class Ability(NamedTuple):
    """What a machine can take: its engines (case-folded name, version), whether it is linked or a v1 machine, and what
    `Needs` may ask for (tags case-folded). `renderers`: engine and what it can render with, as far as the machine
    says. `gpus`: usable graphics cards; `cards`: kind and MiB of each of them whose memory is known, the largest first.
    Machines whose abilities differ only in the first field are alike."""

    machine_id: int
    engines: tuple[tuple[str, str], ...]
    linked: bool = True
    tags: frozenset[str] = frozenset()
    pool: str = ""
    memory_mib: int = 0
    gpus: int = 0
    sandbox: BoxKind = BoxKind.NONE
    renderers: frozenset[tuple[str, str]] = frozenset()
    cards: tuple[tuple[str, int], ...] = ()

    def lacks(self, engine: str, needs: Needs) -> str:
        """What of a chunk's needs the machine does not have, in plain words; "" when it has all."""
        version = dict(self.engines).get(engine)
        if version is None:
            return f"no engine {engine}"
        if needs.engine_version and _parts(version) < _parts(needs.engine_version):
            return f"{engine} {version or 'of a version that is not known'}, not {needs.engine_version} or newer"
        if needs.linked and not self.linked:
            return "a v1 machine, which gets only what can stand on the engine's command line"
        has = {renderer for name, renderer in self.renderers if name == engine}
        if needs.renderer and has and needs.renderer not in has:
            return f"its {engine} can't render with {needs.renderer}"
        if missing := sorted(set(needs.tags) - self.tags):
            return f"no tag {', '.join(missing)}"
        if self.pool != needs.pool:
            return f"kept for the pool {self.pool}" if not needs.pool else f"not in the pool {needs.pool}"
        if needs.sandbox and (missing_box := lacks_box(self.sandbox, needs.sandbox)):
            return missing_box
        if needs.memory_mib > self.memory_mib:
            return f"{self.memory_mib} MiB of memory, not {needs.memory_mib}"
        if needs.gpus > self.gpus:
            return f"{self.gpus} graphics cards, not {needs.gpus}"
        return self._lacks_cards(needs) if needs.gpus else ""

    def _lacks_cards(self, needs: Needs) -> str:
        """Cards that work together are of one kind."""
        fitting = [kind for kind, memory_mib in self.cards if memory_mib >= needs.gpu_memory_mib]
        if needs.gpu_memory_mib and len(fitting) < needs.gpus:
            return f"{len(fitting)} graphics cards with {needs.gpu_memory_mib} MiB of their own, not {needs.gpus}"
        if len(self.cards) == self.gpus and max(map(fitting.count, fitting), default=0) < needs.gpus:
            return f"{self.gpus} graphics cards, but not {needs.gpus} of one kind"
        return ""


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags in canonical form: case-folded, sorted, each once. `InvalidRequest` for what is none."""
    found = tuple(sorted({tag.strip().casefold() for tag in tags}))
    if len(found) > MAX_TAGS or not all(map(_WORD.fullmatch, found)):
        raise InvalidRequest(f"Tags (at most {MAX_TAGS}) and pool: words of up to 50 of a-z, 0-9, _ . and -.")
    return found


def is_renderer(name: str) -> bool:
    """Whether this can be the name of what an engine renders with."""
    return re.fullmatch(r"\w{1,64}", name, re.ASCII) is not None


def checked_pool(pool: str) -> str:
    """A pool's name in canonical form, "" for none; `InvalidRequest` for what is no name."""
    return "".join(checked_tags([pool] if pool.strip() else ()))


def checked_box(box: str) -> str:
    """A box that work may require, in canonical form, "" for none; `InvalidRequest` for others."""
    found = box.strip().casefold()
    if found and box_of(found) is BoxKind.NONE:
        able = " or ".join(kind for kind in BoxKind if kind is not BoxKind.NONE)
        raise InvalidRequest(f"sandbox is the weakest box that will do, {able}, or empty.")
    return found


def box_of(said: str) -> BoxKind:
    """The box that a machine says it has, or work says it requires; one that is not known here is none."""
    return BoxKind(said) if said in _BOXES else BoxKind.NONE


def lacks_box(has: BoxKind, wanted: str) -> str:
    """Why the box that a machine has is not enough, in plain words; "" when it is."""
    if has >= box_of(wanted):
        return ""
    return f"{'no box around engines' if has is BoxKind.NONE else f'only the box {has}'}, not {wanted}"


def _parts(version: str) -> tuple[int, ...]:
    """A version as numbers, so that 4.10 is newer than 4.9, and 4.2 as new as 4.2.0."""
    parts = [int(digits[-18:]) for digits in re.findall(r"[0-9]+", version)[:8]]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
