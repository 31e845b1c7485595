"""The graphics cards of this machine: found once at the start, reserved for attempts, each card for one at a time.

First the readers of what the makers' tools and the system print (pure, but for `from_system`), then `find_cards` and
`Rack`, then the environment variables and device files that let an engine use its cards and no others. Variables name a
card by its UUID where it has one. When HPCServer is killed its engines die with it (R8 Process trees), so that nothing
of this has to be stored.

Sources: `nvidia-smi --help-query-gpu`; AMD SMI and ROCm SMI command line guides; Linux `Documentation/gpu/amdgpu`
(`mem_info_vram_total`, `gpu_busy_percent`, `unique_id`); Intel XPU System Management Interface user guide;
`system_profiler(8)`.
"""

import glob
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import structlog

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.machines import LONGEST_TEXT, Card, CardKind, CardLoad
from renderonline.farm.needs import MAX_GPUS

log = structlog.get_logger(__name__)

MIB: Final = 1 << 20
NVIDIA: Final = (
    "nvidia-smi", "--query-gpu=uuid,name,memory.total,pci.bus_id,utilization.gpu,memory.used",
    "--format=csv,noheader,nounits",
)  # fmt: skip
AMD: Final = ("amd-smi", "static", "--asic", "--bus", "--vram", "--json")
ROCM: Final = ("rocm-smi", "--showproductname", "--showmeminfo", "vram", "--showuniqueid", "--showbus", "--json")
INTEL: Final = ("xpu-smi", "discovery", "-j")
APPLE: Final = ("system_profiler", "SPDisplaysDataType", "-json")
_VENDORS: Final = {"0x1002": CardKind.HIP, "0x8086": CardKind.ONEAPI}
_UNITS: Final = {"B": 1 / MIB, "KB": 1 / 1024, "MB": 1.0, "GB": 1024.0}
PROBE_S: Final = 10.0
"""Time for each tool; a driver that hangs must not keep the machine from rendering."""
LOOK_S: Final = 5.0
"""The shortest time between two looks at the load of the cards."""
QUIET_S: Final = 60.0
"""How long a tool that did not answer is not run again."""
CARDS: Final = "RENDERONLINE_CARDS"
"""The variable with the cards of an engine (`kind:id`, commas between), "" for none; not set when it may use all."""
NONE: Final[Mapping[str, str]] = {
    "CUDA_VISIBLE_DEVICES": "-1",
    "HIP_VISIBLE_DEVICES": "-1",
    "ROCR_VISIBLE_DEVICES": "-1",
    "ONEAPI_DEVICE_SELECTOR": "opencl:cpu",
}
"""Variables that hide the cards of each maker."""
_SHARED: Final = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
"""Device files that a program needs for any card of NVIDIA."""
_KINDS: Final = tuple(kind.value for kind in CardKind)

Ask = Callable[[Sequence[str]], str]


@dataclass(frozen=True, slots=True)
class FoundCard:
    """A card as a tool reports it. `index`: its number among the cards of its kind, as its maker's programs count;
    `bus`: its address on the PCI bus (`0000:01:00.0`), "" when that is unknown."""

    card: Card
    index: int = 0
    bus: str = ""
    load: float = -1.0
    memory_used_mib: int = 0

    @property
    def now(self) -> CardLoad:
        """How it was doing when the tool was asked."""
        return CardLoad(self.card.id, self.load, self.memory_used_mib)


def nvidia(text: str) -> list[FoundCard]:
    """Read the output of `NVIDIA`: a line for each card, fields between commas, `[N/A]` for an unknown value."""
    found: list[FoundCard] = []
    for line in text.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) != 6 or not words[0].startswith("GPU-"):
            continue
        uuid, name, total, bus, load, used = words
        card = Card(_short(uuid), _short(name), CardKind.CUDA.value, _whole(total))
        busy = _number(load)
        found.append(FoundCard(card, len(found), _bus(bus), -1.0 if busy is None else busy / 100, _whole(used)))
    return found


def amd_cards(text: str) -> list[FoundCard]:
    """Read the output of `AMD`."""
    found: list[FoundCard] = []
    for one in _list(_json(text), "gpu_data"):
        asic, vram, bus = (_table(one.get(part)) for part in ("asic", "vram", "bus"))
        serial = str(asic.get("asic_serial", "")).removeprefix("0x").lower()
        index = _whole(one.get("gpu"))
        name = str(asic.get("market_name") or "AMD graphics card")
        card = Card(_amd_id(serial, index), _short(name), CardKind.HIP.value, _mib(vram.get("size")))
        found.append(FoundCard(card, index, _bus(str(bus.get("bdf", "")))))
    return found


def rocm(text: str) -> list[FoundCard]:
    """Read the output of `ROCM`, an older tool: `{"card0": {"Unique ID": …}}`."""
    found: list[FoundCard] = []
    for called, facts in _table(_json(text)).items():
        number = re.fullmatch(r"card(\d{1,3})", str(called))
        if number is None or not isinstance(facts, Mapping):
            continue
        words = {key.casefold(): str(value) for key, value in _table(facts).items()}
        serial = words.get("unique id", "").removeprefix("0x").lower()
        name = words.get("card series") or words.get("card model") or "AMD graphics card"
        total, used = (_whole(words.get(f"vram total {what}memory (b)")) // MIB for what in ("", "used "))
        card = Card(_amd_id(serial, int(number[1])), _short(name), CardKind.HIP.value, total)
        found.append(FoundCard(card, int(number[1]), _bus(words.get("pci bus", "")), -1.0, used))
    return found


def intel_cards(text: str) -> list[FoundCard]:
    """Read the output of `INTEL`, which lists cards, but no graphics built into processors."""
    found: list[FoundCard] = []
    for one in _list(_json(text), "device_list"):
        if str(one.get("device_type", "GPU")).upper() != "GPU":
            continue
        index, uuid = _whole(one.get("device_id")), str(one.get("uuid") or "")
        memory = _whole(one.get("memory_physical_size_byte")) // MIB
        card = Card(
            _short(uuid) or f"intel-{index}", _short(str(one.get("device_name", ""))), CardKind.ONEAPI.value, memory
        )
        found.append(FoundCard(card, index, _bus(str(one.get("pci_bdf_address", "")))))
    return found


def apple(text: str) -> list[FoundCard]:
    """Read the output of `APPLE`: cards with Metal. An Apple processor's card shares the memory of the computer, so its
    own size is 0."""
    found: list[FoundCard] = []
    for one in _list(_json(text), "SPDisplaysDataType"):
        metal = str(one.get("spdisplays_mtlgpufamilysupport") or one.get("spdisplays_metal") or "")
        if not metal or "notsupported" in metal.casefold():
            continue
        name, index = str(one.get("sppci_model") or one.get("_name") or "Apple graphics"), len(found)
        memory = _mib(one.get("spdisplays_vram") or one.get("spdisplays_vram_shared"))
        found.append(FoundCard(Card(f"metal-{index}", _short(name), CardKind.METAL.value, memory), index))
    return found


def from_system(root: Path = Path("/sys/class/drm")) -> list[FoundCard]:
    """Cards of AMD and Intel that Linux itself lists, in the order of the PCI bus. Those of Intel only with memory of
    their own: Cycles does not use graphics built into processors."""
    found: list[FoundCard] = []
    places = {place.resolve(): place for place in (card / "device" for card in root.glob("card[0-9]*"))}
    numbers = dict.fromkeys(CardKind, 0)
    for device, place in sorted(places.items(), key=lambda one: one[0].name):
        kind = _VENDORS.get(_text(place / "vendor"))
        total = _whole(_text(place / "mem_info_vram_total")) or _whole(_text(place.parent / "lmem_total_bytes"))
        if kind is None or not total:
            continue
        index = numbers[kind]
        numbers[kind] += 1
        maker = "AMD" if kind is CardKind.HIP else "Intel"
        name = _text(place / "product_name") or f"{maker} graphics card {_text(place / 'device')}".strip()
        card_id = _amd_id(_text(place / "unique_id"), index) if kind is CardKind.HIP else f"intel-{index}"
        load, used = system_load(place)
        found.append(FoundCard(Card(card_id, _short(name), kind.value, total // MIB), index, device.name, load, used))
    return found


def system_load(device: Path) -> tuple[float, int]:
    """How busy a card is (0 to 1, -1: unknown) and how many MiB of it are in use, as Linux reports for AMD's cards."""
    busy = _number(_text(device / "gpu_busy_percent"))
    return -1.0 if busy is None else busy / 100, _whole(_text(device / "mem_info_vram_used")) // MIB


def card_by_hand(setting: str) -> FoundCard:
    """A card as the setting `Cards` names it: `KIND:ID[:MIB[:NAME]]`, such as `cuda:0:24576:RTX 4090`. Raises
    `InvalidRequest`."""
    kind, _, rest = setting.partition(":")
    matched = re.fullmatch(r"([\w-]{1,64})(?::(\d{1,9}))?(?::(.{1,200}))?", rest)
    if kind not in set(CardKind) or matched is None:
        raise InvalidRequest(
            f"Cards names {setting}; write KIND:ID, KIND:ID:MIB or KIND:ID:MIB:NAME with one of"
            f" {', '.join(CardKind)}, for instance cuda:0:24576:RTX 4090, or none."
        )
    card_id = matched[1]
    index = int(card_id) if card_id.isdecimal() and len(card_id) < 4 else 0
    return FoundCard(Card(card_id, matched[3] or f"{kind} {card_id}", kind, int(matched[2] or 0)), index)


def visible(found: list[FoundCard], environment: Mapping[str, str]) -> list[FoundCard]:
    """The cards that this program may use itself: variables that hide cards from it (a batch system sets them) apply to
    its engines too."""
    kept: list[FoundCard] = []
    for one in found:
        names = {
            CardKind.CUDA.value: ("CUDA_VISIBLE_DEVICES",),
            CardKind.HIP.value: ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
            CardKind.ONEAPI.value: ("ZE_AFFINITY_MASK",),
        }.get(one.card.kind, ())
        limits = [environment[name] for name in names if name in environment]
        if all(any(_names(word.strip(), one) for word in words.split(",")) for words in limits):
            kept.append(one)
    return kept


def _names(word: str, found: FoundCard) -> bool:
    if word.isdecimal():
        return int(word) == found.index
    return word.startswith("GPU-") and found.card.id.startswith(word)


def joined(by_tool: list[FoundCard], by_system: list[FoundCard]) -> list[FoundCard]:
    """The cards that a tool lists, with load and memory use from the system; the system's cards when it lists none."""
    there = {one.bus: one for one in by_system if one.bus}
    same = ((one, there.get(one.bus)) for one in by_tool)
    return [one if other is None else replace(one, load=other.load, memory_used_mib=other.memory_used_mib)
            for one, other in same] or by_system  # fmt: skip


def _amd_id(serial: str, index: int) -> str:
    """The id of an AMD card in its maker's programs: `GPU-` and its serial number, 16 hexadecimal digits."""
    known = re.fullmatch(r"[0-9a-f]{1,16}", serial) and int(serial, 16)
    return f"GPU-{int(serial, 16):016x}" if known else f"amd-{index}"


def _bus(text: str) -> str:
    """An address on the PCI bus as Linux writes it; nvidia-smi writes eight digits in front."""
    match = re.fullmatch(r"(?:0{4})?([0-9a-f]{4}):([0-9a-f]{2}:[0-9a-f]{2}\.[0-7])", text.strip().lower())
    return f"{match[1]}:{match[2]}" if match else ""


def _short(text: str) -> str:
    return "".join(letter for letter in text.strip() if letter.isprintable())[:LONGEST_TEXT]


def _number(text: object) -> float | None:
    match = re.match(r"\s*(\d{1,18}(?:\.\d{1,6})?)", str(text))
    return float(match[1]) if match else None


def _whole(text: object) -> int:
    return int(_number(text) or 0)


def _mib(size: object) -> int:
    """A size with its unit: `24 GB`, `{"value": 24560, "unit": "MB"}`; a bare number is in MiB."""
    if isinstance(size, Mapping):
        size = f"{size.get('value', '')} {size.get('unit', 'MB')}"
    match = re.match(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([KMG]?B)?", str(size or ""), re.IGNORECASE)
    return int(float(match[1]) * _UNITS[(match[2] or "MB").upper()]) if match else 0


def _json(text: str) -> object:
    """The JSON that a tool printed; some print a warning in front of it."""
    for begin in ("[", "{"):
        at = text.find(begin)
        if at >= 0 and not text[:at].strip(" \n\r\t").startswith(("{", "[")):
            try:
                return json.loads(text[at:])
            except ValueError:
                continue
    return None


def _list(content: object, key: str) -> Iterator[Mapping[str, Any]]:
    """The objects of a list, which may be the value of a key."""
    if isinstance(content, Mapping):
        content = content.get(key)
    yield from (one for one in content if isinstance(one, Mapping)) if isinstance(content, list) else ()


def _table(content: object) -> Mapping[str, Any]:
    return content if isinstance(content, Mapping) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def ask(command: Sequence[str]) -> str:
    """The output of a tool; "" when it does not exist, fails or hangs. Blocks."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_S, check=True)
    except FileNotFoundError:
        return ""
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("graphics cards can't be found with this tool", tool=command[0], reason=str(error)[:200])
        return ""
    return done.stdout.decode(errors="replace")


def find_cards(by_hand: Sequence[str] = (), *, ask: Ask = ask, environment: Mapping[str, str] = os.environ) -> "Rack":
    """The cards of this computer, or those of the setting `Cards` (`none`: no cards). Blocks."""
    if by_hand:
        named = [] if tuple(by_hand) == ("none",) else [card_by_hand(one) for one in by_hand]
        return Rack(_numbered(named), ask)
    system = from_system()
    amd = [one for one in system if one.card.kind == CardKind.HIP]
    intel = [one for one in system if one.card.kind == CardKind.ONEAPI]
    by_tool = amd_cards(ask(AMD)) or rocm(ask(ROCM)) if amd or not system else []
    found = [*nvidia(ask(NVIDIA)), *joined(by_tool, amd)]
    found += joined(intel_cards(ask(INTEL)), intel) + apple(ask(APPLE))
    return Rack(_numbered(visible(found, environment)[:MAX_GPUS]), ask)


def _numbered(found: Sequence[FoundCard]) -> list[FoundCard]:
    """The cards, each with an id of its own: two cards of one id would be reserved twice."""
    known: dict[str, FoundCard] = {}
    for one in found:
        card_id = one.card.id if one.card.id not in known else f"{one.card.id}-{len(known)}"
        known[card_id] = replace(one, card=replace(one.card, id=card_id))
    return list(known.values())


class Rack:
    """Which attempt has which cards. For the event loop only, except `loads`, which blocks."""

    def __init__(self, found: Sequence[FoundCard] = (), ask: Ask = ask) -> None:
        self.found = tuple(found)
        self._ask = ask
        self.on_change: Callable[[], None] = lambda: None
        """Called when a card turned out to be unusable."""
        self._unusable: dict[str, str] = {}
        self._taken: dict[str, tuple[FoundCard, ...]] = {}
        self._seen: list[CardLoad] = [one.now for one in self.found]
        self._look_at = 0.0

    @property
    def cards(self) -> tuple[Card, ...]:
        """All cards, with the reason of those that are unusable."""
        return tuple(replace(one.card, unusable=self._unusable.get(one.card.id, "")) for one in self.found)

    def take(self, name: str, count: int, memory_mib: int = 0) -> tuple[FoundCard, ...] | None:
        """Reserve `count` cards of one kind, the smallest that suffice, for an attempt; None when they are not free."""
        taken = {one.card.id for cards in self._taken.values() for one in cards} | self._unusable.keys()
        free = [one for one in self.found if one.card.id not in taken and one.card.memory_mib >= memory_mib]
        for kind in _KINDS:
            same = sorted((one for one in free if one.card.kind == kind), key=lambda one: one.card.memory_mib)
            if len(same) >= count > 0:
                self._taken[name] = tuple(same[:count])
                return self._taken[name]
        return None

    def release(self, name: str) -> None:
        """Free the cards of an attempt of which nothing runs any more."""
        self._taken.pop(name, None)

    def mark_unusable(self, cards: Sequence[FoundCard], reason: str) -> None:
        """Give these cards no work until HPCServer starts again."""
        for one in cards:
            log.warning("a graphics card can't be used and gets no work until HPCServer starts again",
                        card=one.card.name, id=one.card.id, reason=reason)  # fmt: skip
            self._unusable[one.card.id] = reason[:LONGEST_TEXT]
        self.on_change()

    @property
    def drawable(self) -> tuple[FoundCard, ...]:
        """The card on which engines may draw that get none of their own: one that no attempt has, if there is one."""
        used = {one.card.id for cards in self._taken.values() for one in cards}
        usable = [one for one in self.found if one.card.id not in self._unusable]
        return tuple(sorted(usable, key=lambda one: one.card.id in used)[:1])

    def loads(self) -> tuple[CardLoad, ...]:
        """The load of all cards now, at most `LOOK_S` old. Blocks."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_S
            reported = {}
            if any(one.card.kind == CardKind.CUDA for one in self.found):
                reported = {one.card.id: one.now for one in nvidia(self._ask(NVIDIA))}
                # A driver that hangs must not hold up every heartbeat.
                self._look_at += 0.0 if reported else QUIET_S
            self._seen = [reported.get(one.card.id) or _by_system(one) for one in self.found]
        return tuple(replace(one, unusable=self._unusable.get(one.id, "")) for one in self._seen)


def _by_system(found: FoundCard) -> CardLoad:
    if not found.bus:
        return CardLoad(found.card.id)
    load, used = system_load(Path("/sys/bus/pci/devices", found.bus))
    return CardLoad(found.card.id, load, used)


def variables(cards: Sequence[FoundCard]) -> dict[str, str]:
    """The environment of an engine that may use these cards and no others."""
    found = {**NONE, CARDS: ",".join(f"{one.card.kind}:{one.card.id}" for one in cards)}
    of_kind = {kind: [one for one in cards if one.card.kind == kind] for kind in _KINDS}
    if cuda := of_kind[CardKind.CUDA]:
        # CUDA numbers cards by speed unless it is set to follow the bus, as nvidia-smi does.
        found |= {"CUDA_VISIBLE_DEVICES": _named(cuda), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    if hip := of_kind[CardKind.HIP]:
        # The second variable counts among those that the first one leaves.
        found |= {"ROCR_VISIBLE_DEVICES": _named(hip), "HIP_VISIBLE_DEVICES": ",".join(map(str, range(len(hip))))}
    if oneapi := of_kind[CardKind.ONEAPI]:
        found["ONEAPI_DEVICE_SELECTOR"] = "level_zero:" + ",".join(str(one.index) for one in oneapi)
    return found


def _named(cards: Sequence[FoundCard]) -> str:
    uuid = re.compile(r"(GPU|MIG)-[\w-]+")
    return ",".join(one.card.id if uuid.fullmatch(one.card.id) else str(one.index) for one in cards)


def device_files(cards: Sequence[FoundCard], root: Path = Path("/")) -> tuple[str, ...]:
    """The device files that an engine in a box needs for these cards; for a card without a known address all of its
    maker's."""
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
    """The device file of an NVIDIA card, by its number in the driver."""
    try:
        about = (root / "proc/driver/nvidia/gpus" / bus / "information").read_text() if bus else ""
    except OSError:
        about = ""
    minor = re.search(r"^Device Minor:\s*(\d{1,3})\s*$", about, re.MULTILINE)
    return [f"/dev/nvidia{minor[1]}"] if minor else _below(root, "/dev/nvidia[0-9]*")


def _below(root: Path, pattern: str) -> list[str]:
    return [f"/{Path(path).relative_to(root)}" for path in sorted(glob.glob(f"{root}{pattern}".replace("//", "/")))]
