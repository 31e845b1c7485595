"""Settings of a program: file < environment < flags, into one frozen dataclass.

Names are compared without regard to letter case and underscores: `DataDirectory` in the file,
`RENDERAPI_DATA_DIRECTORY` in the environment and `data_directory` as a flag are the field `data_directory`.
"""

import dataclasses
import json
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import structlog

from renderonline.farm.errors import InvalidRequest

log = structlog.get_logger(__name__)
T = TypeVar("T")

TRUE = frozenset({"1", "true", "yes", "on"})
FALSE = frozenset({"0", "false", "no", "off", ""})


def merge(
    cls: type[T],
    *,
    file: Mapping[str, Any],
    environment: Mapping[str, str],
    prefix: str,
    flags: Mapping[str, Any],
) -> T:
    """Make a `cls` from the three sources; a flag that is None was not given.

    Unknown keys of the file are warned of, unknown flags refused; of the environment only names that begin with
    `prefix` (`RENDERAPI_`) and then name a field count. Raises `InvalidRequest` that names the setting and its source.
    """
    fields = {_key(field.name): field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}

    def take(key: str, value: Any, source: str) -> bool:
        field = fields.get(_key(key))
        if field is None:
            return False
        values[field.name] = _convert(hints[field.name], value, f"{source} {key}")
        return True

    for key, value in file.items():
        if not take(key, value, "setting"):
            log.warning("unknown setting is ignored", setting=key)
    for name, text in environment.items():
        if name.upper().startswith(prefix):
            take(name[len(prefix) :], text, f"environment variable {prefix}")
    for key, value in flags.items():
        if value is not None and not take(key, value, "flag"):
            raise InvalidRequest(f"There is no setting {key}.")
    missing = [field.name for field in fields.values() if field.name not in values and _required(field)]
    if missing:
        raise InvalidRequest(f"Settings are missing: {', '.join(missing)}.")
    return cls(**values)


def read_file(path: Path) -> dict[str, Any]:
    """The JSON object in a settings file. Raises `InvalidRequest` that says what is wrong with the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InvalidRequest(f"Settings file {path} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise InvalidRequest(f"Settings file {path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise InvalidRequest(f"Settings file {path} must hold one JSON object.")
    return content


def _key(name: str) -> str:
    return name.replace("_", "").replace("-", "").casefold()


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(get_args(hint), value, name)
    if dataclasses.is_dataclass(hint):
        return _convert_nested(hint, value, name)
    if origin is tuple:
        return tuple(_convert(get_args(hint)[0], item, name) for item in _items(value, name))
    if hint is Any or origin is not None:
        return _structured(value, name)
    return _convert_plain(hint, value, name)


def _convert_plain(hint: Any, value: Any, name: str) -> Any:
    converters: dict[Any, Callable[[Any], Any]] = {str: str, int: int, float: float, bool: _bool, Path: _path}
    convert = converters.get(hint)
    if (
        convert is None
        or isinstance(value, (dict, list))
        or value is None
        or (hint is int and isinstance(value, float))
    ):
        raise InvalidRequest(f"The {name} must be {_word(hint)}.")
    try:
        return convert(value)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"The {name} must be {_word(hint)}, not {value}.") from error


def _convert_union(choices: Sequence[Any], value: Any, name: str) -> Any:
    if (value is None or value == "") and type(None) in choices:
        return None
    rest = [choice for choice in choices if choice is not type(None)]
    return _convert(rest[0], value, name)


def _convert_nested(hint: Any, value: Any, name: str) -> Any:
    value = _structured(value, name)
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"The {name} must be an object.")
    return merge(hint, file=value, environment={}, prefix="", flags={})


def _structured(value: Any, name: str) -> Any:
    """A value of the file as it is; text (environment, flags) is read as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise InvalidRequest(f"The {name} must be JSON.") from error


def _items(value: Any, name: str) -> Sequence[Any]:
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            value = _structured(value, name)
        else:
            return [item.strip() for item in value.split(",") if item.strip()]
    if not isinstance(value, (list, tuple)):
        raise InvalidRequest(f"The {name} must be a list.")
    return value


def _bool(value: Any) -> bool:
    text = str(value).casefold()
    if text in TRUE:
        return True
    if text in FALSE:
        return False
    raise ValueError(text)


def _path(value: Any) -> Path:
    return Path(value).expanduser()


def _word(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return words.get(hint, "of another form")
