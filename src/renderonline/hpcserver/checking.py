"""Whether this computer is fit to render for a farm, and what mends it (`renderonline node --check`).

Nothing is changed.
"""

import getpass
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from renderonline.engines.discovery import FoundEngine
from renderonline.farm.boxes import BoxKind
from renderonline.farm.errors import RenderOnlineError
from renderonline.hpcserver import enrolment
from renderonline.hpcserver.card_rack import find_cards
from renderonline.hpcserver.settings import Settings
from renderonline.sandbox.box import Found
from renderonline.sandbox.probing import NoBox, probe

LITTLE_BYTES: Final = 1_000_000_000
"""Less free space than this is worth a warning."""
_OTHERS: Final = stat.S_IRGRP | stat.S_IROTH
"""What `serving.directories.private_read` refuses."""


class Level(StrEnum):
    """How bad a finding is. With a warning the machine renders; with an error it does not."""

    OK = "ok"
    WARNING = "WARNING"
    ERROR = "ERROR"


class CheckResult(NamedTuple):
    """One line of the check."""

    subject: str
    text: str
    level: Level = Level.OK


def findings(
    settings: Settings, engines: Sequence[FoundEngine], url: str = "", fingerprint: str = ""
) -> Iterator[CheckResult]:
    """Everything that was looked at, in the order in which it is read. `url`: the farm that is asked for; "" is the one
    that this machine has joined. Blocks; asks the farm once."""
    try:
        found = probe(settings.sandbox)
        yield CheckResult("sandbox", *_box(found))
    except NoBox as error:
        found = Found()
        yield CheckResult("sandbox", error.message, Level.ERROR)
    yield account()
    yield _secrets(settings.home, found)
    yield from _engines(settings, engines)
    yield _cards(settings)
    yield _disk(settings.home)
    yield _farm(settings.home, url, fingerprint)


def told(found: Found) -> str:
    """What a box does, in one line."""
    if found.kind == BoxKind.BWRAP:
        return f"{found.version}: engines see their task only, no network"
    if found.kind == BoxKind.LANDLOCK:
        return f"{found.version}: engines open no files of others, no network, but see that other processes exist"
    return "none: any scene can read and write what this account can"


def account() -> CheckResult:
    """Whose rights engines would have without a box, and the box itself has."""
    if os.geteuid() == 0:
        return CheckResult("user", "root: make an account for renderers", Level.WARNING)
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # an account that has no name
        name = f"number {os.geteuid()}"
    return CheckResult("user", name)


def _box(found: Found) -> tuple[str, Level]:
    advice = f". {'Better' if found.kind != BoxKind.NONE else 'Mend it'}: {found.advice}" if found.advice else ""
    return told(found) + advice, Level.WARNING if found.kind == BoxKind.NONE else Level.OK


def _secrets(home: Path, found: Found) -> CheckResult:
    """Who can read the machine's secret: other accounts by its mode, engines when nothing keeps them from it."""
    path = home / enrolment.FILE
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return CheckResult("secrets", "none yet: this machine has joined no farm")
    except OSError as error:
        return CheckResult("secrets", f"{path} can't be read: {error.strerror}", Level.ERROR)
    name = f"{path.name} {stat.S_IMODE(mode):04o}"
    if mode & _OTHERS:
        return CheckResult("secrets", f"{name}, others can read it: chmod 600 {path}", Level.ERROR)
    if found.kind == BoxKind.NONE:
        return CheckResult("secrets", f"{name}, but engines can read it: they have no box", Level.WARNING)
    return CheckResult("secrets", f"{name}, not visible to engines")


def _engines(settings: Settings, engines: Sequence[FoundEngine]) -> Iterator[CheckResult]:
    for engine in engines:
        yield CheckResult("engine", f"{engine.name} {engine.version}".strip() + f": {engine.prefix[0]}")
    there = {engine.name.casefold() for engine in engines}
    for name, program in settings.engines.items():
        if name.casefold() not in there:
            text = f"{name} of the settings is not there or does not answer: {program}"
            yield CheckResult("engine", text, Level.WARNING)
    if not engines and not settings.engines:
        text = "none found: renderonline engine install blender, or name one with --engine NAME=PATH"
        yield CheckResult("engine", text, Level.WARNING)


def _cards(settings: Settings) -> CheckResult:
    cards = find_cards(settings.cards).cards
    told = [f"{card.name} ({card.kind}{f', {card.memory_mib} MiB' if card.memory_mib else ''})" for card in cards]
    return CheckResult("cards", ", ".join(told) or "none found: Cycles renders on the processor")


def _disk(home: Path) -> CheckResult:
    place = next(path for path in (home, *home.parents) if os.path.exists(path))
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        return CheckResult("disk", f"{place} can't be used: {error.strerror}", Level.ERROR)
    if not os.access(place, os.W_OK | os.X_OK):
        return CheckResult("disk", f"{place} can't be written by this account", Level.ERROR)
    text = f"{free / 1e9:.1f} GB free in {place}"
    return CheckResult("disk", text, Level.OK if free >= LITTLE_BYTES else Level.WARNING)


def _farm(home: Path, url: str, fingerprint: str) -> CheckResult:
    try:
        identity = enrolment.kept(home)
        if url and (identity is None or not identity.is_of(url)):
            identity, caller = None, enrolment.caller_of(url, fingerprint)
        elif identity is not None:
            caller = identity.caller()
        else:
            return CheckResult(
                "farm", "not joined yet: renderonline machine invite, on the farm, prints the line to type"
            )
        version = enrolment.version_at(caller)
    except RenderOnlineError as error:
        return CheckResult("farm", error.message, Level.ERROR)
    joined = ", not joined yet" if identity is None else f", joined as machine {identity.machine_id}"
    return CheckResult("farm", f"{caller.url} answers (RenderOnline {version}){joined}")
