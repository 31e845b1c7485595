"""The command `renderonline`: its commands, and what its exit codes mean.

0 done, 1 failed, 2 wrong usage, 3 not authenticated, 4 not found, 5 RenderAPI can't be reached, 6 `node --check` warns,
130 Ctrl-C.
Commands import what they need when they run, so that `--help` is there at once.
"""

import contextlib
import json
import sys
from collections.abc import Sequence

import typer
from typer import Abort
from typer.exceptions import TyperException

from renderonline import __version__
from renderonline.cli import (
    admin_commands,
    engine_commands,
    farm_commands,
    submit,
    task_commands,
    terminal,
)
from renderonline.cli.terminal import INTERRUPTED, flag, group
from renderonline.farm.errors import NotAuthenticated, NotAvailable, NotFound, RenderOnlineError

FAILED = 1
EXIT_CODES = {NotAuthenticated: 3, NotFound: 4, NotAvailable: 5}

app = group(
    "A render farm that one command sets up.\n\n"
    "\b\nFirst steps:\n"
    "  renderonline demo                     a farm on this computer renders an animation\n"
    "  renderonline up                       a farm on this computer that stays\n"
    "  renderonline submit shot.blend --frames 1-24 --wait --download frames\n\n"
    "Every command has --help with examples, and --json for programs."
)


@app.callback(invoke_without_command=True)
def root(*, version: bool = flag("--version", "Print the version and end.")) -> None:
    if version:
        typer.echo(f"renderonline {__version__}")
        raise typer.Exit


for name, commands in (
    (None, farm_commands.commands),
    (None, submit.commands),
    (None, task_commands.commands),
    (None, admin_commands.own),
    ("engine", engine_commands.commands),
    ("machine", admin_commands.machines),
    ("user", admin_commands.users),
    ("subscription", admin_commands.subscriptions),
    ("db", farm_commands.database_commands),
):
    app.add_typer(commands, name=name)


def main() -> None:
    """The program's entry."""
    terminal.replace_letters()
    sys.exit(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run one command and return its exit code; errors are printed on standard error."""
    if list(words) == ["--version"]:  # to read any option Typer imports Pydantic, which takes longer than all the rest
        print(f"renderonline {__version__}")
        return 0
    try:
        result = app(list(words), standalone_mode=False, prog_name="renderonline")
        sys.stdout.flush()
    except RenderOnlineError as error:
        if "--json" in words:
            print(json.dumps({"code": error.reason_code, "detail": error.message}), file=sys.stderr)
        else:
            terminal.note(f"Error: {error.message}")
        return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), FAILED)
    except TyperException as error:
        show_usage = getattr(error, "show", None)
        show_usage() if show_usage is not None else terminal.note(f"Error: {error}")
        return int(error.exit_code)
    except (Abort, KeyboardInterrupt):
        terminal.note("Stopped.")
        return INTERRUPTED
    except BrokenPipeError:  # `renderonline tasks | head`
        with contextlib.suppress(OSError):
            sys.stderr.close()
        return FAILED
    except OSError as error:  # a file or directory of the user's that can't be used
        terminal.note(f"Error: {error}")
        return FAILED
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    main()
