"""A curve as a picture: what the peak is made of, and the power that each part of a phase grows with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mem_gpt_cli.errors import MissingExtraError, UsageError
from mem_gpt_cli.estimate.curve import Heights, part_heights
from mem_gpt_cli.report.growth import exponent, power
from mem_gpt_cli.report.model import MemoryReport
from mem_gpt_cli.report.palette import COLORS, STACK
from mem_gpt_cli.report.sizes import render_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURES = (".png", ".svg", ".pdf")
INK, FAINT = "#222222", "#9a9a9a"
SHOWN_PARTS = 6
LEAST_SHARE = 0.02
AXES = {"seq": "tokens", "batch": "sequences at once"}
PART_COLORS: Mapping[str, str] = {
    "weights": "#0072B2",
    "cached keys and values": "#E69F00",
    "attention scores": "#C0392B",
    "attention": "#7D3C98",
    "attention mask": "#8C564B",
    "feed-forward": "#56B4E9",
    "normalisation": "#76B041",
    "residual stream": "#3E5C76",
    "logits": "#D55E00",
    "gradients": "#009E73",
    "optimizer state": "#CC79A7",
    "optimizer temporaries": "#8C8C8C",
}


def draw(axis: str, points: Mapping[int, MemoryReport], path: Path) -> None:
    """Write two panels beside each other: the peak's components, stacked, and the growth of the parts.

    The suffix of ``path`` says which kind of picture. The exponents are measured between the last two points.

    Raises:
        UsageError: for a suffix that is no picture's, or a path that cannot be written.
        MissingExtraError: without matplotlib.
    """
    figure = new_figure(path, width=12)
    stacked, growth = figure.subplots(1, 2, width_ratios=(5, 4))
    stack(stacked, axis, points)
    grow(growth, axis, list(points), largest_parts(points))
    report = points[max(points)]
    figure.suptitle(headline(report), x=0.01, ha="left", fontsize=13, color=INK)
    save(figure, path)


def finer(values: Sequence[int]) -> list[int]:
    """Ascending sizes with one halfway between each two: a table's points, enough of them for a picture."""
    return sorted({*values, *((low + high) // 2 for low, high in pairwise(values))})


def new_figure(path: Path, *, width: float, height: float = 5.0) -> Any:
    """An empty figure for ``path``, drawn without a display; raises as ``draw``."""
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"cannot draw {path}: give a path that ends in {', '.join(PICTURES)}")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "drawing a curve") from error
    matplotlib.rcParams["svg.hashsalt"] = "memgpt"
    return Figure(figsize=(width, height), dpi=140, layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Write the figure; raises ``UsageError`` where the path cannot be written."""
    try:
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def headline(report: MemoryReport) -> str:
    """Which model, what it does and how: the title of a picture."""
    recipe = report.recipe
    backend = recipe["attention"]["backend"]
    facts = [report.model.name, report.task, recipe["model"]["dtype"], f"{backend} attention"]
    if report.task == "inference" and recipe["kv_cache"]["kind"] == "none":
        facts.append("no cache")
    return " · ".join([*facts, "by formula"])


def stack(axes: Axes, axis: str, points: Mapping[int, MemoryReport]) -> None:
    """The components at the peak as stacked areas, each named where it ends."""
    values, reports = list(points), list(points.values())
    unit, divisor = unit_of(max(report.allocated_bytes for report in reports))
    bands = [(name, color, [n / divisor for n in heights]) for name, color, heights in bands_of(reports)]
    areas = [heights for _, _, heights in bands]
    axes.stackplot(values, areas, colors=[color for _, color, _ in bands], edgecolor="white", linewidth=0.6)
    total = sum(area[-1] for area in areas)
    below, marks = 0.0, []
    for name, color, area in bands:
        if area[-1] >= LEAST_SHARE * total:
            marks.append((below + area[-1] / 2, name, color))
        below += area[-1]
    axes.set_xlim(0, values[-1])
    axes.set_ylim(0, 1.04 * max(report.allocated_bytes for report in reports) / divisor)
    axes.xaxis.set_major_formatter(lambda value, _: f"{round(value):,}")
    name_at_the_end(axes, marks, gap=0.055)
    axes.set_ylabel(f"peak of allocated memory, {unit}")
    dress(axes, axis, "What the peak is made of")


def bands_of(reports: Sequence[MemoryReport]) -> Iterator[tuple[str, str, Heights]]:
    """What is stacked, from below: the peak's components, attention's scores apart from the activations."""
    for name in STACK:
        heights = [report.peak.components.get(name, 0) for report in reports]
        if name == "activations":
            parts = [report.details["at_peak_by_part"][report.peak.name] for report in reports]
            scores = [part.get("attention scores", 0) + part.get("attention mask", 0) for part in parts]
            if any(scores):
                yield "attention scores", PART_COLORS["attention scores"], scores
                heights = [whole - part for whole, part in zip(heights, scores, strict=True)]
                name = "other activations"
        if any(heights):
            yield name.replace("_", " "), COLORS.get(name, COLORS["activations"]), heights


def largest_parts(points: Mapping[int, MemoryReport]) -> list[tuple[str, str, Heights]]:
    """The parts of phases that matter at the last point: (phase, part, heights); one phase a part and power.

    A part that grows alike in two phases is shown in the phase in which it is larger.
    """
    values = list(points)
    best: dict[tuple[str, float], tuple[str, str, Heights]] = {}
    for (phase, part), heights in part_heights(points).items():
        measured = exponent(values, heights)
        if phase == "load" or measured is None or part in ("inputs", "kernel buffers"):
            continue
        key = (part, round(measured, 1))
        if key not in best or heights[-1] > best[key][2][-1]:
            best[key] = (phase, part, heights)
    found = sorted(best.values(), key=lambda entry: -entry[2][-1])
    scores = [entry for entry in found if entry[1] == "attention scores"]
    others = [entry for entry in found if entry[1] != "attention scores"]
    return [*others[: max(2, SHOWN_PARTS - len(scores))], *scores]


def grow(axes: Axes, axis: str, values: Sequence[int], parts: Sequence[tuple[str, str, Heights]]) -> None:
    """Each part as a line on two logarithmic axes, named with the power that it grows with."""
    marks = []
    for phase, part, heights in parts:
        color = PART_COLORS.get(part, FAINT)
        shown = [(value, height) for value, height in zip(values, heights, strict=True) if height]
        step = {"decode": (0, (4, 2))}.get(phase, "solid")
        axes.plot(*zip(*shown, strict=True), color=color, linestyle=step, marker="o", markersize=3)
        marks.append((heights[-1], growth_label(phase, part, values, heights), color))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlim(values[0], values[-1])
    name_at_the_end(axes, marks, gap=0.062)
    axes.yaxis.set_major_formatter(
        lambda nbytes, _: render_bytes(round(nbytes)).replace(".00", "").replace(".0 ", " ")
    )
    axes.xaxis.set_major_formatter(lambda value, _: f"{round(value):,}")
    dress(axes, axis, "How each part grows (both axes logarithmic)")


def growth_label(phase: str, part: str, values: Sequence[int], heights: Heights) -> str:
    """A part's name with the phase that it is of and its measured power."""
    where = {"decode": ", one decode step", "prefill": ", prefill"}.get(phase, "")
    lasting = part in ("weights", "cached keys and values", "optimizer state", "gradients")
    return f"{part}{'' if lasting else where}  {power(values, heights)}"


def name_at_the_end(axes: Axes, marks: Sequence[tuple[float, str, str]], *, gap: float) -> None:
    """Write each name (height, text, color) right of the plot at its height, ``gap`` of the axis apart."""
    axes.figure.canvas.draw()  # the limits of a logarithmic axis are settled by drawing
    place = axes.transData + axes.transAxes.inverted()
    right = axes.get_xlim()[1]
    ordered = sorted(
        (float(place.transform((right, height))[1]), text, color) for height, text, color in marks
    )
    heights = spread_out([height for height, _, _ in ordered], gap)
    for y, (_, text, color) in zip(heights, ordered, strict=True):
        axes.text(1.015, y, text, transform=axes.transAxes, color=color, va="center", fontsize=9)


def spread_out(heights: Sequence[float], gap: float, rounds: int = 100) -> list[float]:
    """Ascending heights moved until neighbours are ``gap`` apart, the two of a pair giving way alike."""
    moved = list(heights)
    for _ in range(rounds):
        for index in range(len(moved) - 1):
            missing = gap - (moved[index + 1] - moved[index])
            if missing > 0:
                moved[index] -= missing / 2
                moved[index + 1] += missing / 2
    return moved


def dress(axes: Axes, axis: str, title: str) -> None:
    """What all panels share: a title on the left, two spines, a faint grid."""
    axes.set_title(title, loc="left", fontsize=10.5, color=INK)
    axes.set_xlabel(AXES.get(axis, axis))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="y", color="#e8e8e8", linewidth=0.7)
    axes.set_axisbelow(True)


def unit_of(most: int) -> tuple[str, int]:
    """The unit in which ``most`` bytes are read easily, and its bytes."""
    return ("GiB", 2**30) if most >= 2**30 else ("MiB", 2**20)
