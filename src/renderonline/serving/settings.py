"""Settings of a program: file < environment < flags, into one frozen dataclass.

Names are compared without regard to letter case and underscores: `DataDirectory` in the file,
`RENDERAPI_DATA_DIRECTORY` in the environment and `data_directory` as a flag are the field `data_directory`.
"""

import contextlib
import dataclasses
import json
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

import structlog

from renderonline.farm.errors import InvalidRequest
from renderonline.serving.directories import exposed

log = structlog.get_logger(__name__)
T = TypeVar("T")

_WORDS: Final = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off", ""), False)
_PLAIN: Final[Mapping[Any, tuple[str, Callable[[Any], Any]]]] = {
    str: ("text", str),
    int: ("a whole number", int),
    float: ("a number", float),
    bool: ("true or false", lambda value: _WORDS[str(value).casefold()]),
    Path: ("a path", lambda value: Path(value).expanduser()),
}


def merge(
    cls: type[T], *, file: Mapping[str, Any], environment: Mapping[str, str], prefix: str, flags: Mapping[str, Any]
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
        if field is not None:
            values[field.name] = _convert(hints[field.name], value, f"{source} {key}")
        return field is not None

    for key, value in file.items():
        if not take(key, value, "setting"):
            log.warning("unknown setting is ignored", setting=key)
    for name, text in environment.items():
        if name.upper().startswith(prefix):
            take(name[len(prefix) :], text, f"environment variable {prefix}")
    for key, value in flags.items():
        if value is not None and not take(key, value, "flag"):
            raise InvalidRequest(f"There is no setting {key}.")
    none = dataclasses.MISSING
    required = [field.name for field in fields.values() if field.default is none and field.default_factory is none]
    if missing := [name for name in required if name not in values]:
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


def check_exposed(*files: Path | None, strict: bool) -> None:
    """Warn of settings files and keys that everybody on this computer may read; `InvalidRequest` when `strict`."""
    for told in filter(None, (exposed(file) for file in files if file is not None)):
        if strict:
            raise InvalidRequest(told)
        log.warning(told)


def _key(name: str) -> str:
    return name.replace("_", "").replace("-", "").casefold()


def _convert(hint: Any, value: Any, name: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):  # something, or None
        return None if value in (None, "") else _convert(inner[0], value, name)
    if origin is tuple:
        return tuple(_convert(inner[0], item, name) for item in _items(value, name))
    if hint in _PLAIN:
        return _plain(hint, value, name)
    value = _structured(value, name)
    if not dataclasses.is_dataclass(hint):
        return value
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"The {name} must be an object.")
    return merge(hint, file=value, environment={}, prefix="", flags={})  # type: ignore[arg-type]


def _plain(hint: Any, value: Any, name: str) -> Any:
    word, convert = _PLAIN[hint]
    if not isinstance(value, (dict, list, NoneType, float) if hint is int else (dict, list, NoneType)):
        with contextlib.suppress(TypeError, ValueError, KeyError):
            return convert(value)
    raise InvalidRequest(f"The {name} must be {word}, not {value}.")


def _structured(value: Any, name: str) -> Any:
    """A value of the file as it is; text (environment, flags) is read as JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise InvalidRequest(f"The {name} must be JSON.") from error


def _items(value: Any, name: str) -> Sequence[Any]:
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return [item.strip() for item in value.split(",") if item.strip()]
    value = _structured(value, name)
    if not isinstance(value, (list, tuple)):
        raise InvalidRequest(f"The {name} must be a list.")
    return value
