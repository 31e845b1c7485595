"""The files of attempts for machines that don't share this computer's directory: inputs to them, results from them;
and the previews that every linked machine sends.

The token of the attempt is the whole authority. It opens what its task was submitted with, and the attempt's own
directory, for as long as something of the attempt is wanted (R5.5 Late results).
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from blake3 import blake3
from starlette.requests import Request

from renderonline.database.door import Database
from renderonline.database.file_rows import Holder, frame, frames, landed_by, load_holder, result_names, store_inputs
from renderonline.database.report_rows import token_fits
from renderonline.database.submission_rows import list_inputs
from renderonline.farm.errors import Conflict, InvalidRequest, NotFound, RenderOnlineError, Unfit
from renderonline.farm.tasks import InputFile, Landed
from renderonline.renderapi.connected_machines import Machines
from renderonline.renderapi.downloads import Content, LandedFiles
from renderonline.renderapi.housekeeping import Places
from renderonline.renderapi.orders import AttemptFiles, Folder
from renderonline.renderapi.reports import Reports
from renderonline.renderapi.scene_checks import SceneChecks
from renderonline.renderapi.task_views import checked_size
from renderonline.serving.admission import let_in
from renderonline.serving.bodies import receive_body
from renderonline.storage.archive import Altered, Compared, file_pieces, members_of
from renderonline.storage.disk import RESULT_SUMS, Sums
from renderonline.storage.images import PreviewFiles
from renderonline.storage.landing import Arrival, check_name
from renderonline.storage.names import results_directory, task_directory
from renderonline.storage.staging import disk_error, disk_errors

__all__ = ["AttemptTransfers", "Holder"]

_SCHEME: Final = "attempt "
_KEPT: Final = 200_000
"""Files of tasks that are remembered."""
_JPEG: Final = b"\xff\xd8\xff"


class AttemptTransfers:
    """What a machine may do with an attempt's token. All methods raise `NotFound` for an unknown attempt or another
    token, and `Conflict` (`attempt_over`) when nothing of it is wanted any more."""

    def __init__(
        self,
        database: Database,
        places: Places,
        *,
        machines: Machines,
        files: AttemptFiles,
        reports: Reports,
        checks: SceneChecks,
        landed: LandedFiles,
        previews: PreviewFiles,
    ) -> None:
        self._database, self._places, self._machines, self._attempts = database, places, machines, files
        self._reports, self._checks, self._landed, self._previews = reports, checks, landed, previews
        self._looking = asyncio.Lock()
        self._files: OrderedDict[int, Mapping[str, Landed]] = OrderedDict()

    async def holder(self, attempt_id: int, request: Request) -> Holder:
        """The attempt whose token the request carries."""
        found = self._checks.holder(attempt_id)
        found = found or await self._database.read(partial(load_holder, attempt_id=attempt_id))
        given = request.headers.get("authorization", "")
        token = given[len(_SCHEME) :] if given.lower().startswith(_SCHEME) else ""
        if found is None or not token_fits(token, found.token):
            raise NotFound("There is no such attempt, or its token is another one.")
        let_in(request, f"machine {found.machine_id}")
        if found.over:
            raise Conflict(f"Attempt {attempt_id} is over; nothing of it is wanted any more.", code="attempt_over")
        return found

    async def inputs(self, holder: Holder) -> tuple[str, Sequence[InputFile]]:
        """Return the scene's name and all files of the task, relative to its directory; for a film the frames. The
        files of a task that was not submitted to us are read when they are first asked for."""
        task_id = holder.task_id
        found: Sequence[InputFile] = ()
        if holder.film:
            found = await self._look(holder)
        elif not (found := await self._database.read(partial(list_inputs, task_id=task_id))):
            async with self._looking:
                found = await self._database.read(partial(list_inputs, task_id=task_id))
                found = found or await self._look(holder)
        directory = task_directory(holder.scene, holder.file_name)
        return Path(holder.scene).relative_to(directory).as_posix(), found

    async def _look(self, holder: Holder) -> tuple[InputFile, ...]:
        database, task_id = self._database, holder.task_id
        directory = _source(holder)
        known = await database.read(partial(frames, task_id=task_id)) if holder.film else {}
        made = known.keys() if holder.film else await database.read(partial(result_names, task_id=task_id))
        compared = self._landed.compared
        results = f"{holder.results_in}/" if holder.results_in and not holder.film else "/"

        def goes_in(name: str) -> bool:
            return (name in made) is holder.film and not name.startswith(results)

        read = partial(_read_all, directory, known, goes_in, compared)
        try:
            found = await asyncio.to_thread(read)
        except OSError as error:
            raise NotFound("The files of this task are not on the server any more.", code="files_gone") from error
        except Altered as error:
            raise _altered(holder, error) from error
        if not holder.film:
            await database.write(partial(store_inputs, task_id=task_id, files=found))
        return found

    async def input_file(self, holder: Holder, name: str) -> Content:
        """Return one file of the task; its bytes are counted as they are sent. Raises `Unfit` (`altered`) when it is
        known to differ from what the task was submitted with, or from what landed (R15 Served as landed)."""
        task_id, sums = holder.task_id, RESULT_SUMS if holder.film else blake3
        if holder.film:
            known = await self._database.read(partial(frame, task_id=task_id, name=name))
        else:
            known = (await self._files_of(task_id)).get(name)
        if known is None:
            raise NotFound(f"The task has no file {name}.")
        path = _source(holder) / name
        try:
            content = await self._landed.file(task_id, path, name, known, sums)
        except Conflict as error:
            raise _altered(holder, error) from error
        loop = asyncio.get_running_loop()

        def pieces(start: int, end: int) -> Iterator[bytes]:
            sent = 0
            try:
                for piece in content.pieces(start, end):
                    sent += len(piece)
                    self._machines.moved(holder.machine_id)
                    yield piece
            finally:
                downloads = int(start == 0 and not holder.film)
                loop.call_soon_threadsafe(self._count, holder.machine_id, downloads, sent)

        return replace(content, pieces=pieces)

    async def _files_of(self, task_id: int) -> Mapping[str, Landed]:
        """A task's files by name, which never change once they are known."""
        found = self._files.get(task_id)
        if not found:
            files = await self._database.read(partial(list_inputs, task_id=task_id))
            found = self._files[task_id] = {one.name: Landed(one.size, one.crc32, None, one.digest) for one in files}
            while len(self._files) > 1 and sum(map(len, self._files.values())) > _KEPT:
                self._files.popitem(last=False)
        return found

    def _count(self, machine_id: int, downloads: int, size: int) -> None:
        if (machine := self._machines.get(machine_id)) is not None:
            machine.fetches += downloads
            machine.fetched_bytes += size

    async def receive(self, attempt_id: int, holder: Holder, name: str, request: Request) -> None:
        """Take a result into the attempt's directory, from where it lands when it is reported (R6 Landing)."""
        length, digest = _announced(request)
        if self._checks.holds(attempt_id):
            raise InvalidRequest("A check of a scene has no results.", code="not_wanted")
        order = await self._reports.order_of(attempt_id)
        if order is not None and not order.takes(name):
            raise InvalidRequest(f"{name} is not a file that this attempt has to write.", code="not_wanted")
        if order is not None:
            self._reports.admit(order, name, length)
        folder = Folder(holder.directory, holder.machine_id, holder.token)
        self._attempts.receives(attempt_id, folder)
        self._machines.moved(holder.machine_id)
        try:
            await asyncio.to_thread(self._places.check_disk, Path(holder.directory), length)
            arrival = await asyncio.to_thread(Arrival, holder.directory, name)
            whole = False
            found = RESULT_SUMS()

            def look(piece: memoryview) -> None:
                found.update(piece)
                self._machines.moved(holder.machine_id)

            try:
                watched = self._places.watched(Path(holder.directory), look)
                await receive_body(request, arrival.handle, length=length, update=watched)
                if found.hexdigest() != digest:
                    raise InvalidRequest(f"The bytes of {name} are not what was announced.", code="wrong_digest")
                whole = True
            finally:
                await asyncio.to_thread(partial(arrival.close, whole=whole))
        except FileNotFoundError as error:  # the attempt ended meanwhile
            raise Conflict("The attempt is over.", code="attempt_over") from error
        except OSError as error:
            raise disk_error(error) from error
        finally:
            self._attempts.forget_late(attempt_id, folder)

    async def receive_preview(self, attempt_id: int, holder: Holder, name: str, size: str, jpeg: bytes) -> None:
        """Keep a preview of a file that an attempt has to write. Nothing is decoded here (R13 Hostile content).
        `Conflict` when the file of another attempt landed: its preview stays (R14 Authority first)."""
        order = await self._reports.order_of(attempt_id)
        if order is None or not order.wanted or not order.takes(check_name(name)):
            raise NotFound(f"The attempt has no file {name}.")
        if not jpeg.startswith(_JPEG):
            raise InvalidRequest("A preview is a JPEG.")
        self._reports.admit(order, name)
        landed = await self._database.read(partial(landed_by, task_id=holder.task_id, name=name))
        if landed not in (None, attempt_id):
            raise Conflict(f"{name} of another attempt has landed.", code="attempt_over")
        previews = self._previews
        with disk_errors():
            path = await asyncio.to_thread(previews.put, holder.task_id, name, checked_size(size), jpeg)
        if await self._database.read(partial(load_holder, attempt_id=attempt_id)) is None:  # deleted meanwhile
            await asyncio.to_thread(previews.take_back, path)


def _source(holder: Holder) -> Path:
    """The directory of an attempt's inputs: the task's files, or for a film its results."""
    if holder.film:
        return results_directory(holder.scene, holder.file_name, holder.results_in)
    return task_directory(holder.scene, holder.file_name)


def _announced(request: Request) -> tuple[int, str]:
    length, digest = request.headers.get("content-length", ""), request.headers.get("x-digest", "")
    if not (length.isascii() and length.isdigit() and len(length) < 19):
        raise InvalidRequest("A result is sent with its Content-Length.")
    if len(digest) != 64:
        raise InvalidRequest("A result is sent with its digest: BLAKE2b-256 in hex as X-Digest.")
    return int(length), digest


def _read_all(
    directory: Path, known: Mapping[str, Landed], wanted: Callable[[str], bool], compared: Compared
) -> tuple[InputFile, ...]:
    found = []
    for member in members_of(directory, known):
        if wanted(member.name):
            sums = Sums()
            for piece in file_pieces(member, 0, member.size, compared):
                sums.update(piece)
            found.append(sums.of(member.name))
    return tuple(found)


def _altered(holder: Holder, error: RenderOnlineError) -> Unfit:
    """A failure of the task's files; machines would take a 409 for the end of their attempt."""
    names, again = ", ".join(error.details["names"]), f"renderonline requeue {holder.task_id} --frames …"
    way = f"Render them again: {again}" if holder.film else "Submit the task again."
    return Unfit(f"Somebody changed files of task {holder.task_id} on the server: {names}. {way}", code="altered")
