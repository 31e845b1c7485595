"""Which tests a run takes, and its closing table: kind, passed, failed, skipped, seconds.

With `--every-kind` (what `make test` passes) a kind without a test, or any skip, fails the run.
With `--thorough` (what `make test-all` passes) nothing is left out. Without it
- tests of RenderAPI's use cases and of the dispatcher run on SQLite; on MariaDB only those marked `both_databases`,
  one for each path that reads or writes the database. SQL itself (`tests/integration/database`), the contract and the
  standby always run on both;
- tests marked `thorough` do not run: slow variants of a behaviour that another test shows.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

KINDS = (
    "unit",
    "contract",
    "integration",
    "integration-sqlite",
    "integration-mariadb",
    "faults",
    "e2e",
    "browser",
    "desktop",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-kind", action="store_true", help="fail if a kind of tests is empty or a test is skipped")
    parser.addoption("--thorough", action="store_true", help="every test on every database, and the slow variants")


_MOSTLY_SQLITE = ("tests/integration/dispatch/", "tests/integration/renderapi/")
"""Folders whose tests run on MariaDB only when they are marked `both_databases`, unless the run is thorough."""


def is_left_out(path: str, keywords: object) -> bool:
    """Whether only a thorough run takes this test; `keywords` holds the names of its markers."""
    if "thorough" in keywords:  # type: ignore[operator]
        return True
    runs_on_sqlite_too = "[mariadb" in path  # a parameter; what is only marked mariadb runs on nothing else
    return path.startswith(_MOSTLY_SQLITE) and runs_on_sqlite_too and "both_databases" not in keywords  # type: ignore[operator]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: place_in_the_queue(item.nodeid))
    if config.getoption("--thorough"):
        return
    left_out = {item for item in items if is_left_out(item.nodeid, {mark.name for mark in item.iter_markers()})}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


_LONG = ("tests/faults/", "tests/integration/cli/", "tests/integration/existing/")
"""Folders whose tests mostly wait, each for several seconds."""


def place_in_the_queue(path: str) -> int:
    """Unit tests first, the long ones last: every second worker begins at the end."""
    return 0 if path.startswith("tests/unit/") else 2 if path.startswith(_LONG) else 1


_TOGETHER = (
    "tests/browser/",
    "tests/contract/",
    "tests/desktop/",
    "tests/e2e/",
    "tests/integration/cli/test_client.py",
    "tests/integration/cli/test_newcomers.py",
    "tests/integration/engines/test_blender_launcher.py",
    "tests/integration/engines/test_every_path.py",
    "tests/integration/engines/test_scene_facts.py",
    "tests/integration/hpcserver/test_films.py",
    "tests/integration/hpcserver/test_previews.py",
    "tests/integration/renderapi/test_large_bodies.py",
    "tests/integration/renderapi/test_slow_looks.py",
    "tests/integration/rnoclient/test_uploads.py",
    "tests/integration/serving/test_descriptors.py",
    "tests/integration/serving/test_hostile_transfers.py",
    "tests/integration/serving/test_refused_bodies.py",
)
"""Files (or folders of such) whose tests share a farm, or scenes that Blender makes, or measure how long others wait:
they run one after another on one worker, so that there is one farm and not one on each worker."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """In place of xdist's own groups: pytest-xdist 3.8 adds them to a name of a test that pytest 9.2 does not read.

    Groups (first in the queue: xdist puts what has most tests there) need the processors, for browsers and Blender;
    many other tests wait. So that both run at the same time, every second worker takes from the queue's end. They all
    meet at short tests, so that none is busy for long when nothing is left for the others.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.partition("::")[0] if nodeid.startswith(_TOGETHER) else nodeid

        def _assign_work_unit(self, node: Any) -> None:
            if int(node.gateway.id.removeprefix("gw")) % 2:
                self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
            super()._assign_work_unit(node)

    return Scheduling(config, log) if config.getvalue("dist") == "loadgroup" else None


def kind_of(path: str, keywords: object) -> str:
    """The kind of a test: its folder, and for integration tests the database it ran on."""
    folder = path.split("/")[1] if path.startswith("tests/") else path.split("/")[0]
    if folder != "integration":
        return folder
    for database in ("mariadb", "sqlite"):
        if database in keywords:  # type: ignore[operator]
            return f"integration-{database}"
    return folder


def _rows(reporter: pytest.TerminalReporter) -> Iterator[tuple[str, int, int, int, float]]:
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    seconds: dict[str, float] = defaultdict(float)
    for outcome in ("passed", "failed", "error", "skipped", "xfailed", "xpassed"):
        for report in reporter.stats.get(outcome, ()):
            if not hasattr(report, "keywords"):
                continue
            kind = kind_of(report.nodeid, report.keywords)
            counts[kind][outcome] += 1
    for reports in reporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[kind_of(report.nodeid, report.keywords)] += report.duration
    for kind in [*KINDS, *sorted(set(counts) - set(KINDS))]:
        of = counts[kind]
        skipped = of["skipped"] + of["xfailed"] + of["xpassed"]
        yield kind, of["passed"], of["failed"] + of["error"], skipped, seconds[kind]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = list(_rows(terminalreporter))
    terminalreporter.section("kinds")
    terminalreporter.write_line(f"{'kind':<22}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for kind, passed, failed, skipped, seconds in rows:
        terminalreporter.write_line(f"{kind:<22}{passed:>8}{failed:>8}{skipped:>9}{seconds:>9.1f}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not session.config.getoption("--every-kind"):  # a worker has no reporter
        return
    incomplete = [kind for kind, passed, _, skipped, _ in _rows(reporter) if not passed or skipped]
    if incomplete and session.exitstatus == pytest.ExitCode.OK:
        reporter.write_line(f"Kinds that are empty or skip a test: {', '.join(incomplete)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
