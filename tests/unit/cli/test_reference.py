"""The pages of the reference say what the program has."""

import dataclasses
import re
import runpy
from pathlib import Path

import pytest

from renderonline.hpcserver.settings import NodeSettings
from renderonline.renderapi.settings import Settings

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "docs" / "reference"
INTERNAL = {"error", "repeated", "changed"}
"""Codes that no answer carries."""


def test_command_line_page_is_what_the_commands_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    written = runpy.run_path(str(ROOT / "scripts" / "write_cli_reference.py"))["reference"]()
    assert (REFERENCE / "cli.md").read_text() == written, "run scripts/write_cli_reference.py"


@pytest.mark.parametrize("settings", [Settings, NodeSettings])
def test_every_setting_is_documented(settings: type[Settings | NodeSettings]) -> None:
    page = (REFERENCE / "settings.md").read_text().casefold()
    for field in dataclasses.fields(settings):
        assert f"`{field.name.replace('_', '')}`" in page, field.name


def test_every_error_code_is_documented() -> None:
    page = (REFERENCE / "errors.md").read_text()
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    codes = set(re.findall(r'\bcode(?:: \w+)? ?= ?"([a-z_0-9]+)"', source)) - INTERNAL
    assert not {code for code in codes if f"`{code}`" not in page}


@pytest.mark.parametrize(
    "page", ["README.md", "CHANGELOG.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target


def test_every_command_that_a_page_shows_exists() -> None:
    commands = {
        " ".join(path) for path in runpy.run_path(str(ROOT / "scripts" / "write_cli_reference.py"))["_commands"]()
    }
    groups = {command.split()[0] for command in commands if " " in command}
    for page in (ROOT / "README.md", *ROOT.glob("docs/guides/*.md"), ROOT / "docs" / "quickstart.md"):
        for first, second in re.findall(r"\brenderonline ([a-z]+)(?: ([a-z]+))?", page.read_text()):
            if first in groups:
                assert f"{first} {second}" in commands, (page.name, first, second)
            else:
                assert first in commands or first in {"command"}, (page.name, first)
