"""Reading JSON the way the existing programs write it: any letter case of keys, numbers as numbers or as text.

Unknown keys are ignored; of two keys that differ in letter case only the last one counts, as in .NET.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from renderonline.farm.errors import InvalidRequest

_WHOLE = re.compile(r"-?\d{1,20}", re.ASCII)


def read_object(body: bytes | str, message: str) -> Mapping[str, Any]:
    """The members of one JSON object by their case-folded names; `InvalidRequest` with `message` for anything else."""
    try:
        # Fractions stay text, so that a value arrives as it was written.
        members = fold(json.loads(body, parse_float=str, parse_constant=_no_constant))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(message) from error
    if members is None:
        raise InvalidRequest(message)
    return members


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def fold(value: Any) -> dict[str, Any] | None:
    """The members of an object by their case-folded names; None if it is no object."""
    if not isinstance(value, dict):
        return None
    return {key.casefold(): item for key, item in value.items()}


def text(value: Any) -> str | None:
    """A text, or a number as text; None for everything else and for what no program or database can hold."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    written = str(value)
    if "\0" in written:
        return None
    try:
        written.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return None
    return written


def whole(value: Any) -> int | None:
    """A whole number, or a text that is one; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    written = str(value).strip()
    return int(written) if _WHOLE.fullmatch(written) else None


def flag(value: Any) -> bool | None:
    """true or false, also as text; None for everything else."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.casefold())
    return value if isinstance(value, bool) else None
