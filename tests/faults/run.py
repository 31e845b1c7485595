"""Run a farm, do faults to it, check after each; `python -m tests.faults.run --help`."""

import argparse
import itertools
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, TypeVar

from tests.faults import checker
from tests.faults.checker import Check, Reader, Unavailable, Watch, lasting
from tests.faults.farm import SLOTS, FaultFarm, wait_until
from tests.faults.injector import Injector
from tests.faults.report import Report, write
from tests.faults.workload import Workload

T = TypeVar("T")
REST_EVERY: Final = 10
SETTLE_S: Final = 120.0
PATIENCE_S: Final = 15.0
LEAST_HITS: Final = 5


class Violation(AssertionError):
    """Something does not hold after a fault."""


class Run:
    """One farm under faults."""

    def __init__(self, farm: FaultFarm, seed: str, *, say: bool = False) -> None:
        self._farm = farm
        self._say = say
        self.report = Report(farm.database, seed, apart=farm.apart)
        self._reader = Reader(farm.url)
        self._results = checker.Results(self._reader)
        self._marks = [machine.mark for machine in farm.machines]
        self._homes = [machine.home for machine in farm.machines]
        self._watch = Watch(farm.url, SLOTS)
        self._workload = Workload(farm, seed)
        self._injector = Injector(farm, seed, self.report)

    def run(self, faults: int, *, least_hits: int = 0) -> Report:
        """So many faults, or more until every pair of process and state was hit `least_hits` times."""
        begin = time.monotonic()
        self._workload.go()
        for number in itertools.count(1):
            self._injector.inject()
            self._farm.start_all()
            self._farm.wait_linked()
            self._check_now()
            self._wait_for_work()
            self._tell(number)
            enough = self.report.faults >= faults and self._injector.least >= least_hits
            if enough or number % REST_EVERY == 0:
                self._check_at_rest()
            if enough:
                break
            self._workload.go()
        self._stop()
        self.report.seconds = time.monotonic() - begin
        self.report.oddities.update({name: count for name, count in self._farm.listener.odd.items() if name})
        return self.report

    def close(self) -> None:
        self._workload.close()
        self._watch.close()
        self._injector.close()
        self._reader.close()

    def _check_now(self) -> None:
        """What holds at every moment, and what holds a moment later."""
        self._must(lambda: self._patiently(self._invariants), 0.0)
        # A deleted task's files go before its rows, and the database may be away in between.
        self._must(lambda: self._patiently(self._results.check), PATIENCE_S)
        self._must(lambda: self._patiently(lambda: checker.processes(self._reader, self._marks, SLOTS)), PATIENCE_S)

    def _wait_for_work(self) -> None:
        """After every fault frames land again."""
        query = "SELECT COALESCE(MAX(result_id), 0) FROM results WHERE state = 'landed'"
        before = self._patiently(lambda: self._reader.rows(query))
        wait_until(lambda: self._reader.rows(query) > before, "frame that landed after a fault")

    def _invariants(self) -> list[str]:
        with self._reader.snapshot():
            wrong = [*checker.tasks(self._reader), *checker.leases(self._reader), *checker.limits(self._reader)]
        return [*wrong, *self._watch.check()]

    def _check_at_rest(self) -> None:
        """Nothing more is submitted and everything has ended: now nothing may be left of anything."""
        self._workload.rest()
        self._workload.settle(SETTLE_S)
        self._must(self._invariants, 0.0)
        self._must(self._results.check, 0.0)
        self._must(lambda: checker.complete(self._reader, self._workload.frames, self._workload.free), PATIENCE_S)
        self._must(lambda: checker.processes(self._reader, self._marks, SLOTS), PATIENCE_S)
        self._must(lambda: checker.leftovers(self._reader, self._farm.files, self._homes), PATIENCE_S)
        self.report.rests += 1

    def _stop(self) -> None:
        """The end of a run: everything once more, and every program ends as it is asked to."""
        self._must(lambda: self._results.check(everything=True), 0.0)
        for table in ("tasks", "chunks", "attempts", "results"):
            self.report.facts[table] = int(self._reader.rows(f"SELECT COUNT(*) FROM {table}")[0][0])
        self.report.errors.update(self._workload.errors)
        self.report.facts["looks at leases and limits"] = self._watch.looks
        self.report.facts["looks at work ahead"] = self._watch.ahead
        for program in (*(machine.program for machine in self._farm.machines), self._farm.renderapi):
            code = program.stop()
            self._must(lambda code=code, name=program.name: [f"{name} ended with {code}."] if code else [], 0.0)
        self._must(lambda: checker.outboxes(self._homes), 0.0)

    def _patiently(self, read: Callable[[], T]) -> T:
        """The database may still be on its way back."""
        for _ in range(20):
            with suppress(Unavailable):
                return read()
            time.sleep(0.5)
        return read()

    def _must(self, check: Check, timeout_s: float) -> None:
        if wrong := lasting(check, timeout_s):
            words = "\n".join(wrong[:20])
            where = f"seed {self.report.seed}, {self.report.faults} faults, {self._farm.directory} is kept"
            raise Violation(f"{words}\n({self._farm.database}, {where})")

    def _tell(self, number: int) -> None:
        if self._say:
            words = f"{self.report.last}; {len(self._workload.frames)} tasks, {self.report.missed} aims missed"
            print(f"{self._farm.database} {number}: {words}", flush=True)


def inject(
    database: str, faults: int, seed: str, *, least_hits: int = 0, say: bool = False, apart: bool = False
) -> Report:
    """A whole run on a fresh farm, whose machines may have directories of their own (`apart`). `Violation` when
    something does not hold; the farm's directory is kept then."""
    with FaultFarm(database, apart=apart) as farm, closing(Run(farm, seed, say=say)) as run:
        try:
            return run.run(faults, least_hits=least_hits)
        except Exception as error:
            if say:  # the other database's run goes on for a while
                print(f"{database}: {type(error).__name__}: {error}", flush=True)
            raise


def _runs(database: str, faults: int, seed: str, *, apart_only: bool) -> list[Report]:
    """All faults on farms that share a directory, half as many on farms whose machines have their own."""
    if apart_only:
        return [inject(database, faults, seed, say=True, apart=True)]
    shared = inject(database, faults, seed, least_hits=LEAST_HITS if faults >= 200 else 0, say=True)
    return [shared, inject(database, (faults + 1) // 2, seed, say=True, apart=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--database", action="append", choices=("sqlite", "mariadb"), help="default: both, side by side"
    )
    parser.add_argument(
        "--faults", type=int, default=200, help="on each database, and half as many without shared files"
    )
    parser.add_argument("--own-directories", action="store_true", help="only farms whose machines share no files")
    parser.add_argument("--seed", default=time.strftime("%Y-%m-%d"))
    parser.add_argument("--report", type=Path, help="write this page")
    options = parser.parse_args()
    databases = options.database or ["sqlite", "mariadb"]
    with ProcessPoolExecutor(len(databases)) as pool:
        runs = [
            pool.submit(_runs, name, options.faults, options.seed, apart_only=options.own_directories)
            for name in databases
        ]
        page = write([report for run in runs for report in run.result()])
    print(page)
    if options.report:
        options.report.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
