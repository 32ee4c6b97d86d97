"""The pictures of docs/why-memory-grows.md: growth predicted by formula, and measured beside it.

    python benchmarks/growth.py              # measures (a few minutes), writes results/growth_cpu.csv, draws
    python benchmarks/growth.py --draw-only  # draws from the CSV that is there

The measured model is a GPT-2 of 4 layers, 256 wide, so that lengths up to 2,048 run on any CPU and
activations outweigh its weights; predictions are for the same recipes.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.console import Console

from mem_gpt_cli.estimate import curve, estimate
from mem_gpt_cli.estimate.plot import draw, dress, finer, name_at_the_end, new_figure, save
from mem_gpt_cli.recipe import Recipe, load_recipe
from mem_gpt_cli.report import MemoryReport
from mem_gpt_cli.report.growth import power
from mem_gpt_cli.report.sizes import render_bytes

ROOT = Path(__file__).parents[1]
IMAGES, RESULTS = ROOT / "docs" / "images", ROOT / "results" / "growth_cpu.csv"

LENGTHS = (128, 256, 512, 1024, 2048)
NEW_TOKENS = 4
SMALL = (
    "model.name=gpt2 model.config.n_layer=4 model.config.n_embd=256 model.config.n_head=8 "
    "model.config.vocab_size=2048 model.config.n_positions=2048 device.threads=1"
)


@dataclass(frozen=True)
class Series:
    """One line of the picture: a phase of a recipe, less its weights, or the cache alone."""

    name: str
    options: str
    phase: str
    color: str
    cache_alone: bool = False

    def bytes_of(self, report: MemoryReport) -> int:
        """What the line shows of one report."""
        phase = report.phase(self.phase)
        assert phase is not None
        if self.cache_alone:
            return phase.components["kv_cache"]
        held = phase.components
        return phase.peak_allocated_bytes - held["weights"] - held["optimizer_state"]


SERIES = (
    Series("training, eager attention", "task=training attention.backend=eager", "forward", "#C0392B"),
    Series("training, fused attention", "task=training model.dropout=0", "forward", "#009E73"),
    Series("prefill, eager attention", "attention.backend=eager", "prefill", "#7D3C98"),
    Series("prefill, fused attention", "", "prefill", "#0072B2"),
    Series("KV cache while decoding", "", "decode", "#E69F00", cache_alone=True),
)


@dataclass(frozen=True)
class Point:
    """One length of one series, predicted and measured, in bytes."""

    schema_version: int
    series: str
    seq: int
    predicted_bytes: int
    measured_bytes: int


def recipe_of(series: Series, seq: int) -> Recipe:
    """The recipe of one point."""
    sizes = f"workload.seq={seq}"
    if "task=training" not in series.options:
        sizes += f" workload.new_tokens={NEW_TOKENS}"
    return load_recipe(overrides=f"{SMALL} {series.options} {sizes}".split())


def measure(console: Console) -> Iterator[Point]:
    """Run every point for real."""
    from mem_gpt_cli.profile import profile

    for series in SERIES:
        for seq in LENGTHS:
            recipe = recipe_of(series, seq)
            predicted = series.bytes_of(estimate(recipe))
            measured = series.bytes_of(profile(recipe, passes="memory"))
            console.print(f"{series.name}, {seq} tokens: {render_bytes(predicted)}, {render_bytes(measured)}")
            yield Point(1, series.name, seq, predicted, measured)


def write(points: Iterable[Point]) -> None:
    """Keep the points for the next drawing."""
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Point)])
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)


def read() -> list[Point]:
    """The points that an earlier run has kept."""
    with RESULTS.open(newline="") as file:
        return [Point(*(int(v) if v.isdigit() else v for v in row.values())) for row in csv.DictReader(file)]  # type: ignore[arg-type]


def draw_measured(points: list[Point], path: Path) -> None:
    """Predictions as lines, measurements as rings on them, each line named with the power measured."""
    figure = new_figure(path, width=9, height=5.2)
    axes, marks = figure.subplots(), []
    for series in SERIES:
        found = [point for point in points if point.series == series.name]
        seqs = [point.seq for point in found]
        axes.plot(seqs, [point.predicted_bytes for point in found], color=series.color, linewidth=1.6)
        measured = [point.measured_bytes for point in found]
        axes.plot(seqs, measured, "o", color=series.color, markerfacecolor="white", markersize=7)
        marks.append((measured[-1], f"{series.name}  {power(seqs, measured)}", series.color))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlim(LENGTHS[0] * 0.93, LENGTHS[-1] * 1.04)
    axes.xaxis.set_major_formatter(lambda value, _: f"{round(value):,}")
    axes.yaxis.set_major_formatter(lambda value, _: render_bytes(round(value)).replace(".0 ", " "))
    axes.set_ylabel("peak beside weights and optimizer state")
    name_at_the_end(axes, marks, gap=0.06)
    dress(axes, "seq", "Lines: predicted by formula. Rings: measured by the CPU allocator. Powers: measured.")
    save(figure, path)


def draw_predicted() -> None:
    """The pictures that `memgpt estimate --curve seq --plot PATH` draws, for the whole GPT-2."""
    for name, options in {
        "generation-eager": "attention.backend=eager",
        "generation-fused": "",
        "generation-no-cache": "kv_cache.kind=none",
        "training-eager": "task=training attention.backend=eager model.dropout=0",
        "training-fused": "task=training model.dropout=0",
    }.items():
        recipe = load_recipe(overrides=f"model.name=gpt2 {options}".split())
        draw("seq", curve(recipe, "seq", finer(list(curve(recipe, "seq")))), IMAGES / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--draw-only", action="store_true", help="measure nothing, draw from the CSV")
    if not parser.parse_args().draw_only:
        write(measure(Console()))
    IMAGES.mkdir(parents=True, exist_ok=True)
    draw_measured(read(), IMAGES / "measured-growth.png")
    draw_predicted()


if __name__ == "__main__":
    main()
