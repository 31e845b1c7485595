"""Ids of chunks and attempts, made before the transaction that uses them (R3.2), from blocks reserved in table `farm`.

A block that a program took and did not use up is lost; no id is ever used twice. Attempt ids begin at 2^40 plus a
random offset of the farm, so that no id of another farm or of an adopted task is among them (R7.1).
"""

import asyncio
import secrets
from dataclasses import dataclass
from functools import partial
from typing import Final

from sqlalchemy import Connection, select

from renderonline.database.door import Database
from renderonline.database.schema import farm
from renderonline.farm.errors import NotAvailable

BLOCK: Final = 100_000
FIRST_ATTEMPT: Final = 2**40
_OFFSETS: Final = 2**52

CHUNKS: Final = "next_chunk_id"
ATTEMPTS: Final = "next_attempt_id"


def reserve(connection: Connection, key: str, count: int) -> int:
    """Take `count` numbers from the counter `key` of table `farm`; gives the first. The counter must exist."""
    first = connection.scalar(select(farm.c.value).where(farm.c.key == key).with_for_update())
    if first is None:
        raise NotAvailable("The database is not ready. Run `renderonline db migrate` first.")
    connection.execute(farm.update().where(farm.c.key == key).values(value=str(int(first) + count)))
    return int(first)


def make_counters(connection: Connection) -> None:
    """Make the counters of a new farm; those that exist stay."""
    offset = secrets.randbelow(_OFFSETS)
    for key, first in ((CHUNKS, 1), (ATTEMPTS, FIRST_ATTEMPT + offset)):
        if connection.scalar(select(farm.c.value).where(farm.c.key == key)) is None:
            connection.execute(farm.insert().values(key=key, value=str(first)))


@dataclass(slots=True)
class _Block:
    next: int = 0
    end: int = 0

    @property
    def left(self) -> int:
        return self.end - self.next

    def add(self, first: int, count: int) -> None:
        if first != self.end:
            self.next = first  # ids of one call follow each other, so the rest of another block can't be used
        self.end = first + count

    def take(self, count: int) -> range:
        if count > self.left:
            raise NotAvailable("The farm has run out of reserved ids for a moment. Try again.")
        taken = range(self.next, self.next + count)
        self.next += count
        return taken


class IdBlocks:
    """Ids for one program. Used from one thread (the event loop's)."""

    def __init__(self, database: Database) -> None:
        """Reserve the first blocks. Blocks."""
        self._database = database
        self._refilling = asyncio.Lock()
        self._chunks = _Block()
        self._attempts = _Block()
        for key, block in ((CHUNKS, self._chunks), (ATTEMPTS, self._attempts)):
            block.add(database.write_now(partial(reserve, key=key, count=BLOCK)), BLOCK)

    def next_chunk_ids(self, count: int) -> range:
        """Ids for the chunks of one task, following each other."""
        return self._chunks.take(count)

    def next_attempt_id(self) -> int:
        """An id for one attempt."""
        return self._attempts.take(1)[0]

    async def refill(self, chunks: int = 0) -> None:
        """Make sure that at least `chunks` chunk ids, and half a block of each kind, are there. Costs nothing when they
        are: call it before each submission and now and then."""
        wanted = max(chunks, BLOCK // 2)
        if self._chunks.left >= wanted and self._attempts.left >= BLOCK // 2:
            return
        async with self._refilling:
            await self._fill(CHUNKS, self._chunks, wanted)
            await self._fill(ATTEMPTS, self._attempts, BLOCK // 2)

    async def _fill(self, key: str, block: _Block, wanted: int) -> None:
        while block.left < wanted:
            count = max(BLOCK, wanted)
            block.add(await self._database.write(partial(reserve, key=key, count=count)), count)
