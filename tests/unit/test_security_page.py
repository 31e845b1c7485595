"""The page that says who can do what names tests, and they exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/security.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_that_the_page_names_exists(file: str, name: str) -> None:
    source = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE)


def test_every_line_of_the_page_names_a_test() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("|") and not re.match(r"\|(-|.*shown by \|$)", line)]
    assert len(lines) > 50
    assert [line for line in lines if "::" not in line] == []
