"""Whose files lie in a folder: a download never replaces another task's, nor what somebody changed, without a word.

What was downloaded, for which task and with which digest, is remembered in the user's cache directory, a file for each
folder. Without it nothing is replaced that has other bytes: the folder itself holds results only.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from renderonline.farm.errors import Conflict

_PLACE: Final = "RENDERONLINE_CACHE"


class Owners:
    """The files of one folder that were downloaded, by name: for which task, and the digest of each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        named = os.environ.get(_PLACE)
        place = Path(named) if named else Path.home() / ".cache" / "renderonline"
        folder = hashlib.sha256(os.fsencode(self._directory)).hexdigest()[:32]
        self._state = place / "downloads" / f"{folder}.json"
        self._of = self._read()

    def refuse_others(self, there: Iterable[tuple[str, str]], owner: str) -> None:
        """`Conflict` if one of these files (name, its digest now) is not what was downloaded for `owner`."""
        others = [name for name, digest in there if self._of.get(name) != [owner, digest]]
        if others:
            known = self._of.get(others[0])
            whose = "is of no download that is known" if known is None else f"is of {known[0]}"
            if known is not None and known[0] == owner:
                whose = "was changed since it was downloaded"
            more = f", and {len(others) - 1} more" if len(others) > 1 else ""
            told = f"{self._directory / others[0]} would be replaced, but it {whose}{more}."
            raise Conflict(
                f"{told} Choose another folder (-o), or replace them with --overwrite.", code="would_replace"
            )

    def remember(self, fetched: Iterable[tuple[str, str]], owner: str) -> None:
        """These (name, digest) were downloaded now. A cache that can't be written forgets it."""
        self._of = {**self._read(), **{name: [owner, digest] for name, digest in fetched}}
        aside = self._state.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            self._state.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps(self._of), encoding="utf-8")
            aside.replace(self._state)

    def _read(self) -> dict[str, list[str]]:
        try:
            known = json.loads(self._state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}
