"""JSON to and from Structs and frozen dataclasses, by msgspec.

The keys are the names of the fields, tuples are lists; a message of the link carries its `type`. Readers ignore unknown
keys, so that two versions understand each other. A value that is missing without a default, of the wrong type, nested
too deep, or that UTF-8 or 64 bits can't hold is `InvalidRequest`, which names the field.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import msgspec

from renderonline.farm.errors import InvalidRequest

MAX_DEPTH: Final = 32
"""How deep values may lie inside each other."""

_LARGEST: Final = 2**63 - 1
_WORDS: Final[Mapping[str, str]] = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "path": "a path",
    "null": "null",
}
_KINDS: Final[Mapping[str, tuple[type, ...]]] = {
    "str": (str,), "int": (int,), "float": (float,), "bool": (bool,), "array": (list, tuple), "object": (dict,),
    "null": (type(None),),
}  # fmt: skip
"""How msgspec calls the types of values."""

_BOUNDS: Final[Mapping[str, str]] = {"<=": "at most", "<": "less than", ">=": "at least", ">": "more than"}

T = TypeVar("T")


def to_wire(obj: Any) -> dict[str, Any]:
    """A Struct or a dataclass as plain values."""
    plain: dict[str, Any] = msgspec.to_builtins(obj)
    return plain


def encode(obj: Any) -> str:
    """A Struct or a dataclass as one line of JSON; a number that is not finite becomes null."""
    return msgspec.json.encode(obj).decode()


def read_json(text: str | bytes) -> Any:
    """JSON as Python values; `InvalidRequest` for anything else (NaN, too deep, not UTF-8, a number without end)."""
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("This is not valid JSON.") from error


def decode(text: str | bytes, kind: Any) -> Any:
    """The message that `text` holds: a tagged Struct, or that one of a union of them which its `type` names."""
    data = read_json(text)
    if not isinstance(data, dict):
        raise InvalidRequest("A message must be a JSON object.")
    name = str(data.get("type"))[:40]
    if "type" not in data:
        raise _unknown(name)
    return _converted(kind, data, name)


def from_wire(cls: type[T], data: Any) -> T:
    """An instance of the Struct or dataclass `cls` from plain values."""
    return _converted(cls, data, cls.__name__)


def _converted(kind: type[T], data: Any, name: str) -> T:
    _check(data, name, MAX_DEPTH)
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise _in_words(str(error), data, name) from error


def _check(value: Any, where: str, depth: int) -> None:
    """Refuse what can't be stored or sent on."""
    if depth < 0:
        raise InvalidRequest(f"{where[:200]} is nested more than {MAX_DEPTH} levels deep.")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check(key, where, depth)
            _check(item, f"{where}.{str(key)[:40]}", depth - 1)
    elif isinstance(value, (list, tuple)):
        for place, item in enumerate(value):
            _check(item, f"{where}[{place}]", depth - 1)
    elif isinstance(value, str):
        if not value.isascii() and re.search("[\ud800-\udfff]", value):
            raise InvalidRequest(f"{where} must be text without lone surrogates.")
    elif isinstance(value, (int, float)) and not (
        math.isfinite(value) if isinstance(value, float) else abs(value) <= _LARGEST
    ):
        raise InvalidRequest(f"{where} must be a number of at most 64 bits.")


def _in_words(message: str, data: Any, name: str) -> InvalidRequest:
    """What msgspec says of a wrong value, such as "Expected `int`, got `str` - at `$.held[0].attempt`"."""
    what, _, place = message.partition(" - at ")
    path = place.strip("`").removeprefix("$")
    if path == ".type":
        return _unknown(name)
    if missing := re.search("missing required field `(.+)`", what):
        return InvalidRequest(f"{name}{path}.{missing[1]} is missing.")
    where = name + path.replace("[...]", f".{_key(data, path, what)}")
    return InvalidRequest(f"{where} must be {requirement(what)}.")


def requirement(message: object) -> str:
    """What a value must be by msgspec's message that it is not, such as "a whole number" or "at most 256"."""
    expected = str(message).partition(" - at ")[0].removeprefix("Expected ")
    if bound := re.fullmatch("`.+` ([<>]=?) (.+)", expected):
        return f"{_BOUNDS[bound[1]]} {bound[2]}"
    words = [_WORDS[one] for one in expected.split("`")[1].split(" | ")] if "`" in expected else []
    return " or ".join(word for word in words if len(words) == 1 or word != "null") or expected


def _key(data: Any, path: str, what: str) -> str:
    """The key of the first value of this type in the mapping at `path`, which msgspec does not name."""
    for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", path.partition("[...]")[0]):
        data = data[key] if key else data[int(index)]
    entries = data.items() if isinstance(data, Mapping) else ()
    got = what.rpartition("got `")[2].rstrip("`")
    return next((str(key)[:40] for key, value in entries if type(value) in _KINDS.get(got, ())), "…")


def _unknown(kind: str) -> InvalidRequest:
    return InvalidRequest(f"A message of type {kind!r} is not known here.")
