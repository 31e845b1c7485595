"""What was done to a farm and what was seen, counted; as a page for `docs/faults-report.md`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

COLUMNS = ("waiting", "assigned", "running", "landing", "settling")
ROWS = {
    "renderapi": "RenderAPI",
    "hpcserver": "HPCServer",
    "spawner": "spawner",
    "engine": "engine",
    "mariadb": "MariaDB",
}


@dataclass
class Report:
    """One run on one database; `apart`: of machines that share no files with RenderAPI. `hits`: (process, state) ->
    faults that struck there; `missed`: aims without a shot."""

    database: str
    seed: str
    apart: bool = False
    hits: Counter[tuple[str, str]] = field(default_factory=Counter)
    signals: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    oddities: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    facts: dict[str, int] = field(default_factory=dict)
    missed: int = 0
    last: str = ""
    rests: int = 0
    seconds: float = 0.0

    @property
    def faults(self) -> int:
        return self.hits.total() + self.others.total()

    def hit(self, process: str, state: str, signal: str) -> None:
        self.hits[process, state] += 1
        self.signals[signal] += 1
        self.last = f"{signal} of {process} while {state}"

    def other(self, what: str) -> None:
        self.others[what] += 1
        self.last = what

    def page(self) -> str:
        """This run as Markdown."""
        name = {"sqlite": "SQLite", "mariadb": "MariaDB"}[self.database]
        name += ", machines with directories of their own" if self.apart else ""
        shown = [row for row in ROWS if any(self.hits[row, column] for column in COLUMNS)]
        table = [f"| {ROWS[row]} | {' | '.join(str(self.hits[row, column]) for column in COLUMNS)} |" for row in shown]
        return "\n".join(
            [
                f"## {name}: {self.faults} faults, no violation",
                "",
                f"Seed `{self.seed}`, {self.seconds / 60:.1f} minutes, at rest and checked wholly {self.rests} times.",
                _words(self.facts),
                "",
                f"| process struck while a chunk was | {' | '.join(COLUMNS)} |",
                "|---|" + "---|" * len(COLUMNS),
                *table,
                "",
                f"Of these {_words(self.signals)}. Besides: {_words(self.others)}.",
                f"What clients were told in spite of their patience: {_words(self.errors)}.",
                f"The engine itself misbehaved: {_words(self.oddities)}.",
                "",
            ]
        )


HEAD = """\
# What the fault suite did

Written by `make faults`. Real programs (RenderAPI, three HPCServers with their spawners, a fake engine) are killed,
stopped, cut off, filled up and misdated at seeded instants while users submit, pause, cancel and delete; an
independent checker looks at database, files and process table after each fault (`tests/faults/checker.py`). The
machines of some farms share no files with RenderAPI.

"""


def write(reports: Sequence[Report]) -> str:
    """The whole page."""
    return HEAD + "\n".join(report.page() for report in reports)


def _words(counts: "Counter[str] | dict[str, int]") -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count) or "nothing"
