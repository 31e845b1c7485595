"""Who is next, where many ask for what only a few may do at once: users in turn, one thing of each at a time
(R14 Authority first)."""

from collections import deque
from typing import Generic, TypeVar

Asker = TypeVar("Asker")


class Turns(Generic[Asker]):
    """Askers of users. `at_once`: how many have their turn at the same time, all users together.

    A user who has just had a turn comes after all others who wait; within a user the oldest asker is first.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._waiting: dict[int, deque[Asker]] = {}
        self._having: set[int] = set()

    def ask(self, user_id: int, asker: Asker) -> None:
        """Wait for a turn."""
        self._waiting.setdefault(user_id, deque()).append(asker)

    def give_up(self, user_id: int, asker: Asker) -> None:
        """Wait no more; nothing happens when the turn has come already."""
        askers = self._waiting.get(user_id, deque())
        if asker in askers:
            askers.remove(asker)
        if not askers:
            self._waiting.pop(user_id, None)

    def next(self) -> tuple[int, Asker] | None:
        """The user and the asker whose turn begins now; None when nobody's does."""
        if len(self._having) >= self._at_once:
            return None
        user_id = next((one for one in self._waiting if one not in self._having), None)
        if user_id is None:
            return None
        askers = self._waiting.pop(user_id)
        asker = askers.popleft()
        if askers:
            self._waiting[user_id] = askers  # behind all others
        self._having.add(user_id)
        return user_id, asker

    def end(self, user_id: int) -> None:
        """The user's turn is over."""
        self._having.discard(user_id)
