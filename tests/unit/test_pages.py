"""Pages name tests that exist, rules are cited by their names, and links between pages lead somewhere."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECURITY, RULES, CONTRACT = "docs/security.md", "docs/reference/rules.md", "docs/reference/existing-system-contract.md"
PAGES = {page: (ROOT / page).read_text(encoding="utf-8") for page in (SECURITY, RULES, CONTRACT)}
NAMED = sorted({named for text in PAGES.values() for named in re.findall(r"`([\w/]+\.py)::(\w+)`", text)})

HEADING = re.compile(r"^##+ (([RC]\d+(?:\.\d+)?) .+)$", re.MULTILINE)
HEADINGS = {number: heading for page in (RULES, CONTRACT) for heading, number in HEADING.findall(PAGES[page])}
CITATION = re.compile(r"(?<![\w%/.-])[RC]\d{1,2}(?:\.\d+)?(?![\w-])")
CITING = ("src/*.py", "tests/*.py", "tests/*.toml", "docs/*.md", "bench/*.py", "scripts/*", "examples/*", "*.md")
"""What may cite rules; this file itself cites them wrongly on purpose."""


def wrong_citations(text: str) -> list[str]:
    """Citations that are not the heading of a rule or of a section of the contract."""
    joined = re.sub(r"\s*\n\s*(#+ )?", " ", text)
    found = ((match[0], joined[match.start() :]) for match in CITATION.finditer(joined))
    return [text[:40] for number, text in found if not re.match(rf"{HEADINGS.get(number, '(?!)')}(?!\w)", text)]


def citing_texts() -> Iterator[tuple[str, str]]:
    """Name and content of every file that may cite rules."""
    listed = subprocess.run(["git", "ls-files", "-z", *CITING], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path != Path(__file__) and path.is_file():
            yield name, path.read_text(encoding="utf-8")


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_every_test_that_a_page_names_exists(file: str, name: str) -> None:
    source = (ROOT / "tests" / file).read_text(encoding="utf-8")
    assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE)


def test_every_line_of_the_page_about_security_names_a_test() -> None:
    text = PAGES[SECURITY].splitlines()
    lines = [line for line in text if line.startswith("|") and not re.match(r"\|(-|.*shown by \|$)", line)]
    assert len(lines) > 50
    assert [line for line in lines if "::" not in line] == []


@pytest.mark.parametrize("page", [RULES, CONTRACT])
def test_every_rule_names_a_test(page: str) -> None:
    sections = re.split(r"^(?=##+ )", PAGES[page], flags=re.MULTILINE)
    divided = {number.partition(".")[0] for number in HEADINGS if "." in number}
    rules = [section for section in sections if (found := HEADING.match(section)) and found[2] not in divided]
    assert len(rules) > 5
    assert [rule.splitlines()[0] for rule in rules if "::" not in rule] == []


def test_every_cited_rule_exists_and_is_cited_by_its_name() -> None:
    wrong = {name: found for name, text in citing_texts() if (found := wrong_citations(text))}
    assert wrong == {}, "Cite a rule by its heading in docs/reference/rules.md, such as (R1.5 Machine blame)."


@pytest.mark.parametrize("text", ["(R6)", "(R1.5)", "(R1.5 Machines)", "(R99 Landing)", "(R6 Land)", "(C2.6 Types)"])
def test_citation_without_the_name_of_its_rule_is_found(text: str) -> None:
    assert wrong_citations(text)


@pytest.mark.parametrize("text", ["(R1.5\n    Machine blame)", "    # (R1.5 Machine\n    # blame, R6 Landing)"])
def test_citation_may_be_broken_over_lines(text: str) -> None:
    assert wrong_citations(text) == []


def broken_links(page: Path) -> list[str]:
    """Links of a page to files or headings of this repository that are not there."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = Path(os.path.normpath(page.parent / path)) if path else page
        if ":" not in link and not (target.exists() and (not anchor or anchor in anchors(target))):
            broken.append(link)
    return broken


def anchors(page: Path) -> set[str]:
    """How headings of a page are linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.stem
)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_every_file_that_the_architecture_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)+\w+\.py)`", text)
    assert len(named) > 40
    assert [name for name in named if not (ROOT / "src" / "renderonline" / name).is_file()] == []


def test_picture_of_the_house_is_drawn_from_the_code() -> None:
    done = subprocess.run([sys.executable, "-m", "scripts.draw_house", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0
