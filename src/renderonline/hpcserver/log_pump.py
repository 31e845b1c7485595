"""Sends the logs of attempts over the link: resumed by offset, within a budget, in small pieces (R5.3)."""

from collections.abc import Iterator
from typing import Final

from renderonline.hpcserver.journal import Journal
from renderonline.hpcserver.runner import Runner
from renderonline.protocol.link import Log, Welcome

PIECE: Final = 16 * 1024
"""A report waits at most for so many bytes of log."""
BURST: Final = 256 * 1024
BYTES_PER_S: Final = 512 * 1024
FAREWELL: Final = 64 * 1024
"""So much of its log goes before an attempt's end, so that the log of a short attempt is there when it is over."""
POLL_S: Final = 0.5


class LogPump:
    """What of each log was sent over one link."""

    def __init__(self, runner: Runner, welcome: Welcome, journal: Journal) -> None:
        self._runner = runner
        self._journal = journal
        self._offsets = {attempt: welcome.log_offsets.get(str(attempt), 0) for attempt in welcome.keep}
        self._served: dict[int, int] = {}
        """In which turn each was served last: the one that waited longest is next."""
        self._turn = 0
        self._budget = float(BURST)
        self._at = 0.0
        for attempt in set(runner.logs()) - set(welcome.keep):
            runner.drop_log(attempt)

    def take(self, now: float) -> Log | None:
        """The next piece to send, if there is one and the budget (bytes) allows it."""
        self._budget = min(BURST, self._budget + (now - self._at) * BYTES_PER_S)
        self._at = now
        if self._budget <= 0:
            return None
        for attempt in sorted(self._runner.logs(), key=lambda attempt: self._served.get(attempt, 0)):
            piece = self._piece(attempt)
            if piece is not None:
                self._turn += 1
                self._served[attempt] = self._turn
                return piece
        self._tidy()
        return None

    def finish(self, attempt: int) -> Iterator[Log]:
        """What is left of the log of an attempt that has ended, up to a bound."""
        sent = 0
        while sent < FAREWELL and attempt in self._runner.logs():
            piece = self._piece(attempt)
            if piece is None:
                return
            sent += len(piece.text)
            yield piece

    def patience(self, now: float) -> float:
        """Seconds until it is worth asking again."""
        if self._budget <= 0:
            return PIECE / BYTES_PER_S
        return POLL_S if self._runner.logs() else 60.0

    def _piece(self, attempt: int) -> Log | None:
        offset = self._offsets.setdefault(attempt, 0)
        if offset >= self._runner.log_size(attempt):
            return None
        begin, text = self._runner.read_log(attempt, offset, PIECE)
        if not text:
            return None
        size = len(text.encode())
        self._offsets[attempt] = begin + size
        self._budget -= size
        return Log(attempt, begin, text)

    def _tidy(self) -> None:
        """Delete the logs that were sent and belong to nothing that is still held."""
        held = {held.attempt for held in self._journal.held()}
        for attempt in set(self._runner.logs()) - held:
            if not self._runner.is_live(attempt):
                self._runner.drop_log(attempt)
                self._offsets.pop(attempt, None)
                self._served.pop(attempt, None)
