"""JSON the way the existing programs write it: keys in PascalCase, read in any letter case; numbers also as text.

Unknown keys are ignored; of two keys that differ in letter case only the last one counts, as in .NET.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from typing import Any

from renderonline.farm.errors import InvalidRequest

_WHOLE = re.compile(r"-?\d{1,20}", re.ASCII)


def pascal(value: Any) -> Any:
    """A dataclass as what JSON holds, `task_id` as `TaskId`; times without an offset, in whole seconds."""
    if is_dataclass(value):
        names = [field.name for field in fields(value)]
        return {name.title().replace("_", ""): pascal(getattr(value, name)) for name in names}
    if isinstance(value, tuple):
        return [pascal(item) for item in value]
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(timespec="seconds")
    return value


def read_object(body: bytes | str, message: str) -> Mapping[str, Any]:
    """The members of one JSON object by their case-folded names; `InvalidRequest` with `message` for anything else."""
    try:
        # Fractions stay text, so that a value arrives as it was written.
        members = fold(json.loads(body, parse_float=str, parse_constant=no_constant))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(message) from error
    if members is None:
        raise InvalidRequest(message)
    return members


def no_constant(name: str) -> Any:
    """For `json.loads`: NaN and Infinity are no JSON."""
    raise ValueError(name)


def fold(value: Any) -> dict[str, Any] | None:
    """The members of an object by their case-folded names; None if it is no object."""
    return {key.casefold(): item for key, item in value.items()} if isinstance(value, dict) else None


def text(value: Any) -> str | None:
    """A text, or a number as text; None for everything else and for what no program or database can hold."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    written = str(value)
    try:
        written.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return None
    return None if "\0" in written else written


def whole(value: Any) -> int | None:
    """A whole number, or a text that is one; None for everything else."""
    written = text(value)
    return int(written) if written is not None and _WHOLE.fullmatch(written.strip()) else None


def flag(value: Any) -> bool | None:
    """true or false, also as text; None for everything else."""
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.casefold())
    return value if isinstance(value, bool) else None
