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

    def __init__(self, runner: Runner, journal: Journal, welcome: Welcome) -> None:
        self._runner = runner
        self._journal = journal
        self._offsets = {attempt: welcome.log_offsets.get(str(attempt), 0) for attempt in welcome.keep}
        """How far each was sent; the one that waited longest comes first."""
        self._budget = float(BURST)
        self._at = 0.0
        for attempt in set(runner.logs) - set(welcome.keep):
            runner.drop_log(attempt)

    def take(self, now: float) -> Log | None:
        """The next piece to send, if there is one and the budget (bytes) allows it."""
        self._budget = min(BURST, self._budget + (now - self._at) * BYTES_PER_S)
        self._at = now
        if self._budget <= 0:
            return None
        for attempt in self._runner.logs:
            self._offsets.setdefault(attempt, 0)
        for attempt in list(self._offsets):
            if (piece := self._piece(attempt)) is not None:
                return piece
            if attempt not in self._journal.held and attempt not in self._runner.attempts:
                del self._offsets[attempt]  # it was sent and belongs to nothing that is still held
                if attempt in self._runner.logs:
                    self._runner.drop_log(attempt)
        return None

    def finish(self, attempt: int) -> Iterator[Log]:
        """What is left of the log of an attempt that has ended, up to a bound."""
        sent = 0
        while sent < FAREWELL and (piece := self._piece(attempt)) is not None:
            sent += len(piece.text)
            yield piece

    def patience(self) -> float:
        """Seconds until it is worth asking again."""
        if self._budget <= 0:
            return PIECE / BYTES_PER_S
        return POLL_S if self._runner.logs else 60.0

    def _piece(self, attempt: int) -> Log | None:
        offset, output = self._offsets.get(attempt, 0), self._runner.logs.get(attempt)
        if output is None or offset >= output.size:
            return None
        begin, text = output.read(offset, PIECE)
        if not text:
            return None
        size = len(text.encode())
        self._offsets.pop(attempt, None)
        self._offsets[attempt] = begin + size
        self._budget -= size
        return Log(attempt, begin, text)
