"""What an attempt has on a machine that does not share the farm's directory: its task's files are fetched before it
begins, and each finished file is sent before it is reported (`docs/reference/link.md`)."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.tasks import InputFile
from renderonline.hpcserver.input_cache import InputCache
from renderonline.hpcserver.outcomes import Ending, failed, handed_back
from renderonline.hpcserver.outputs import Bad, Good, inside
from renderonline.hpcserver.surroundings import in_own_directories
from renderonline.hpcserver.transfers import Errand, Refused, Stopped, Transfers
from renderonline.protocol.codec import from_wire
from renderonline.protocol.link import Assign

THREADS: Final = 16
FETCHES: Final = 4
"""Files of one task that are fetched at once."""
HURRY_S: Final = 20.0
"""An attempt that is handed back tries so long to send what it has."""
MAX_FILES: Final = 50_000
OVER: Final = handed_back("The farm does not want this attempt any more.")


@dataclass
class OwnFiles:
    """What all parcels use."""

    transfers: Transfers
    cache: InputCache

    def __post_init__(self) -> None:
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="transfers")


@dataclass(frozen=True)
class _Inputs:
    files: tuple[InputFile, ...]


class Parcel:
    """The files of one attempt, in `place`, a directory of its own. `errand` can be stopped at any time."""

    def __init__(self, assign: Assign, files: OwnFiles, place: Path) -> None:
        self.assign = in_own_directories(assign, place / "input", place / "output")
        self.errand = Errand(assign.attempt, assign.token)
        self._files = files
        self._pinned: list[str] = []

    async def fetch(self) -> Ending | None:
        """Have the task's files here; an ending when they can't be."""
        return await asyncio.get_running_loop().run_in_executor(self._files.threads, self._fetch)

    async def send(self, found: Good) -> Bad | Ending | None:
        """Send a finished file: what is wrong with it, or why the whole attempt can't go on."""
        return await asyncio.get_running_loop().run_in_executor(self._files.threads, self._send, found)

    def release(self) -> None:
        """Its inputs are not needed any more. Blocks."""
        pinned, self._pinned = self._pinned, []
        self._files.cache.release(pinned)

    def _fetch(self) -> Ending | None:
        try:
            Path(self.assign.root).mkdir(parents=True)
            with ThreadPoolExecutor(FETCHES) as threads:
                for _ in threads.map(self._place, _wanted(self._files.transfers.inputs(self.errand))):
                    pass
        except Stopped:
            return OVER
        except Refused as error:
            return OVER if error.answered == 409 else failed("no_input", str(error))
        except InvalidRequest as error:
            return failed("no_input", str(error))
        except OSError as error:
            return failed("no_space", f"The task's files can't be kept here: {error.strerror}.")
        return None

    def _place(self, one: InputFile) -> None:
        target = inside(Path(self.assign.root), one.name)
        self._pinned.append(one.digest)
        fetch = partial(self._files.transfers.fetch, self.errand, one.name, one.size)
        self._files.cache.place(one, target, fetch, partial(self.errand.pause, 0))

    def _send(self, found: Good) -> Bad | Ending | None:
        path, headers = inside(Path(self.assign.directory), found.name), {"X-Digest": found.file.digest}
        try:
            self._files.transfers.send(self.errand, f"outputs/{found.name}", path, headers)
        except Stopped:
            return OVER
        except Refused as error:
            return OVER if error.answered in (404, 409) else Bad(found.name, f"{found.name} was refused: {error}")
        except InvalidRequest as error:
            return Bad(found.name, str(error))
        except OSError as error:
            return Bad(found.name, f"{found.name} can't be read: {error.strerror}.")
        return None


def _wanted(answer: Any) -> tuple[InputFile, ...]:
    """The files that RenderAPI names."""
    found = from_wire(_Inputs, answer).files
    if len(found) > MAX_FILES or any(len(one.digest) != 64 or not one.digest.isalnum() for one in found):
        raise InvalidRequest("RenderAPI names files of the task that can't be.")
    return found
