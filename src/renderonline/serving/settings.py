"""Settings of a program as one frozen dataclass, from a file, the environment and flags (later ones override), and its
structured logs.

Names are compared without regard to letter case and underscores: `DataDirectory` in the file,
`RENDERAPI_DATA_DIRECTORY` in the environment and `data_directory` as a flag are the field `data_directory`.

Every program logs short sentences with `key=value` to standard error. Modules use `structlog.get_logger(__name__)`;
records that libraries write through `logging` are printed in the same form.
"""

import dataclasses
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin, get_type_hints

import msgspec
import structlog

from renderonline.farm.errors import InvalidRequest
from renderonline.protocol.link import requirement
from renderonline.sandbox.privacy import exposed

log = structlog.get_logger(__name__)
T = TypeVar("T")

Positive = Annotated[float, msgspec.Meta(gt=0)]
PositiveInt = Annotated[int, msgspec.Meta(gt=0)]

LEVELS: Final = ("debug", "info", "warning", "error", "critical")
_BOOLEANS: Final = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(
    ("0", "false", "no", "off", ""), False
)


def merge(
    cls: type[T], *, file: Mapping[str, Any], environment: Mapping[str, str], prefix: str, flags: Mapping[str, Any]
) -> T:
    """Make a `cls` from the three sources; a flag that is None was not given.

    Unknown keys of the file cause a warning, unknown flags an error. Of the environment only names that begin with
    `prefix` (`RENDERAPI_`) and continue with a field are used. Raises `InvalidRequest`, which names the setting and its
    source.
    """
    fields = {_key(field.name): field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls, include_extras=True)
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
    """Return the JSON object in a settings file. Raises `InvalidRequest` that says what is wrong with the file."""
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
    """Warn about settings files and keys that everybody on this computer may read; raise `InvalidRequest` instead if
    `strict`."""
    for warning in filter(None, (exposed(file) for file in files if file is not None)):
        if strict:
            raise InvalidRequest(warning)
        log.warning(warning)


def _key(name: str) -> str:
    return name.replace("_", "").replace("-", "").casefold()


def _convert(hint: Any, value: Any, name: str) -> Any:
    inner = get_args(hint)
    if NoneType in inner:
        return None if value in (None, "") else _convert(inner[0], value, name)
    if get_origin(hint) is tuple:
        return tuple(_convert(inner[0], item, name) for item in _items(value, name))
    plain = inner[0] if get_origin(hint) is Annotated else hint
    if plain is not str and isinstance(value, str):
        value = value.strip()
    if plain is bool:
        value = _BOOLEANS.get(str(value).casefold(), value)
    elif plain is str and isinstance(value, (int, float)):
        value = str(value)
    elif plain not in (str, int, float, Path):
        value = _structured(value, name)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return merge(hint, file=value, environment={}, prefix="", flags={})  # type: ignore[arg-type]
    try:
        return msgspec.convert(value, hint, strict=False, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The {name} must be {requirement(error)}, not {value}.") from error


def _path(_: type, value: Any) -> Path:
    if not isinstance(value, (str, Path)):
        raise TypeError("Expected `path`")
    return Path(value).expanduser()


def _structured(value: Any, name: str) -> Any:
    """A value of the file unchanged; text (environment, flags) is read as JSON."""
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


def configure_logs(*, json_lines: bool, level: str) -> None:
    """Send all logs to standard error, as JSON lines or for people; `level` is one of `LEVELS` in any letter case.

    Raises `InvalidRequest` for an unknown level.
    """
    if level.lower() not in LEVELS:
        raise InvalidRequest(f"Log level {level} is not known; choose one of {', '.join(LEVELS)}.")
    number = getattr(logging, level.upper())
    stdlib, written = structlog.stdlib, structlog.stdlib.ProcessorFormatter
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        stdlib.add_logger_name,
        stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[stdlib.filter_by_level, *shared, written.wrap_for_formatter],
        logger_factory=stdlib.LoggerFactory(),
        wrapper_class=stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    if json_lines:
        rendered: list[Any] = [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    else:
        plain = structlog.dev.plain_traceback
        rendered = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(written(foreign_pre_chain=shared, processors=[written.remove_processors_meta, *rendered]))
    logging.basicConfig(handlers=[handler], level=number, force=True)
    # The server's own lines about start and stop repeat ours; warnings and errors are kept.
    for noisy in ("uvicorn.error", "uvicorn.asgi", "asyncio", "websockets"):
        logging.getLogger(noisy).setLevel(max(number, logging.WARNING))
