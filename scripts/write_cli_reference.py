"""Writes docs/reference/cli.md from the commands themselves: `python scripts/write_cli_reference.py [FILE]`."""

import contextlib
import io
import sys
from pathlib import Path

import typer.main

from renderonline.cli.main import app, run

TARGET = Path(__file__).parent.parent / "docs" / "reference" / "cli.md"
HEAD = """# The command line

Written by `scripts/write_cli_reference.py` from the commands' own help.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not authenticated, 4 not found, 5 RenderAPI can't be reached,
6 `node --check` warns, 130 Ctrl-C.

The client commands speak to the farm of `renderonline login` (kept in `client.json` of the configuration directory,
readable by its owner only). `RENDERONLINE_URL`, `RENDERONLINE_EMAIL`, `RENDERONLINE_TOKEN`, `RENDERONLINE_CA_FILE` and
`RENDERONLINE_FINGERPRINT` come before it, and `--url` before those. A saved e-mail and token are sent to the address
that they were saved for and to no other. With `--json` a command prints JSON on standard output, one document a line
when there are several, and errors as `{"code", "detail"}` on standard error.
"""


def reference() -> str:
    """The whole page."""
    return HEAD + "".join(f"\n## renderonline {' '.join(path)}\n\n```\n{_help(path)}\n```\n" for path in _commands())


def _commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []

    def walk(command: object, path: tuple[str, ...]) -> None:
        below = getattr(command, "commands", None)
        if below is None:
            found.append(path)
        for name, inner in (below or {}).items():
            walk(inner, (*path, name))

    walk(typer.main.get_command(app), ())
    return found


def _help(path: tuple[str, ...]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        run([*path, "--help"])
    return printed.getvalue().strip()


if __name__ == "__main__":
    (Path(sys.argv[1]) if sys.argv[1:] else TARGET).write_text(reference(), encoding="utf-8")
