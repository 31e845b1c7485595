"""Graphics cards: what a machine says of each, and what a task's argument `device` asks for. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Final

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.needs import MAX_GPUS, Needs

DEVICE: Final = "device"
"""The argument of an engine that says on what it renders. An engine without it gets no cards of its own, unless a task
asks for so many: it sees all of them."""
NO_DEVICE: Final = "no_device"
"""The failure class of an engine that found no card where it was given one."""
LONGEST_TEXT: Final = 200
DRAWING: Final = frozenset({"BLENDER_EEVEE", "BLENDER_EEVEE_NEXT", "BLENDER_WORKBENCH", ""})
"""Renderers that draw as a game does: any card will do, and many can share one. "" is one that nobody knows."""


class CardKind(StrEnum):
    """What programs speak to a card with."""

    CUDA = "cuda"
    HIP = "hip"
    ONEAPI = "oneapi"
    METAL = "metal"


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card of a machine. `id` stays the same over restarts: the maker's UUID where there is one, else its
    number. `memory_mib`: 0 when nobody can tell. `unusable`: why it gets no work, "" when it does."""

    id: str
    name: str = ""
    kind: str = CardKind.CUDA.value
    memory_mib: int = 0
    unusable: str = ""


@dataclass(frozen=True, slots=True)
class CardLoad:
    """How a card is doing. `load`: how busy it is, 0 to 1, -1 when nobody can tell."""

    id: str
    load: float = -1.0
    memory_used_mib: int = 0
    unusable: str = ""


def check_cards(cards: Sequence[Card | CardLoad]) -> None:
    """What a machine says of its cards has bounds, and each an id of its own. `InvalidRequest` for what can't be."""
    said = [value for one in cards for value in asdict(one).values()]
    shown = all(len(one) <= LONGEST_TEXT if isinstance(one, str) else -1 <= one < 2**40 for one in said)
    if not shown or len(cards) > MAX_GPUS or len({one.id for one in cards}) < len(cards):
        raise InvalidRequest("What a machine says of its graphics cards can't be.")


def with_device(needs: Needs, values: Mapping[str, str], scene: Mapping[str, object]) -> Needs:
    """The needs with what the argument `device` (auto, cpu, gpu) asks for; `scene`: what the scene says of itself, its
    `device` and `engine` among it. `auto` is what the scene says: a card, where one is to be had. `InvalidRequest` for
    the CPU and cards at once."""
    device = values.get(DEVICE)
    if device is None:
        return needs
    if device == "cpu" and needs.gpus:
        raise InvalidRequest(
            "Argument device is cpu, but the task needs graphics cards: leave out device=cpu, or the cards.",
            code="invalid_value",
        )
    engine = values.get("engine") or scene.get("engine") or ""
    if device == "gpu":
        return replace(needs, gpus=max(1, needs.gpus), prefers_gpu=False)
    prefers = device == "auto" and not needs.gpus and engine == "CYCLES" and scene.get("device") == "gpu"
    return replace(needs, prefers_gpu=prefers, draws=engine in DRAWING)
