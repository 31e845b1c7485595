"""The graphics cards of this machine: found once at the start, given to attempts, each to one at a time.

What an attempt may use it is told by the variables that the makers' programs read, by UUID where a card has one; in a
box it is all that it can open. When HPCServer is killed its engines die with it (R8 Process trees), so this needs no
memory.
"""

import glob
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from renderonline.farm.cards import LONGEST_TEXT, Card, CardKind, CardLoad
from renderonline.farm.needs import MAX_GPUS
from renderonline.hpcserver import card_tools as tools
from renderonline.hpcserver.card_tools import FoundCard

log = structlog.get_logger(__name__)

PROBE_S: Final = 10.0
"""For each tool; a driver that hangs must not keep the machine from rendering."""
LOOK_S: Final = 5.0
"""How busy cards are is asked at most so often."""
QUIET_S: Final = 60.0
"""How long a tool that gave no answer is left alone."""
CARDS: Final = "RENDERONLINE_CARDS"
"""Which cards an engine got (`kind:id`, commas between), "" for none; it is not set where it may use all."""
NONE: Final[Mapping[str, str]] = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "HIP_VISIBLE_DEVICES": "-1",
    "ROCR_VISIBLE_DEVICES": "-1",
    "ONEAPI_DEVICE_SELECTOR": "opencl:cpu",
}
"""What hides the cards of each maker."""
_SHARED: Final = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
"""What a program needs for any card of NVIDIA."""
_KINDS: Final = tuple(kind.value for kind in CardKind)

Ask = Callable[[Sequence[str]], str]


def ask(command: Sequence[str]) -> str:
    """What a tool prints; "" when it is not there, fails or hangs. Blocks."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S, check=True)
    except FileNotFoundError:
        return ""
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("graphics cards can't be asked for", tool=command[0], reason=str(error)[:200])
        return ""
    return done.stdout.decode(errors="replace")


def find_cards(by_hand: Sequence[str] = (), *, ask: Ask = ask, environment: Mapping[str, str] = os.environ) -> "Rack":
    """The cards of this computer, or those that the setting `Cards` names; `none` are none. Blocks."""
    if by_hand:
        named = [] if tuple(by_hand) == ("none",) else [tools.by_hand(one) for one in by_hand]
        return Rack(_numbered(named), ask)
    system = tools.from_system()
    amd = [one for one in system if one.card.kind == CardKind.HIP]
    intel = [one for one in system if one.card.kind == CardKind.ONEAPI]
    told = tools.amd(ask(tools.AMD)) or tools.rocm(ask(tools.ROCM)) if amd or not system else []
    found = [*tools.nvidia(ask(tools.NVIDIA)), *tools.joined(told, amd)]
    found += tools.joined(tools.intel(ask(tools.INTEL)), intel) + tools.apple(ask(tools.APPLE))
    return Rack(_numbered(tools.visible(found, environment)[:MAX_GPUS]), ask)


def _numbered(found: Sequence[FoundCard]) -> list[FoundCard]:
    """Each id once: two that a tool can't tell apart would be given away twice."""
    known: dict[str, FoundCard] = {}
    for one in found:
        card_id = one.card.id if one.card.id not in known else f"{one.card.id}-{len(known)}"
        known[card_id] = replace(one, card=replace(one.card, id=card_id))
    return list(known.values())


class Rack:
    """Who has which card. Only for the event loop, but for `loads`, which blocks."""

    def __init__(self, found: Sequence[FoundCard] = (), ask: Ask = ask) -> None:
        self.found = tuple(found)
        self._ask = ask
        self.on_change: Callable[[], None] = lambda: None
        """Called when a card can't be used any more."""
        self._unusable: dict[str, str] = {}
        self._taken: dict[str, tuple[FoundCard, ...]] = {}
        self._seen: list[CardLoad] = [one.now for one in self.found]
        self._look_at = 0.0

    @property
    def cards(self) -> tuple[Card, ...]:
        """All cards, and which get no work."""
        return tuple(replace(one.card, unusable=self._unusable.get(one.card.id, "")) for one in self.found)

    def take(self, name: str, count: int, memory_mib: int = 0) -> tuple[FoundCard, ...] | None:
        """Give an attempt so many cards of one kind, the smallest that will do; None when they are not free."""
        taken = {one.card.id for cards in self._taken.values() for one in cards} | self._unusable.keys()
        free = [one for one in self.found if one.card.id not in taken and one.card.memory_mib >= memory_mib]
        for kind in _KINDS:
            same = sorted((one for one in free if one.card.kind == kind), key=lambda one: one.card.memory_mib)
            if len(same) >= count > 0:
                self._taken[name] = tuple(same[:count])
                return self._taken[name]
        return None

    def release(self, name: str) -> None:
        """Nothing of the attempt runs any more."""
        self._taken.pop(name, None)

    def mark_unusable(self, cards: Sequence[FoundCard], reason: str) -> None:
        """These get no work until HPCServer starts again."""
        for one in cards:
            log.warning("a graphics card can't be used and gets no work until HPCServer starts again",
                        card=one.card.name, id=one.card.id, reason=reason)  # fmt: skip
            self._unusable[one.card.id] = reason[:LONGEST_TEXT]
        self.on_change()

    @property
    def drawable(self) -> tuple[FoundCard, ...]:
        """The card on which those may draw that get none of their own: the one with the fewest users."""
        used = {one.card.id for cards in self._taken.values() for one in cards}
        usable = [one for one in self.found if one.card.id not in self._unusable]
        return tuple(sorted(usable, key=lambda one: one.card.id in used)[:1])

    def loads(self) -> tuple[CardLoad, ...]:
        """How all cards are doing now. Blocks, once in `LOOK_S`."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_S
            told = {}
            if any(one.card.kind == CardKind.CUDA for one in self.found):
                told = {one.card.id: one.now for one in tools.nvidia(self._ask(tools.NVIDIA))}
                # A driver that hangs must not hold up every heartbeat.
                self._look_at += 0.0 if told else QUIET_S
            self._seen = [told.get(one.card.id) or _by_system(one) for one in self.found]
        return tuple(replace(one, unusable=self._unusable.get(one.id, "")) for one in self._seen)


def _by_system(found: FoundCard) -> CardLoad:
    if not found.bus:
        return CardLoad(found.card.id)
    load, used = tools.system_load(Path("/sys/bus/pci/devices", found.bus))
    return CardLoad(found.card.id, load, used)


def variables(cards: Sequence[FoundCard]) -> dict[str, str]:
    """The environment of an engine that may use these cards and no others."""
    told = {**NONE, CARDS: ",".join(f"{one.card.kind}:{one.card.id}" for one in cards)}
    of_kind = {kind: [one for one in cards if one.card.kind == kind] for kind in _KINDS}
    if cuda := of_kind[CardKind.CUDA]:
        # Numbers are counted by speed unless they are told to follow the bus, as nvidia-smi does.
        told |= {"CUDA_VISIBLE_DEVICES": _named(cuda), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if hip := of_kind[CardKind.HIP]:
        # The second variable counts among those that the first one leaves.
        told |= {"ROCR_VISIBLE_DEVICES": _named(hip), "HIP_VISIBLE_DEVICES": ",".join(map(str, range(len(hip))))}
    if oneapi := of_kind[CardKind.ONEAPI]:
        told["ONEAPI_DEVICE_SELECTOR"] = "level_zero:" + ",".join(str(one.index) for one in oneapi)
    return told


def _named(cards: Sequence[FoundCard]) -> str:
    uuid = re.compile(r"(GPU|MIG)-[\w-]+")
    return ",".join(one.card.id if uuid.fullmatch(one.card.id) else str(one.index) for one in cards)


def device_files(cards: Sequence[FoundCard], root: Path = Path("/")) -> tuple[str, ...]:
    """What an engine in a box must open for these cards. Of a card whose place nobody knows, all of its maker's."""
    found: dict[str, None] = {}
    for one in cards:
        drawing = glob.glob(f"{root}/sys/bus/pci/devices/{one.bus}/drm/*") if one.bus else []
        nodes = [f"/dev/dri/{Path(place).name}" for place in sorted(drawing)]
        if one.card.kind == CardKind.CUDA:
            nodes += [*_SHARED, *_below(root, "/dev/nvidia-caps"), *_nvidia(one.bus, root)]
        else:
            nodes += ["/dev/kfd"] * (one.card.kind == CardKind.HIP) + ([] if drawing else ["/dev/dri"])
        found |= dict.fromkeys(nodes)
    return tuple(path for path in found if os.path.exists(f"{root}{path}".replace("//", "/")))


def _nvidia(bus: str, root: Path) -> list[str]:
    """The device file of a card, by the number that the driver gave it."""
    try:
        about = (root / "proc/driver/nvidia/gpus" / bus / "information").read_text() if bus else ""
    except OSError:
        about = ""
    minor = re.search(r"^Device Minor:\s*(\d{1,3})\s*$", about, re.MULTILINE)
    return [f"/dev/nvidia{minor[1]}"] if minor else _below(root, "/dev/nvidia[0-9]*")


def _below(root: Path, pattern: str) -> list[str]:
    return [f"/{Path(path).relative_to(root)}" for path in sorted(glob.glob(f"{root}{pattern}".replace("//", "/")))]
