"""The command `renderonline`: its commands, and what its exit codes mean.

0 done, 1 failed, 2 wrong usage, 3 not authenticated, 4 not found, 5 RenderAPI can't be reached, 130 Ctrl-C.
Commands import what they need when they run, so that `--help` is there at once.
"""

import contextlib
import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer import Abort
from typer.exceptions import TyperException

from renderonline import __version__
from renderonline.cli import admin, engines, farm, machines, servers, submit, tasks, users
from renderonline.cli.options import group
from renderonline.farm.errors import NotAuthenticated, NotAvailable, NotFound, RenderOnlineError

FAILED, USAGE, NOT_AUTHENTICATED, NOT_FOUND, UNREACHABLE, INTERRUPTED = 1, 2, 3, 4, 5, 130

app = group(
    "A render farm that one command sets up.\n\n"
    "\b\nFirst steps:\n"
    "  renderonline demo                     a farm on this computer renders an animation\n"
    "  renderonline up                       a farm on this computer that stays\n"
    "  renderonline submit shot.blend --frames 1-24 --wait --download frames\n\n"
    "Every command has --help with examples, and --json for programs."
)
"""The command line; commands register themselves below, in the order of the help."""


@app.callback(invoke_without_command=True)
def root(
    *,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    if version:
        typer.echo(f"renderonline {__version__}")
        raise typer.Exit


for room in (farm, servers, submit, tasks, admin):
    room.register(app)
for name, commands in (
    ("engine", engines.commands),
    ("machine", machines.commands),
    ("user", users.commands),
    ("subscription", users.subscriptions),
    ("db", admin.database),
):
    app.add_typer(commands, name=name)


def main() -> None:
    """The program's entry."""
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run one command and return its exit code; errors are told on standard error."""
    try:
        result = app(list(words), standalone_mode=False, prog_name="renderonline")
        sys.stdout.flush()
    except RenderOnlineError as error:
        _tell(error, as_json="--json" in words)
        return exit_code(error)
    except TyperException as error:
        show = getattr(error, "show", None)
        show() if show is not None else print(f"Error: {error}", file=sys.stderr)
        return int(error.exit_code)
    except (Abort, KeyboardInterrupt):
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `renderonline tasks | head`
        with contextlib.suppress(OSError):
            sys.stderr.close()
        return FAILED
    except OSError as error:  # a file or directory of the user's that can't be used
        print(f"Error: {error}", file=sys.stderr)
        return FAILED
    return result if isinstance(result, int) else 0


def exit_code(error: RenderOnlineError) -> int:
    """What scripts see of an error."""
    if isinstance(error, NotAuthenticated):
        return NOT_AUTHENTICATED
    if isinstance(error, NotFound):
        return NOT_FOUND
    return UNREACHABLE if isinstance(error, NotAvailable) else FAILED


def _tell(error: RenderOnlineError, *, as_json: bool) -> None:
    from renderonline.cli.show import note

    if as_json:
        print(json.dumps({"code": error.reason_code, "detail": error.message}), file=sys.stderr)
    else:
        note(f"Error: {error.message}")
