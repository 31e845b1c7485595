"""Ids of chunks and attempts, made before the transaction that uses them (R3.2 Repeatable operations), from blocks
reserved in table `farm`.

A block that a program took and did not use up is lost; no id is ever used twice. Attempt ids begin at 2^40 plus a
random offset of the farm, so that no id of another farm or of an adopted task is among them
(R7.1 Attempt id on the wire).
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


def _reserve_block(connection: Connection, key: str, count: int = BLOCK) -> range:
    first = reserve(connection, key, count)
    return range(first, first + count)


class IdBlocks:
    """Ids for one program. Used from one thread (the event loop's)."""

    def __init__(self, database: Database) -> None:
        """Reserve the first blocks. Blocks."""
        self._database = database
        self._refilling = asyncio.Lock()
        self._free = {key: database.write_now(partial(_reserve_block, key=key)) for key in (CHUNKS, ATTEMPTS)}

    async def next_chunk_ids(self, count: int) -> range:
        """Ids for the chunks of one task, following each other."""
        while True:
            await self._fill(count)
            if len(self._free[CHUNKS]) >= count:  # another task may have taken them meanwhile
                return self._take(CHUNKS, count)

    def next_attempt_id(self) -> int:
        """An id for one attempt."""
        return self._take(ATTEMPTS, 1)[0]

    def _take(self, key: str, count: int) -> range:
        free = self._free[key]
        if len(free) < count:
            raise NotAvailable("The farm has run out of reserved ids for a moment. Try again.")
        self._free[key] = free[count:]
        return free[:count]

    async def refill(self) -> None:
        """Make sure that half a block of each kind is there. Costs nothing when it is: call it now and then."""
        await self._fill(0)

    async def _fill(self, chunks: int) -> None:
        wanted = {CHUNKS: max(chunks, BLOCK // 2), ATTEMPTS: BLOCK // 2}
        if any(len(self._free[key]) < count for key, count in wanted.items()):
            async with self._refilling:
                for key, count in wanted.items():
                    await self._refill(key, count)

    async def _refill(self, key: str, wanted: int) -> None:
        while len(self._free[key]) < wanted:
            block = partial(_reserve_block, key=key, count=max(BLOCK, wanted))
            new, old = await self._database.write(block), self._free[key]
            # Ids of one call follow each other, so the rest of another block can't be used.
            self._free[key] = range(old.start, new.stop) if old.stop == new.start else new
