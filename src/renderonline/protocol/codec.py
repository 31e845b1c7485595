"""JSON <-> frozen dataclasses, by the standard library alone.

Names are the fields' names (snake_case); tuples are lists; a class with a `type` ClassVar carries it. Readers ignore
unknown keys, so that two versions understand each other; what is missing without a default, of the wrong type, too
deep or not text that UTF-8 can hold is `InvalidRequest` naming the field.
"""

import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, Final, TypeVar

from renderonline.farm.errors import InvalidRequest
from renderonline.protocol.loose import no_constant

MAX_DEPTH: Final = 32
"""How deep values may lie inside each other."""

_LARGEST: Final = 2**63 - 1

T = TypeVar("T")
Reader = Callable[[Any, str], Any]
"""(JSON value, where it stands) -> value of the field."""


def to_wire(obj: Any) -> dict[str, Any]:
    """A dataclass instance as what JSON holds."""
    kind = getattr(type(obj), "type", None)
    out: dict[str, Any] = {"type": kind} if isinstance(kind, str) else {}
    for name in _names(type(obj)):  # type: ignore[arg-type]  # a class is hashable
        out[name] = _written(getattr(obj, name))
    return out


def _written(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Mapping):
        return {str(key): _written(item) for key, item in value.items()}
    if isinstance(value, (tuple, list, frozenset, set)):
        return [_written(item) for item in value]
    return to_wire(value)


def encode(obj: Any) -> str:
    """A dataclass instance as one JSON text."""
    return json.dumps(to_wire(obj), separators=(",", ":"), allow_nan=False)


@cache
def _names(cls: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(cls))


def read_json(text: str | bytes) -> Any:
    """JSON as Python values; `InvalidRequest` for anything else (NaN, too deep, not UTF-8, a number without end)."""
    try:
        return json.loads(text, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("This is not valid JSON.") from error


def decode(text: str | bytes, classes: Iterable[type] | types.UnionType) -> object:
    """The message that `text` holds: an instance of that one of `classes` whose `type` it names."""
    data = read_json(text)
    if not isinstance(data, dict):
        raise InvalidRequest("A message must be a JSON object.")
    kind = data.get("type")
    for cls in typing.get_args(classes) if isinstance(classes, types.UnionType) else classes:
        if getattr(cls, "type", None) == kind:
            return from_wire(cls, data)
    raise InvalidRequest(f"A message of type {str(kind)[:40]!r} is not known here.")


def from_wire(cls: type[T], data: Any) -> T:
    """An instance of the dataclass `cls` from JSON values."""
    instance: T = _reader_of_class(cls)(data, cls.__name__)  # type: ignore[arg-type]  # a class is hashable
    return instance


@cache
def _reader_of_class(cls: type) -> Reader:
    hints = typing.get_type_hints(cls)
    slots = tuple((field.name, _reader(hints[field.name]), _required(field)) for field in fields(cls))

    def read(data: Any, where: str) -> Any:
        if not isinstance(data, Mapping):
            raise _wrong(where, "an object")
        values: dict[str, Any] = {}
        for name, read_value, required in slots:
            if name in data:
                values[name] = read_value(data[name], f"{where}.{name}")
            elif required:
                raise InvalidRequest(f"{where}.{name} is missing.")
        return cls(**values)

    return read


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _reader(hint: Any) -> Reader:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _reader_of_union(_reader(arm) for arm in inner)
    if origin is tuple:
        return _reader_of_list(_reader(inner[0]))
    if origin is not None and issubclass(origin, Mapping):
        return _reader_of_mapping(_reader(inner[1]))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _reader_of_enum(hint)
    if isinstance(hint, type) and is_dataclass(hint):
        return _reader_of_class(hint)
    return _PLAIN[hint]


def _reader_of_union(arms: Iterable[Reader]) -> Reader:
    # None first, so that it is another arm that says what is wrong.
    *firsts, last = sorted(arms, key=lambda arm: arm is not _PLAIN[type(None)])

    def read(data: Any, where: str) -> Any:
        for arm in firsts:
            try:
                return arm(data, where)
            except InvalidRequest:
                continue
        return last(data, where)

    return read


def _reader_of_list(item: Reader) -> Reader:
    def read(data: Any, where: str) -> Any:
        if not isinstance(data, (list, tuple)):
            raise _wrong(where, "a list")
        return tuple(item(value, f"{where}[{place}]") for place, value in enumerate(data))

    return read


def _reader_of_mapping(item: Reader) -> Reader:
    def read(data: Any, where: str) -> Any:
        if not isinstance(data, Mapping):
            raise _wrong(where, "an object")
        return {_read_text(key, where): item(value, f"{where}.{key[:40]}") for key, value in data.items()}

    return read


def _reader_of_enum(cls: type[Enum]) -> Reader:
    def read(data: Any, where: str) -> Any:
        try:
            return cls(data)
        except ValueError as error:
            raise _wrong(where, "one of " + ", ".join(str(member.value) for member in cls)) from error

    return read


def _reader_of_plain(fits: Callable[[Any], bool], expected: str) -> Reader:
    def read(data: Any, where: str) -> Any:
        if not fits(data):
            raise _wrong(where, expected)
        return data

    return read


def _is_whole(data: Any) -> bool:
    return isinstance(data, int) and not isinstance(data, bool) and abs(data) <= _LARGEST


def _read_float(data: Any, where: str) -> float:
    if not _is_whole(data) and not (isinstance(data, float) and math.isfinite(data)):
        raise _wrong(where, "a number")
    return float(data)


def _read_text(data: Any, where: str) -> str:
    if not isinstance(data, str):
        raise _wrong(where, "text")
    try:
        data.encode()
    except UnicodeEncodeError as error:
        raise _wrong(where, "text without lone surrogates") from error
    return data


def _read_any(data: Any, where: str, depth: int = MAX_DEPTH) -> Any:
    """JSON values that can be stored: not too deep, proper text and numbers."""
    if depth == 0:
        raise InvalidRequest(f"{where} is nested more than {MAX_DEPTH} levels deep.")
    if isinstance(data, str):
        _read_text(data, where)
    elif isinstance(data, (int, float)) and not isinstance(data, bool):
        _read_float(data, where)
    elif isinstance(data, dict):
        for key, value in data.items():
            _read_text(key, where)
            _read_any(value, where, depth - 1)
    elif isinstance(data, (list, tuple)):
        for value in data:
            _read_any(value, where, depth - 1)
    return data


def _wrong(where: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"{where} must be {expected}.")


_PLAIN: Final[Mapping[Any, Reader]] = {
    str: _read_text,
    int: _reader_of_plain(_is_whole, "a whole number"),
    float: _read_float,
    bool: _reader_of_plain(lambda data: isinstance(data, bool), "true or false"),
    type(None): _reader_of_plain(lambda data: data is None, "null"),
    Any: _read_any,
}
