"""The kinds of box that keep a program to what it was given. Pure; `renderonline.sandbox` makes them."""

from enum import StrEnum


class BoxKind(StrEnum):
    """What keeps an engine to its own task; ordered, the weakest first.

    `NONE`: nothing, an engine may do what the account may. `LANDLOCK`: files, network and sockets of others are
    refused, other processes can be seen but not touched. `BWRAP`: nothing else is there at all.
    """

    NONE = "none"
    LANDLOCK = "landlock"
    BWRAP = "bwrap"

    @property
    def rank(self) -> int:
        return tuple(BoxKind).index(self)

    def __lt__(self, other: str) -> bool:
        return self.rank < BoxKind(other).rank

    def __le__(self, other: str) -> bool:
        return self.rank <= BoxKind(other).rank

    def __gt__(self, other: str) -> bool:
        return self.rank > BoxKind(other).rank

    def __ge__(self, other: str) -> bool:
        return self.rank >= BoxKind(other).rank
