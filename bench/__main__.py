"""`make bench`: the figures of the README, measured on this machine and printed as one table."""

import argparse
import platform

import psutil

from bench import beside_uploads, cards, machines, queues, scheduling, start_latency, throughput, transfers


def main() -> None:
    """Run every benchmark, or those that are named."""
    benchmarks = {
        "start": start_latency.run,
        "box": start_latency.run_boxes,
        "plan": scheduling.run,
        "throughput": throughput.run,
        "machines": machines.run,
        "very-many-machines": machines.run_very_many,  # only when it is named: it takes minutes
        "queues": queues.run,
        "transfers": transfers.run,
        "beside-uploads": beside_uploads.run,
        "cards": cards.run,
    }
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(benchmarks)}", choices=[*benchmarks, []])
    names = parser.parse_args().names or [name for name in benchmarks if name != "very-many-machines"]
    print(f"{psutil.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, {platform.system()}")
    for name in names:
        benchmarks[name]()


if __name__ == "__main__":
    main()
