"""Warnings of a task: what a person must know of its pictures, although nothing failed (R16 No false success).

They are short texts, each once, in a bounded number, and stay with the task wherever its success is shown. What engines
print comes from scenes of strangers: it is cut and made plain here.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from renderonline.farm.frames import MAX_FRAMES
from renderonline.farm.tasks import missing_told

MOST_OF_TASK: Final = 20
MOST_OF_ATTEMPT: Final = 10
"""Warnings that one attempt reports."""
LONGEST: Final = 300
"""Characters of one."""
_ABSENT: Final = re.compile(r"not there|lies outside|does not exist|missing from|Unable to open|Cannot find")
_FILE: Final = re.compile(r"[^/\\'\"\s]+\.[A-Za-z0-9]{1,8}\b")
_UNBAKED: Final = "not baked:"
_MORE: Final = re.compile(r"and at least ([0-9]{1,9}) more: the log has them")


def cleaned(text: str) -> str:
    """A warning as it is kept: on one line, printable, not too long; "" when nothing is left of it."""
    words = " ".join("".join(one if one.isprintable() else " " for one in text[: 4 * LONGEST]).split())
    return words if len(words) <= LONGEST else f"{words[: LONGEST - 1]}…"


def joined(known: Iterable[str], more: Iterable[str], most: int = MOST_OF_TASK) -> tuple[str, ...]:
    """The warnings that were `known` and `more`, each once and cleaned. Beyond `most` the last one says how many there
    were at least: those that are not kept can't be told apart later."""
    texts = dict.fromkeys(_once(filter(None, map(cleaned, (*known, *more)))))
    counted = [int(found[1]) for text in texts if (found := _MORE.fullmatch(text))]
    plain = [text for text in texts if not _MORE.fullmatch(text)]
    if not counted and len(plain) <= most:
        return tuple(plain)
    left = max(0, len(plain) - (most - 1))
    return (*plain[: most - 1], f"and at least {max(left, *counted, 1)} more: the log has them")


def of_check(warnings: Iterable[str], parts: int) -> tuple[str, ...]:
    """What a machine that looked at a scene says, as far as it is of interest for a task of so many parts."""
    return tuple(text for text in warnings if parts > 1 or not text.startswith(_UNBAKED))


def _once(texts: Iterable[str]) -> Iterator[str]:
    """The farm, the launcher and Blender itself each say that a file is missing, or what is not baked: the first one is
    enough."""
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
    """The warnings that a task of so many parts has because of what its scene says of itself, when it is submitted and
    whenever all of it is rendered again."""
    unbaked = [name for name in facts.get("unbaked", ()) if isinstance(name, str)] if parts > 1 else []
    told = (*facts.get("warnings", ()), *missing_told(facts.get("missing_inputs", ())), *unbaked_told(unbaked))
    return joined((), told)


def unbaked_told(names: Sequence[str]) -> list[str]:
    """What to do about simulations that each part of a task would begin anew."""
    if not names:
        return []
    they = ", ".join(names[:5]) + " …" * (len(names) > 5)
    return [f"{_UNBAKED} each part begins it from the start: {they}; bake, or use --chunk {MAX_FRAMES} for one part"]
