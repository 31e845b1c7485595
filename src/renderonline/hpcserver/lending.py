"""The graphics cards of one attempt: which it got, what it sees of them, and whether they work."""

from collections.abc import Callable, Sequence
from pathlib import Path

from renderonline.farm.cards import NO_DEVICE
from renderonline.hpcserver.card_rack import Rack, device_files, variables
from renderonline.hpcserver.card_tools import FoundCard
from renderonline.hpcserver.kernels import ENGINE, Kernels
from renderonline.hpcserver.outcomes import Ending, handed_back
from renderonline.protocol.link import Assign

Failure = tuple[str, str] | None
"""A failure class and the line that told it."""


class Lending:
    """What an assignment gets of this machine's cards, from `take` to `give_back`. `say` writes into the attempt's
    log."""

    def __init__(self, assign: Assign, rack: Rack, kernels: Kernels, say: Callable[[Sequence[str]], None]) -> None:
        self._assign, self._rack, self._kernels, self._say = assign, rack, kernels, say
        self._name = str(assign.attempt)
        self._cards: Sequence[FoundCard] | None = None
        """None: it may use all that this machine has."""

    def take(self) -> Ending | None:
        """Take the cards that it is to have for itself; an ending when they are not free."""
        wanted = self._assign.cards
        if wanted < 0:
            return None
        self._cards = self._rack.take(self._name, wanted, self._assign.card_memory_mib) if wanted else ()
        return handed_back("The graphics cards of this machine are taken.") if self._cards is None else None

    def give_back(self) -> None:
        """Nothing of the attempt runs any more."""
        self._rack.release(self._name)

    def devices(self) -> Sequence[str] | None:
        """The device files that it may open in its box; None: those of all cards. Blocks."""
        cards = self._cards
        if cards == () and self._assign.draws:
            cards = self._rack.drawable or None
            told = cards[0].card.name if cards else "whatever this machine draws with"
            self._say([f"RenderOnline: it has no graphics card of its own, and may draw on {told} as others do."])
        return None if cards is None else device_files(cards)

    def environment(self, place: Path) -> dict[str, str]:
        """The variables that tell its engine of its cards, and of what was compiled for them. Blocks."""
        if self._cards is None:
            return {}
        return variables(self._cards) | (self._kernels.hand_out(place) if self._cards else {})

    async def examined(self, failure: Failure) -> Failure:
        """The failure as it is believed. An engine that says that it can't use its cards may only say so because its
        scene does: when Blender, run by us, can't use them either, they get no work any more."""
        if failure is None or failure[0] != NO_DEVICE:
            return failure
        cards = self._cards if self._cards and self._assign.engine.casefold() == ENGINE else ()
        refused = [card for card in cards if await self._kernels.refuses((card,))]
        if refused:
            self._rack.mark_unusable(refused, failure[1])
        return failure if refused else ("error", failure[1])
