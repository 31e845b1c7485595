"""How the command line prints: tables and lines for people, JSON for programs; text of others never as markup.

Progress is a bar on a terminal, plain lines elsewhere, nothing for programs.

Which RenderAPI the client commands speak to, and as whom: options < environment < `client.json`.

How a function becomes a command, and the options that several commands share.
"""

import contextlib
import functools
import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TextIO, TypeVar

import typer

from renderonline.farm.errors import InvalidRequest, NotAuthenticated, NotFound
from renderonline.rnoclient.sdk import Client, Item, Login
from renderonline.sandbox.privacy import write_private
from renderonline.serving.directories import config_directory, private_read

UNITS: Final = ("B", "KB", "MB", "GB", "TB")
STATES: Final = {
    "green": "succeeded",
    "cyan": "running busy",
    "red": "failed lost offline",
    "yellow": "canceled paused draining disabled",
}
COLORS: Final = {state: color for color, states in STATES.items() for state in states.split()}
BARS: Final = {
    "bytes": ("DownloadColumn", "TransferSpeedColumn"),
    "count": ("MofNCompleteColumn",),
    "share": ("TaskProgressColumn", "TimeElapsedColumn"),
}
Display = tuple[object, str | Callable[[], None]]
"""What a command answers: data for programs; a text, or what prints it, for people."""


def print_answer(output: Display, *, as_json: bool) -> None:
    """Print what a command answers."""
    data, shown = output
    if as_json:
        emit(data)
    elif isinstance(shown, str):
        say(shown)
    else:
        shown()


def replace_letters() -> None:
    """From now on a letter that the terminal or file does not have becomes `?`; else it would end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def emit(data: object) -> None:
    """Print one JSON document; where not every letter can be written, with escapes for those beyond ASCII."""
    plain_letters = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    print(json.dumps(data, ensure_ascii=plain_letters, indent=2 if sys.stdout.isatty() else None), flush=True)


def say(text: str = "") -> None:
    """Print a line for people."""
    print(plain(text), flush=True)


def note(text: str) -> None:
    """Print a line that is not the command's result."""
    print(plain(text), file=sys.stderr, flush=True)


def plain(text: object) -> str:
    """Text of others without what would steer the terminal (escape sequences, carriage returns)."""
    return "".join(c for c in str(text) if c in "\n\t" or (c.isprintable() or c == " "))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their columns; cells are text and never markup. States get their colour."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        number = column.startswith(">")
        grid.add_column(column.removeprefix(">"), justify="right" if number else "left", overflow="fold")
    for row in rows:
        cells = [plain("" if cell is None else cell) for cell in row]
        grid.add_row(*(Text(cell, style=COLORS.get(cell.partition(",")[0], "")) for cell in cells))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(grid)


def print_fields(data: Mapping[str, Any], names: Sequence[str]) -> None:
    """Print some fields of one thing, one a line."""
    width = max(len(name) for name in names)
    for name in names:
        value = data.get(name)
        if value not in (None, "", [], {}):
            say(f"{name.replace('_', ' '):<{width}}  {_text(value)}")


Step = Callable[..., None]
"""Called with what is done, what there is in all, and words about it if there are."""


@contextlib.contextmanager
def bar(label: str, kind: str, *, quiet: bool = False, stream: TextIO | None = None) -> Iterator[Step]:
    """Shows how far something is: a bar of a kind of `BARS`; off a terminal a line for each text."""
    file = stream or sys.stderr
    if quiet:
        yield lambda done, total, text="", /: None
        return
    if not file.isatty():
        said = ""

        def line(done: float, total: float, text: str = "", /) -> None:
            nonlocal said
            if text not in ("", said):
                said = text
                print(plain(f"{label}: {text}" if label else text), file=file, flush=True)

        yield line
        return
    from rich import console, progress

    words = (progress.TextColumn("{task.description}", markup=False), progress.BarColumn())
    columns = (*words, *(getattr(progress, name)() for name in BARS[kind]))
    with progress.Progress(*columns, console=console.Console(file=file), transient=stream is None) as shown:
        job = shown.add_task(plain(label), total=None)

        def update(done: float, total: float, text: str = "", /) -> None:
            described = ": ".join(part for part in (label, text) if part)
            shown.update(job, completed=done, total=total if total > 0 else None, description=plain(described))

        yield update


def sending(step: Step) -> Callable[[int, int], None]:
    """A `Progress` of an upload: its first call says what was there already."""
    there: list[int] = []

    def update(done: int, total: int) -> None:
        there.append(done) if not there else None
        step(done, total, f"{size(there[0])} were there already" if there[0] else "")

    return update


def size(number: float) -> str:
    """Bytes for people: 1.4 MB."""
    power = 0
    while number >= 1000 and power < len(UNITS) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.{min(power, 1)}f} {UNITS[power]}"


def when(text: str | None) -> str:
    """A moment of the API (ISO 8601, UTC) in the local time of who reads it."""
    if not text:
        return ""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def yes(holds: bool) -> str:  # noqa: FBT001
    """yes or no."""
    return "yes" if holds else "no"


def percent(fraction: float | None) -> str:
    """0.256 as 26 %."""
    return "" if fraction is None else f"{fraction * 100:.0f} %"


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_text(item)}" for name, item in value.items() if item not in (None, "", 0))
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return yes(value) if isinstance(value, bool) else str(value)


FIELDS = tuple(field.name for field in fields(Login))


def config_file() -> Path:
    """Where the login is kept, readable by its owner only."""
    return config_directory() / "client.json"


def saved() -> Login | None:
    """The login of `renderonline login`; None when there is none. `InvalidRequest` for a file that others may read."""
    path = config_file()
    try:
        found = json.loads(private_read(path))
        return Login(**{name: found[name] for name in FIELDS if found.get(name)})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError):
        raise InvalidRequest(f"{path} can't be read; write it anew with `renderonline login`.") from None


def save(login: Login) -> Path:
    """Keep a login for the next commands."""
    path = config_file()
    write_private(path, json.dumps(_known(login), indent=2) + "\n")
    return path


def current(url: str | None) -> Login:
    """The login to use; `url` (option `--url`) and the environment `RENDERONLINE_*` come before what is saved.

    A saved e-mail and token are sent to the address that they were saved for and to no other.
    """
    kept = saved()
    given = {name: value for name in FIELDS if (value := os.environ.get(f"RENDERONLINE_{name.upper()}"))}
    wanted = url or given.get("url") or (kept.url if kept else None)
    if wanted is None:
        raise NotAuthenticated(
            "Which farm? Type `renderonline login` to name one, or `renderonline up` to start one here."
        )
    fits = kept is not None and _addresses(wanted) <= _addresses(kept.url)
    login = Login(**{**(_known(kept) if kept and fits else {}), **given, "url": wanted})
    if not login.email or not login.token:
        raise NotAuthenticated(f"There is no login for {wanted}. Type `renderonline login --url {wanted}`.")
    return login


def connect(url: str | None) -> Client:
    """A client with the current login, whose uploads go on where an earlier command stopped."""
    return Client(current(url), patience_s=2.0)


def _addresses(urls: str) -> set[str]:
    return {url.strip().rstrip("/").casefold() for url in urls.split(",")}


def _known(login: Login) -> dict[str, str]:
    return {name: value for name, value in asdict(login).items() if value}


F = TypeVar("F", bound=Callable[..., Any])


def option(metavar: str, help: str | None = None, *names: str, default: object = None, **limits: Any) -> Any:  # noqa: A002
    """A parameter that is an option with a value."""
    return typer.Option(default, *names, help=help, metavar=metavar, **limits)


def flag(name: str, help: str, *names: str) -> Any:  # noqa: A002
    """A parameter that is an option without a value."""
    return typer.Option(False, name, *names, help=help)


def argument(metavar: str, help: str | None = None, **limits: Any) -> Any:  # noqa: A002
    """A parameter that is told by its place; needed, unless there is a `default`."""
    return typer.Argument(metavar=metavar, help=help, **limits)


JSON = flag("--json", "Print JSON for programs instead of text for people.")
URL = option("URL", "RenderAPI's address, when it is not the one of `renderonline login`.", "--url")
TASK = argument("TASK", "The task's number.", min=1)
TASKS = argument("TASK...", "The tasks' numbers.", min=1)
Output = Display
YES = flag("--yes", "Don't ask.", "-y")


def group(summary: str) -> typer.Typer:
    """A command with commands of its own."""
    return typer.Typer(
        help=summary,
        rich_markup_mode=None,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def command(
    within: typer.Typer, *examples: str, name: str | None = None, summary: str | None = None
) -> Callable[[F], F]:
    """Make a function a command with `--json`; the docstring (or `summary`) and the examples are its help.

    A parameter `client` is the farm of the login, and `--url` chooses another. `json` and `url` are passed on to those
    who take them, and stand last in the help. An `Output` is printed; an int is the exit code.
    """

    def register(function: F) -> F:
        parameters = dict(inspect.signature(function, eval_str=True).parameters)
        takes = set(parameters)
        added: list[tuple[str, Any, Any]] = [("json", bool, JSON)]
        if parameters.pop("client", None) or ("url" in takes and parameters["url"].default is URL):
            added.append(("url", str | None, URL))
        for key, kind, default in added:
            parameters.pop(key, None)
            parameters[key] = inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)

        @functools.wraps(function)
        def run(*, json: bool, url: str | None = None, **values: Any) -> int | None:
            values |= {key: value for key, value in (("json", json), ("url", url)) if key in takes}
            with contextlib.ExitStack() as stack:
                if "client" in takes:
                    values["client"] = stack.enter_context(connect(url))
                answer = function(**values)
                if isinstance(answer, tuple):
                    print_answer(answer, as_json=json)
            return answer if isinstance(answer, int) else None

        run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
        run.__annotations__ = {key: parameter.annotation for key, parameter in parameters.items()}
        text = "\n\n".join([summary or inspect.getdoc(function) or "", "\b\n" + "\n".join(examples)])
        within.command(name, help=text)(run)
        return function

    return register


def confirm(question: str, *, agreed: bool) -> None:
    """Ask, unless it is agreed; anything but yes ends the command."""
    if not agreed:
        typer.confirm(question, abort=True)


def pairs(option: str, words: list[str], example: str) -> dict[str, str]:
    """The `NAME=VALUE` words of an option as a dictionary."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"{option} {word} must be written like {option} {example} .")
        if name in found:
            raise InvalidRequest(f"{option} {name} is given twice.")
        found[name] = value
    return found


def given(**values: object) -> dict[str, object]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def choose(items: list[Item], key: str, name: str, who: str) -> Item:
    """The one of these whose number (`key`) or name, in any letter case, is `who`; `NotFound` when it is not one."""
    fitting = [one for one in items if who.casefold() in (str(one[key]), str(one[name]).casefold())]
    if len(fitting) == 1:
        return fitting[0]
    kind, numbers = key.removesuffix("_id"), ", ".join(str(one[key]) for one in fitting)
    several = f"Several of them are called {who}; name one by its number ({numbers})."
    raise NotFound(several if fitting else f"There is no {kind} {who}. See `renderonline {kind} list`.")
