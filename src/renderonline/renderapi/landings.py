"""Landing results (R6): a row first, then the file, then the row again; and tidying what attempts leave on disks."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson
import structlog

from renderonline.database import Database
from renderonline.database.work import LandedStep, Step, apply_steps
from renderonline.database.work_landing import (
    Decision,
    Landing,
    Offer,
    OpenLanding,
    begin_landing,
    drop_landing,
    open_landings,
)
from renderonline.farm.errors import InvalidRequest
from renderonline.protocol.link import Result
from renderonline.renderapi.clock import Clock, moment
from renderonline.renderapi.orders import Order
from renderonline.storage.digests import digest_file
from renderonline.storage.landing import Placed, Placing, check_name, found_outputs, place, settle

_log = structlog.get_logger(__name__)

_LARGEST_FACTS: Final = 16 * 1024
_TRIES: Final = 3
_PAUSE_S: Final = 1.0
_HEX: Final = frozenset("0123456789abcdef")


def offer_of(result: Result, wanted: Mapping[str, int | None]) -> Offer:
    """What a machine says it has, checked; `InvalidRequest` when it can't be a result of this attempt.

    Where the engine names its outputs, only those are results and the frame is ours to say.
    """
    name = check_name(result.name)
    if wanted and name not in wanted:
        raise InvalidRequest(f"{name} is not a file that this attempt has to write.")
    if not 0 <= result.size < 2**63 or not 0 <= result.crc32 < 2**32:
        raise InvalidRequest("Size or CRC-32 of a result can't be right.")
    if len(result.digest) != 64 or not _HEX.issuperset(result.digest):
        raise InvalidRequest("The digest of a result is not BLAKE2b-256 in hex.")
    frame = wanted[name] if wanted else None
    return Offer(
        result.attempt, result.token, name, frame, result.size, result.digest, result.crc32, _facts(result.facts)
    )


def written_offers(order: Order) -> tuple[Offer, ...]:
    """What an attempt of a v1 machine wrote: the files that its engine names, or whatever lies in its directory, if
    its command names that. Blocks; missing and unreadable files are left out."""
    assign = order.assign
    directory = Path(assign.directory)
    names = tuple(order.wanted) or (found_outputs(directory) if order.uses_directory else ())
    offers = []
    for name in names:
        try:
            found = digest_file(directory / check_name(name))
        except (OSError, InvalidRequest):
            continue
        frame = order.wanted.get(name)
        offers.append(Offer(assign.attempt, assign.token, name, frame, found.size, found.digest, found.crc32, "{}"))
    return tuple(offers)


def _facts(facts: Mapping[str, Any]) -> str:
    text = orjson.dumps(dict(facts))
    return text.decode() if len(text) <= _LARGEST_FACTS else "{}"


class Landings:
    """Lands results, many at once."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def land(self, offers: Sequence[Offer], *, machine_id: int) -> tuple[Landing, ...]:
        """Steps (a) and (b); gives the landings of which (c) is to be written, in the order of the offers."""
        if not offers:
            return ()
        decided = await self._database.write(partial(begin_landing, offers=offers, machine_id=machine_id))
        mine = [landing for landing in decided if landing.decision is Decision.LAND]
        refused = [landing.offer.name for landing in decided if landing.decision is Decision.REFUSED]
        if refused:
            _log.info("Results of an attempt that is over were dropped", machine_id=machine_id, names=refused[:5])
        placed = await self._place(mine)
        lost = [one.result_id for one, outcome in zip(mine, placed, strict=True) if outcome is not Placed.LANDED]
        if lost:
            _log.warning("Results could not be landed", machine_id=machine_id, results=lost[:5], why=set(placed))
            await self._database.write(partial(drop_landing, result_ids=lost))
        return tuple(one for one, outcome in zip(mine, placed, strict=True) if outcome is Placed.LANDED)

    async def _place(self, landings: Sequence[Landing]) -> tuple[Placed, ...]:
        """The file steps; a disk that refuses is given a moment, then the results are given up."""
        if not landings:
            return ()
        placings = [_placing(landing) for landing in landings]
        for left in reversed(range(_TRIES)):
            try:
                return await asyncio.to_thread(place, placings)
            except OSError as error:
                _log.warning("The disk refuses results", error=str(error), tries_left=left)
                if left:
                    await asyncio.sleep(_PAUSE_S)
        return tuple(Placed.MISSING for _ in landings)

    async def settle_all(self) -> None:
        """Settle every landing that a stop left half-way (R6); at start, before anything else runs."""
        rows = await self._database.read(open_landings)
        if not rows:
            return
        placed = await asyncio.to_thread(lambda: [_settled(row) for row in rows])
        steps: list[Step] = [
            LandedStep(row.attempt_id, row.result_id, counts=row.frame is not None)
            for row, outcome in zip(rows, placed, strict=True)
            if outcome is Placed.LANDED
        ]
        lost = [row.result_id for row, outcome in zip(rows, placed, strict=True) if outcome is not Placed.LANDED]
        _log.info("Landings that were interrupted are settled", landed=len(steps), dropped=len(lost))
        now = moment(self._clock)
        if steps:
            await self._database.write(partial(apply_steps, steps=steps, moment=now))
        await self._database.write(partial(drop_landing, result_ids=lost))


def _placing(landing: Landing) -> Placing:
    return Placing(
        landing.result_id,
        landing.offer.name,
        Path(landing.source),
        Path(landing.scene).parent,
        landing.offer.size,
        landing.offer.digest,
    )


def _settled(row: OpenLanding) -> Placed:
    if row.scene is None:
        return Placed.GONE
    placing = Placing(row.result_id, row.name, Path(row.source), Path(row.scene).parent, row.size, row.digest)
    try:
        return settle(placing)
    except OSError as error:
        _log.warning("A result could not be settled", name=row.name, error=str(error))
        return Placed.MISSING
