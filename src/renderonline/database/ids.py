"""Ids of chunks and attempts, made before the transaction that uses them (R3.2), from blocks reserved in table `farm`.

A block that a program took and did not use up is lost; no id is ever used twice. Attempt ids begin at 2^40 plus a
random offset of the farm, so that no id of another farm or of an adopted task is among them (R7.1).
"""

import asyncio
import secrets
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
    for key, first in ((CHUNKS, 1), (ATTEMPTS, FIRST_ATTEMPT + secrets.randbelow(_OFFSETS))):
        if connection.scalar(select(farm.c.value).where(farm.c.key == key)) is None:
            connection.execute(farm.insert().values(key=key, value=str(first)))


class _Ids:
    """Reserved ids of one kind."""

    def __init__(self, database: Database, key: str) -> None:
        self._database = database
        self._key = key
        self._next = database.write_now(partial(reserve, key=key, count=BLOCK))
        self._end = self._next + BLOCK

    def has(self, count: int) -> bool:
        return self._end - self._next >= count

    def take(self, count: int) -> range:
        if not self.has(count):
            raise NotAvailable("The farm has run out of reserved ids for a moment. Try again.")
        self._next += count
        return range(self._next - count, self._next)

    async def refill(self, wanted: int) -> None:
        while not self.has(wanted):
            count = max(BLOCK, wanted)
            first = await self._database.write(partial(reserve, key=self._key, count=count))
            if first != self._end:
                self._next = first  # ids of one call follow each other, so the rest of another block can't be used
            self._end = first + count


class IdBlocks:
    """Ids for one program. Used from one thread (the event loop's)."""

    def __init__(self, database: Database) -> None:
        """Reserve the first blocks. Blocks."""
        self._refilling = asyncio.Lock()
        self._chunks, self._attempts = _Ids(database, CHUNKS), _Ids(database, ATTEMPTS)

    def next_chunk_ids(self, count: int) -> range:
        """Ids for the chunks of one task, following each other."""
        return self._chunks.take(count)

    def next_attempt_id(self) -> int:
        """An id for one attempt."""
        return self._attempts.take(1)[0]

    async def refill(self, chunks: int = 0) -> None:
        """Make sure that at least `chunks` chunk ids, and half a block of each kind, are there. Costs nothing when they
        are: call it before each submission and now and then."""
        chunks = max(chunks, BLOCK // 2)
        if not (self._chunks.has(chunks) and self._attempts.has(BLOCK // 2)):
            async with self._refilling:
                await self._chunks.refill(chunks)
                await self._attempts.refill(BLOCK // 2)
