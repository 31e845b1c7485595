"""`make bench-check` says which figure has become worse."""

from pathlib import Path

from bench.check import Figure, losses, read, write

CPU = Figure(median=4.0, spread=1.1, lower_is_better=True)
RATE = Figure(median=0.5, spread=1.0, lower_is_better=False)


def test_figure_within_its_spread_and_twenty_per_cent_is_no_loss() -> None:
    assert losses({"cpu": CPU, "rate": RATE}, {"cpu": 4.0 * 1.1 * 1.19, "rate": 0.5 / 1.19}) == []


def test_figure_beyond_that_is_named_with_what_was_and_what_is() -> None:
    [line] = losses({"cpu": CPU, "rate": RATE}, {"cpu": 5.6, "rate": 0.5})
    assert line.startswith("cpu: 5.60, kept was 4.00 with a spread of 1.10")


def test_lower_rate_is_a_loss() -> None:
    assert len(losses({"rate": RATE}, {"rate": 0.4})) == 1


def test_figure_that_was_not_measured_is_a_loss() -> None:
    assert losses({"rate": RATE}, {}) == ["rate: not measured"]


def test_kept_figures_are_read_as_they_were_written(tmp_path: Path) -> None:
    write(tmp_path / "kept.toml", {"CPU, of it": ([1.0, 2.0, 4.0], True)})
    assert read(tmp_path / "kept.toml") == {"CPU, of it": Figure(2.0, 4.0, lower_is_better=True)}
