"""What all machines report is written together, and nobody's reports keep back another's."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from renderonline.database.door import Database
from renderonline.database.report_rows import Applied, Mark, Reported, WarnedStep
from renderonline.farm.errors import Conflict, NotAvailable
from renderonline.farm.settling import RetryPolicy
from renderonline.renderapi import report_writing
from renderonline.renderapi.memory import BackgroundWork, Clocks
from renderonline.renderapi.report_writing import MOST_STEPS, ReportWriter


class FakeDatabase:
    """Runs each operation in a later turn of the loop; `operations` are the reports that each got."""

    def __init__(self) -> None:
        self.operations: list[Sequence[Reported]] = []

    async def write(self, operation: Callable[[Any], Any]) -> Any:
        await asyncio.sleep(0)
        return operation(None)


class Bench:
    """A writer, and what came of everything that was put into it, by machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broken: Callable[[Reported], Exception | None]) -> None:
        self.database = FakeDatabase()
        self.results: list[tuple[int | None, int, str]] = []
        self.background = BackgroundWork()

        def apply(_: object, reported: Sequence[Reported], **__: object) -> Applied:
            self.database.operations.append(reported)
            for one in reported:
                if error := broken(one):
                    raise error
            return Applied()

        monkeypatch.setattr(report_writing, "apply_steps", apply)
        self.writer = ReportWriter(
            cast("Database", self.database),
            RetryPolicy(),
            background=self.background,
            clocks=Clocks(),
            follow=lambda *_: None,
        )

    def report(self, machine_id: int | None, seq: int, steps: int = 1) -> None:
        def then(result: Applied | Exception) -> None:
            self.results.append((machine_id, seq, "" if isinstance(result, Applied) else str(result)))

        some = [WarnedStep(seq, ())] * steps
        self.writer.put(Reported(some, machine_id, Mark("instance", seq)), then)

    @property
    def sizes(self) -> list[int]:
        return [len(reported) for reported in self.database.operations]


async def test_reports_of_many_machines_share_an_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, lambda _: None)
    bench.report(1, 1)
    await asyncio.sleep(0)  # the first one is being written
    for machine_id in range(1, 101):
        bench.report(machine_id, 2)
    await bench.background.settled()
    assert bench.sizes == [1, 100]
    assert bench.results == [(1, 1, ""), *((machine_id, 2, "") for machine_id in range(1, 101))]


async def test_operation_does_not_become_ever_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, lambda _: None)
    for machine_id in range(5):
        bench.report(machine_id, 1, steps=MOST_STEPS // 2)
    await bench.background.settled()
    assert bench.sizes == [2, 2, 1]


async def test_reports_that_fail_keep_back_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    """R14 Authority first."""
    bench = Bench(monkeypatch, lambda one: Conflict("can't be") if one.machine_id == 2 and one.mark.seq == 2 else None)
    for machine_id in (1, 2, 3, None):
        for seq in (1, 2, 3):
            bench.report(machine_id, seq)
    await asyncio.sleep(0)
    bench.report(2, 4)
    bench.report(3, 4)
    await bench.background.settled()
    failed = [(machine_id, seq) for machine_id, seq, error in bench.results if error]
    assert failed == [(2, 2), (2, 4), (2, 3)] or failed == [(2, 2), (2, 3), (2, 4)], "and what came behind it"
    done = {(machine_id, seq) for machine_id, seq, error in bench.results if not error}
    assert done == {(2, 1), (3, 4)} | {(machine_id, seq) for machine_id in (1, 3, None) for seq in (1, 2, 3)}
    assert (2, 3) not in {(one.machine_id, one.mark.seq) for group in bench.database.operations[1:] for one in group}


async def test_all_fail_when_the_database_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, lambda _: NotAvailable("it does not answer"))
    for machine_id in (1, 2, 3):
        bench.report(machine_id, 1)
    await bench.background.settled()
    assert bench.sizes == [3]
    assert [error for *_, error in bench.results] == ["it does not answer"] * 3
