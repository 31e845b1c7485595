"""The command is there at once, and its help is complete."""

import re
import subprocess
import sys

import pytest
import typer.main

from renderonline.cli.farm_commands import without_code
from renderonline.cli.main import app, run

HEAVY = {"sqlalchemy", "fastapi", "starlette", "uvicorn", "aiohttp", "OpenImageIO", "rich", "numpy", "structlog"}


@pytest.mark.parametrize(("option", "heavy"), [("--help", HEAVY), ("--version", HEAVY | {"pydantic", "msgspec"})])
def test_command_imports_nothing_heavy(option: str, heavy: set[str]) -> None:
    code = (
        f"import sys; from renderonline.cli.main import run; run([{option!r}]); "
        f"print('LOADED', sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "LOADED []" in done.stdout


def every_command() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []

    def walk(command: object, path: tuple[str, ...]) -> None:
        below = getattr(command, "commands", None)
        if below is None:
            found.append(path)
            return
        for name, inner in below.items():
            walk(inner, (*path, name))

    walk(typer.main.get_command(app), ())
    return found


def test_all_commands_of_the_design_are_there() -> None:
    top = {path[0] for path in every_command()}
    wanted = "demo up api node submit tasks watch logs explain download cancel pause resume retry delete login"
    groups = "requeue accept film change desktop engine user machine subscription db"
    assert {*wanted.split(), *groups.split()} == top


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_help_has_an_example_that_is_a_line_of_its_own(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*path, "--help"]) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"^  renderonline {' '.join(path)}\b", printed, re.MULTILINE), printed
    assert " --json " in printed or path[0] in {"api", "node"}


@pytest.mark.parametrize("given", [["--code", "ABCD"], ["--code=ABCD"]])
def test_command_line_without_a_code_keeps_everything_else(given: list[str]) -> None:
    assert without_code(["py", "node", *given, "--name", "x"]) == ["py", "node", "--name", "x"]
    assert without_code(["py", "node", *given]) == ["py", "node"]
