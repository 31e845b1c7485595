"""Landing results (R6 Landing): a row first, then the file, then the row again."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import orjson
import structlog

from renderonline.database.door import Database
from renderonline.database.report_rows import (
    Reported,
    WarnedStep,
    apply_steps,
    begin_landing,
    differing,
    drop_landing,
    open_landings,
)
from renderonline.database.task_rows import Moment
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.result_names import Bounds, frame_in
from renderonline.farm.settling import RetryPolicy
from renderonline.farm.tasks import Landing, Offer
from renderonline.protocol.link import Result
from renderonline.renderapi.orders import Order
from renderonline.storage.disk import FileDigest, digest_file
from renderonline.storage.landing import Placed, check_name, found_outputs, place, remove_copies

_log = structlog.get_logger(__name__)

_LARGEST_FACTS: Final = 16 * 1024
_TRIES: Final = 3
_PAUSE_S: Final = 1.0
MOST_COUNTED: Final = 500_000
"""Files of attempts that are counted at once; a machine may send some for attempts that ended long ago."""
OTHER_BYTES: Final = "Two parts of the task wrote {name} with different bytes: the first that came is kept."
NAME_TAKEN: Final = "{name} could not be kept: another file of the task's directory has this name."
_HEX: Final = frozenset("0123456789abcdef")


class Landings:
    """Lets reports land concurrently, and interrupted landings be settled alone, so that no open row belongs to a file
    that is being placed."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._none = asyncio.Event()
        self._none.set()
        self._count = 0

    @asynccontextmanager
    async def beside_others(self) -> AsyncIterator[None]:
        """From before step (a) until after (c)."""
        async with self._lock:
            self._count += 1
            self._none.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._none.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Wait for all landings that have begun; new ones wait meanwhile."""
        async with self._lock:
            await self._none.wait()
            yield


class Besides:
    """Checks what attempts send besides their expected files against the bounds of their engine's definition, because
    machines can't be trusted to do so (R14 Authority first). Counting starts again after a restart, and for an attempt
    that sent nothing while many others did."""

    def __init__(self, most_names: int = MOST_COUNTED) -> None:
        self._bounds = OrderedDict[int, Bounds]()
        self._names, self._most_names = 0, most_names

    def admit(self, order: Order, name: str, size: int | None) -> None:
        """Count a file of `size` bytes (None: something that belongs to it). Raises `InvalidRequest` when it is beyond
        the bounds."""
        bounds = self._bounds.setdefault(order.assign.attempt, Bounds(order.assign.more))
        self._bounds.move_to_end(order.assign.attempt)
        before = len(bounds)
        bound = bounds.met_by(name, size)
        self._names += len(bounds) - before
        while self._names > self._most_names:
            self._names -= len(self._bounds.popitem(last=False)[1])
        if bound:
            raise InvalidRequest(f"{name} is beyond the {bound} of an attempt.")

    def forget(self, attempt_ids: Collection[int]) -> None:
        """These attempts are over."""
        for attempt_id in attempt_ids:
            if (gone := self._bounds.pop(attempt_id, None)) is not None:
                self._names -= len(gone)


def offer_of(result: Result, order: Order) -> Offer:
    """Return the checked offer for a result that a machine reports. Raises `InvalidRequest` if this attempt can't have
    it. If the engine names its outputs, only those are results, and what its definition takes besides; which frame a
    result shows is decided here."""
    name = check_name(result.name)
    if not order.takes(name):
        raise InvalidRequest(f"{name} is not a file that this attempt has to write.")
    if not 0 <= result.size < 2**63 or not 0 <= result.crc32 < 2**32:
        raise InvalidRequest("Size or CRC-32 of a result can't be right.")
    if len(result.digest) != 64 or not _HEX.issuperset(result.digest):
        raise InvalidRequest("The digest of a result is not BLAKE2b-256 in hex.")
    facts = orjson.dumps(dict(result.facts))
    kept = facts.decode() if len(facts) <= _LARGEST_FACTS else "{}"
    return _offer(order, result.token, name, FileDigest(result.size, result.digest, result.crc32), kept)


def _offer(order: Order, token: str | None, name: str, file: FileDigest, facts: str = "{}") -> Offer:
    more = bool(order.wanted) and name not in order.wanted
    of_frame = frame_in(name, order.assign.frames) if more else None
    return Offer(
        order.assign.attempt,
        token,
        name,
        frame=order.wanted.get(name),
        size=file.size,
        digest=file.digest,
        crc32=file.crc32,
        facts=facts,
        of_frame=of_frame,
        more=more,
        wanted=order.wanted,
    )


def written_offers(order: Order) -> tuple[Offer, ...]:
    """Return what an attempt of a v1 machine wrote: the files that its engine names and what its definition takes
    besides, or else all files in its directory, if its command names that. Blocks; missing and unreadable files are
    left out."""
    directory = Path(order.assign.directory)
    offers = []
    there = found_outputs(directory) if order.uses_directory else ()
    for name in (*order.wanted, *(one for one in there if one not in order.wanted and order.takes(one))):
        try:
            found = digest_file(directory / check_name(name))
        except (OSError, InvalidRequest):
            continue
        offers.append(_offer(order, None, name, found))
    return tuple(offers)


async def land(
    database: Database, offers: Sequence[Offer], machine_id: int, closed: Collection[int]
) -> tuple[tuple[Landing, ...], tuple[WarnedStep, ...]]:
    """Steps (a) and (b); returns the landings that are ready for step (c), in the order of the offers, and warnings
    about the others. `closed`: the attempts whose engines have ended, with whole files."""
    if not offers:
        return (), ()
    begun = await database.write(partial(begin_landing, offers=offers, machine_id=machine_id))
    landed, taken = await _placed(database, begun, closed)
    ours = {(one.offer.attempt_id, one.offer.name) for one in begun}
    dropped = [one for one in offers if one.more and (one.attempt_id, one.name) not in ours]
    differ = await database.read(partial(differing, offers=dropped)) if dropped else ()
    warnings = [(one.attempt_id, OTHER_BYTES.format(name=one.name)) for one in differ]
    warnings += [(one.offer.attempt_id, NAME_TAKEN.format(name=one.offer.name)) for one in taken]
    return landed, tuple(WarnedStep(attempt_id, (text,)) for attempt_id, text in warnings)


async def settle_interrupted(database: Database, moment: Moment, policy: RetryPolicy) -> None:
    """Settle every landing that a stop, or a write that was given up, left half-way (R6 Landing); while nothing else
    lands."""
    rows = await database.read(open_landings)
    if not rows:
        return
    await asyncio.to_thread(remove_copies, [landing for landing in rows if landing.scene])
    landed, _ = await _placed(database, rows, ())
    _log.info("Landings that were interrupted are settled", landed=len(landed), dropped=len(rows) - len(landed))
    await database.write(partial(apply_steps, reported=[Reported(landed)], moment=moment, policy=policy))


async def _placed(
    database: Database, landings: Sequence[Landing], closed: Collection[int]
) -> tuple[tuple[Landing, ...], tuple[Landing, ...]]:
    """Do the file step; returns what has landed, and what could not because another file has its name. The names of all
    that did not land are free again. When the disk refuses, it is tried again for a moment."""
    outcomes = {one.result_id: Placed.REFUSED if one.scene else Placed.MISSING for one in landings}
    for left in reversed(range(_TRIES)):
        todo = [one for one in landings if outcomes[one.result_id] is Placed.REFUSED]
        found = await asyncio.to_thread(place, todo, closed)
        outcomes |= {one.result_id: outcome for one, outcome in zip(todo, found, strict=True)}
        if Placed.REFUSED not in outcomes.values():
            break
        await asyncio.sleep(_PAUSE_S if left else 0)
    if lost := sorted(result_id for result_id, outcome in outcomes.items() if outcome is not Placed.LANDED):
        _log.warning("Results could not be landed", results=lost[:5], why=sorted({outcomes[one] for one in lost}))
        await database.write(partial(drop_landing, result_ids=lost))
    landed, taken = (
        tuple(one for one in landings if outcomes[one.result_id] is wanted) for wanted in (Placed.LANDED, Placed.TAKEN)
    )
    return landed, taken
