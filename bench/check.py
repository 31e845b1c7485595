"""`make bench-check`: has the farm become slower? Medians of three short runs against `bench/kept.toml`.

Every figure is a ratio with something measured in the same run, so that it holds on any computer: CPU a chunk of the
farm by that of the bare reference, chunks a second by the reference's and by HyperQueue's, the start by HyperQueue's.
With each figure its spread is kept, the largest by the smallest of the three runs.

    python -m bench.check          compare; exit code 1 when a figure is more than 20 % worse than its spread allows
    python -m bench.check --keep   measure, and write the figures to bench/kept.toml
"""

import argparse
import statistics
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import throughput
from bench.peers import hyperqueue_chunks, hyperqueue_starts
from bench.start_latency import PAUSE_S, percentile, starts

KEPT = Path(__file__).with_name("kept.toml")
RUNS = 3
STARTS = 60
ALLOWED = 1.2


@dataclass(frozen=True)
class Figure:
    """The median of some runs, and the largest by the smallest. `lower_is_better`: whether growth is a loss."""

    median: float
    spread: float
    lower_is_better: bool

    def loss(self, now: float) -> float:
        """How much worse `now` is than the median, as a factor; below 1 it is better."""
        return now / self.median if self.lower_is_better else self.median / now


def measured() -> dict[str, tuple[list[float], bool]]:
    """Each figure's name with its runs and whether lower is better."""
    found: dict[str, list[float]] = {}
    for _ in range(RUNS):
        farm, reference = throughput.farm_run(), throughput.reference_run()
        peer = hyperqueue_chunks(throughput.MACHINES, throughput.SLOTS, throughput.CHUNKS, throughput.PROGRAM)
        with starts() as measured_starts:
            ours = percentile(measured_starts.ms(STARTS), 50)
        theirs = percentile(hyperqueue_starts(STARTS, PAUSE_S), 50)
        for name, value in (
            ("CPU a chunk, of the reference", farm.total_us / reference.total_us),
            ("chunks a second, of the reference", farm.chunks_s / reference.chunks_s),
            ("chunks a second, of HyperQueue", farm.chunks_s / peer),
            ("start, of HyperQueue", ours / theirs),
        ):
            found.setdefault(name, []).append(value)
            print(f"  {name}: {value:.2f}", flush=True)
    return {name: (values, not name.startswith("chunks")) for name, values in found.items()}


def losses(kept: Mapping[str, Figure], now: Mapping[str, float]) -> list[str]:
    """A line for each figure that is worse than its spread and 20 % allow."""
    lines = []
    for name, figure in kept.items():
        if name not in now:
            lines.append(f"{name}: not measured")
        elif (loss := figure.loss(now[name])) > ALLOWED * figure.spread:
            lines.append(
                f"{name}: {now[name]:.2f}, kept was {figure.median:.2f} with a spread of {figure.spread:.2f}:"
                f" {loss:.2f} times as bad, at most {ALLOWED * figure.spread:.2f} is allowed"
            )
    return lines


def read(path: Path) -> dict[str, Figure]:
    """The kept figures."""
    return {name: Figure(**values) for name, values in tomllib.loads(path.read_text()).items()}


def write(path: Path, found: Mapping[str, tuple[list[float], bool]]) -> None:
    """Keep figures for later comparisons."""
    lines = ["# Written by `python -m bench.check --keep`: medians of three runs, and largest by smallest."]
    for name, (values, lower) in found.items():
        median, spread = statistics.median(values), max(values) / min(values)
        lines += ["", f'["{name}"]', f"median = {median:.3f}", f"spread = {spread:.3f}"]
        lines.append(f"lower_is_better = {str(lower).lower()}")
    path.write_text("\n".join(lines) + "\n")


def main(measure: Callable[[], dict[str, tuple[list[float], bool]]] = measured, kept: Path = KEPT) -> int:
    """Compare or keep."""
    parser = argparse.ArgumentParser(prog="make bench-check", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="write what is measured now to bench/kept.toml")
    keep = parser.parse_args().keep
    found = measure()
    if keep:
        write(kept, found)
        print(f"Kept in {kept}")
        return 0
    lines = losses(read(kept), {name: statistics.median(values) for name, (values, _) in found.items()})
    print("\n".join(["The farm has become slower:", *lines]) if lines else "No figure is worse than its spread allows.")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
