"""How a function becomes a command, and the options that several commands share."""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from renderonline.cli import show
from renderonline.cli.logins import connect
from renderonline.farm.errors import InvalidRequest, NotFound
from renderonline.rnoclient.sdk import Item

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
Output = show.Output
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
                    show.answer(answer, as_json=json)
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
