"""What chunks need of a machine besides its engine (`Needs`), what machines have (`Ability`), needs that no machine can
ever meet (`unmet`), and the warnings of a task.

A warning is something that a person must know about pictures although nothing failed (R16 No false success). Warnings
are short texts without duplicates, in a bounded number, and are shown wherever the task's success is shown. Engines
print what untrusted scenes contain, so their texts are shortened and cleaned here.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, NamedTuple

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.frames import MAX_FRAMES


class BoxKind(StrEnum):
    """The sandbox around an engine (`renderonline.sandbox` makes it), the weakest first.

    `NONE`: an engine may do what the account may. `LANDLOCK`: other files, the network and other sockets are refused,
    other processes can be seen but not touched. `BWRAP`: nothing else is visible at all.
    """

    NONE = "none"
    LANDLOCK = "landlock"
    BWRAP = "bwrap"

    @property
    def rank(self) -> int:
        """The greater, the stronger. The kinds themselves compare as texts."""
        return _RANKS[self]


class BoxAdvice(StrEnum):
    """A line that gets a computer a better box. People may type what they read, so no other line is shown to them,
    whatever a machine says."""

    INSTALL = "apt-get install bubblewrap"
    SETTING = "set Sandbox to auto"
    TRY = "bwrap --unshare-all --ro-bind / / true    (it fails here and says why)"
    APPARMOR = "sysctl kernel.apparmor_restrict_unprivileged_userns=0"
    USERS = "sysctl kernel.unprivileged_userns_clone=1"
    NAMESPACES = "sysctl user.max_user_namespaces=10000"


MAX_TAGS: Final = 16
MAX_MEMORY_MIB: Final = 2**26
MAX_GPUS: Final = 64
_RANKS: Final = {box: rank for rank, box in enumerate(BoxKind)}
_WORD: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,49}")
_VERSION: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,5}")


@dataclass(frozen=True, slots=True)
class Needs:
    """What a machine must have: at least this version of the engine ("": any), all these tags, exactly this pool
    ("": the machines without a pool), this memory and number of graphics cards for the chunk alone, at least this box
    around its engines (a `BoxKind`; "": none). `linked`: not a v1 machine, because only linked machines get the
    variables that an engine's definition sets. `renderer`: the renderer that its engine must support, such as `CYCLES`;
    a machine that does not report its renderers may have it. `gpu_memory_mib`: the memory of each card; implies a card.

    `prefers_gpu`: a card if some machine has a usable one, else none. `draws`: without a card of its own it may draw on
    a shared one, unless its engine is known not to draw.
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
        """Whether it occupies memory or cards of a machine that others need too."""
        return bool(self.memory_mib or self.gpus or self.prefers_gpu)

    @property
    def may_starve(self) -> bool:
        """Whether smaller chunks could make it wait for ever: it needs memory, or several cards at once. A single card
        becomes free whenever a chunk that uses one ends."""
        return bool(self.memory_mib or self.gpus > 1 or self.gpu_memory_mib)

    def on(self, ability: "Ability") -> "Needs":
        """Return what a chunk with these needs occupies on this machine: if it prefers a card, one if there is one."""
        return replace(self, prefers_gpu=False, gpus=min(1, ability.gpus)) if self.prefers_gpu else self

    def checked(self) -> "Needs":
        """Return the needs in canonical form. Raises `InvalidRequest`, which names the invalid need."""
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
        """Return needs that include both; the pool of `more` replaces the other if it has one. Both are checked."""
        return Needs(
            max(self.engine_version, more.engine_version, key=_parts),
            tuple(sorted({*self.tags, *more.tags})),
            more.pool or self.pool,
            max(self.memory_mib, more.memory_mib),
            max(self.gpus, more.gpus),
            max(self.sandbox, more.sandbox, key=lambda box: box_of(box).rank),
            self.linked or more.linked,
            renderer=more.renderer or self.renderer,
            gpu_memory_mib=max(self.gpu_memory_mib, more.gpu_memory_mib),
            prefers_gpu=(self.prefers_gpu or more.prefers_gpu) and not (self.gpus or more.gpus),
            draws=self.draws and more.draws,
        )


NOTHING: Final = Needs()


class Ability(NamedTuple):
    """What a machine has: its engines (case-folded name, version), whether it is linked or a v1 machine, and what
    `Needs` may ask for (tags case-folded). `renderers`: pairs of engine and renderer, as far as the machine reports
    them. `gpus`: usable graphics cards; `cards`: kind and MiB of those whose memory is known, the largest first.
    Machines whose abilities differ only in the first field are interchangeable."""

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
        """Return the first need of a chunk that the machine does not meet, in words; "" when it meets all."""
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
        """Which cards are missing, in words; cards that render together must be of one kind."""
        fitting = [kind for kind, memory_mib in self.cards if memory_mib >= needs.gpu_memory_mib]
        if needs.gpu_memory_mib and len(fitting) < needs.gpus:
            return f"{len(fitting)} graphics cards with {needs.gpu_memory_mib} MiB of their own, not {needs.gpus}"
        if len(self.cards) == self.gpus and max(map(fitting.count, fitting), default=0) < needs.gpus:
            return f"{self.gpus} graphics cards, but not {needs.gpus} of one kind"
        return ""


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags in canonical form: case-folded, sorted, without duplicates. Raises `InvalidRequest`."""
    found = tuple(sorted({tag.strip().casefold() for tag in tags}))
    if len(found) > MAX_TAGS or not all(map(_WORD.fullmatch, found)):
        raise InvalidRequest(f"Tags (at most {MAX_TAGS}) and pool: words of up to 50 of a-z, 0-9, _ . and -.")
    return found


def is_renderer(name: str) -> bool:
    """Return whether this can be the name of a renderer."""
    return re.fullmatch(r"\w{1,64}", name, re.ASCII) is not None


def checked_pool(pool: str) -> str:
    """Return a pool's name in canonical form, "" for none. Raises `InvalidRequest` for an invalid name."""
    return "".join(checked_tags([pool] if pool.strip() else ()))


def checked_box(box: str) -> str:
    """Return a box that tasks may require, in canonical form, "" for none. Raises `InvalidRequest` for others."""
    found = box.strip().casefold()
    if found and box_of(found) is BoxKind.NONE:
        able = " or ".join(kind for kind in BoxKind if kind is not BoxKind.NONE)
        raise InvalidRequest(f"sandbox is the weakest box that will do, {able}, or empty.")
    return found


def box_of(name: str) -> BoxKind:
    """Return the box of this name; `BoxKind.NONE` for an unknown name."""
    return BoxKind(name) if name in _RANKS else BoxKind.NONE


def lacks_box(has: BoxKind, wanted: str) -> str:
    """Return in words why a machine's box is too weak; "" when it is strong enough."""
    if not wanted or has.rank >= box_of(wanted).rank:
        return ""
    return f"{'no box around engines' if has is BoxKind.NONE else f'only the box {has}'}, not {wanted}"


def _parts(version: str) -> tuple[int, ...]:
    """A version as numbers, so that 4.10 is newer than 4.9, and 4.2 equals 4.2.0."""
    parts = [int(digits[-18:]) for digits in re.findall(r"[0-9]+", version)[:8]]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


_INSTALLING: Final = {"blender": "Install it on one: renderonline engine install blender."}
_OTHERS: Final = "Install its program on one; to see what is found there: renderonline engine list --here."
_SET: Final = "renderonline machine set NAME"


def unmet(abilities: Sequence[Ability], engine: str, needs: Needs) -> str:
    """Return why none of these machines can ever take a chunk, and what to do about it (R9 Scheduling); "" when one
    can. `engine` is case-folded."""
    if any(not ability.lacks(engine, needs) for ability in abilities):
        return ""
    having = [ability for ability in abilities if engine in dict(ability.engines)]
    if not having:
        return f"No machine has the engine {engine}. {_INSTALLING.get(engine, _OTHERS)}"
    lacking = _labels(having, needs) or _sizes(having, engine, needs)
    return f"No machine with {engine} {lacking}" if lacking else f"No machine with {engine} has all that it needs."


def _labels(having: Sequence[Ability], needs: Needs) -> str:
    """The tag or pool, set by operators, that no machine has."""
    for tag in needs.tags:
        if not any(tag in ability.tags for ability in having):
            return f"has the tag {tag}. Give it to one: {_SET} --tags {tag}"
    if any(ability.pool == needs.pool for ability in having):
        return ""
    if needs.pool:
        return f"is in the pool {needs.pool}. Put one in: {_SET} --pool {needs.pool}"
    return f'is free of a pool. Name a pool when you submit, or free one: {_SET} --pool "".'


def _sizes(having: Sequence[Ability], engine: str, needs: Needs) -> str:
    """The first need that no machine meets even by itself."""
    memory_mib = max(ability.memory_mib for ability in having)

    def lacked(alone: Needs) -> bool:
        return all(ability.lacks(engine, replace(alone, pool=ability.pool)) for ability in having)

    most = max(ability.gpus for ability in having)
    fewer = f"the graphics cards that it needs; the most is {most}. Ask for fewer."
    none = "a graphics card. Submit it without --gpus, and for Blender with --arg device=cpu"
    cards = Needs(gpus=needs.gpus, gpu_memory_mib=needs.gpu_memory_mib)
    texts = {
        f"is of version {needs.engine_version} or newer. Update it on one.": Needs(needs.engine_version),
        f"can render with {needs.renderer}. Install its add-on on one.": Needs(renderer=needs.renderer),
        "is linked, as it must be for this. Let one join: renderonline machine invite.": Needs(linked=needs.linked),
        f"has the box {needs.sandbox} or a better one. To see how to get it: renderonline node --check.": Needs(
            sandbox=needs.sandbox
        ),
        f"has {needs.memory_mib} MiB of memory; the most is {memory_mib}. Submit it with less.": Needs(
            memory_mib=needs.memory_mib
        ),
        f"has {fewer if most else none}": cards,
    }
    return next((text for text, alone in texts.items() if lacked(alone)), "")


MOST_OF_TASK: Final = 20
MOST_OF_ATTEMPT: Final = 10
"""The most warnings that one attempt reports."""
LONGEST: Final = 300
"""The most characters of a warning."""
_ABSENT: Final = re.compile(r"not there|lies outside|does not exist|missing from|Unable to open|Cannot find")
_FILE: Final = re.compile(r"[^/\\'\"\s]+\.[A-Za-z0-9]{1,8}\b")
_UNBAKED: Final = "not baked:"
_MORE: Final = re.compile(r"and at least ([0-9]{1,9}) more: the log has them")


def cleaned(text: str) -> str:
    """Return a warning on one line, printable and shortened to `LONGEST` characters; "" when nothing is left."""
    words = " ".join("".join(char if char.isprintable() else " " for char in text[: 4 * LONGEST]).split())
    return words if len(words) <= LONGEST else f"{words[: LONGEST - 1]}…"


def joined(known: Iterable[str], more: Iterable[str], most: int = MOST_OF_TASK) -> tuple[str, ...]:
    """Return the warnings of `known` and `more`, cleaned and without duplicates. When there are more than `most`, the
    last one says how many were left out at least: later duplicates of those can't be recognized."""
    texts = dict.fromkeys(_distinct(filter(None, map(cleaned, (*known, *more)))))
    counted = [int(found[1]) for text in texts if (found := _MORE.fullmatch(text))]
    plain = [text for text in texts if not _MORE.fullmatch(text)]
    if not counted and len(plain) <= most:
        return tuple(plain)
    left = max(0, len(plain) - (most - 1))
    return (*plain[: most - 1], f"and at least {max(left, *counted, 1)} more: the log has them")


def of_check(warnings: Iterable[str], parts: int) -> tuple[str, ...]:
    """Return those warnings of a machine that checked a scene that concern a task of this number of parts."""
    return tuple(text for text in warnings if parts > 1 or not text.startswith(_UNBAKED))


def _distinct(texts: Iterable[str]) -> Iterator[str]:
    """The farm, the launcher and Blender itself each report a missing file, or what is not baked; only the first report
    is kept."""
    absent, unbaked = set[str](), False
    for text in texts:
        if text.startswith(_UNBAKED):
            if not unbaked:
                yield text
            unbaked = True
            continue
        files = {name.casefold() for name in _FILE.findall(text)} if _ABSENT.search(text) else set[str]()
        if not files or files - absent:
            yield text
        absent |= files


def of_scene(facts: Mapping[str, Any], parts: int) -> tuple[str, ...]:
    """Return the warnings that follow from the scene's facts for a task of this number of parts, when it is submitted
    and whenever all of it is rendered again."""
    unbaked = [name for name in facts.get("unbaked", ()) if isinstance(name, str)] if parts > 1 else []
    missing = missing_warnings(facts.get("missing_inputs", ()))
    return joined((), (*facts.get("warnings", ()), *missing, *unbaked_warnings(unbaked)))


def missing_warnings(names: Sequence[str]) -> list[str]:
    """Return the warning about files that a scene needs and that were not submitted; [] when none is missing."""
    if not names:
        return []
    files = ", ".join(names[:5]) + " …" * (len(names) > 5) + (" are" if names[1:] else " is")
    folders = dict.fromkeys(name.split("/")[0] for name in names)
    return [f"{files} not there: submit with {' '.join(f'--with {folder}' for folder in folders)}"]


def unbaked_warnings(names: Sequence[str]) -> list[str]:
    """Return the warning about simulations that each part of a task would start from the beginning; [] without any."""
    if not names:
        return []
    shown = ", ".join(names[:5]) + " …" * (len(names) > 5)
    return [f"{_UNBAKED} each part begins it from the start: {shown}; bake, or use --chunk {MAX_FRAMES} for one part"]
