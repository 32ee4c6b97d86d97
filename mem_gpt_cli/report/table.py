"""Reports as tables for a terminal; each fits 80 columns and grows no wider than what it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.bar import Bar
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mem_gpt_cli.report.advice import advice_line
from mem_gpt_cli.report.ladder import has_ladder, ladder
from mem_gpt_cli.report.model import COMPONENTS, MemoryReport, Phase, Speed, Telemetry
from mem_gpt_cli.report.palette import COLORS
from mem_gpt_cli.report.sizes import render_bytes, render_share

if TYPE_CHECKING:
    from rich.console import RenderableType

BAR_WIDTH = 9
SOURCE_WIDTH = 44
HEADINGS = {"estimate": "predicted (formula)", "trace": "predicted (trace)", "profile": "measured"}


def title(report: MemoryReport, *, sizes: bool = True) -> Text:
    """What the report speaks of: the model on one line, task, ``sizes`` and device on the next."""
    workload, model = report.recipe.get("workload", {}), report.model
    text = Text(model.name, style="bold")
    text.append(f"  {_millions(model.parameters)} parameters\n", style="not bold dim")
    facts = [
        report.task,
        f"batch {workload.get('batch', 1)}" if sizes else "",
        _lengths(report) if sizes else "",
        _precision(report),
        report.device.name,
    ]
    text.append(" · ".join(fact for fact in facts if fact), style="not bold")
    return text


def summary(report: MemoryReport) -> RenderableType:
    """One report: components by phase, each one's share of the peak, the ladder above it, the cause."""
    peak = report.peak
    table = plain_table()
    table.add_column(_two_lines(HEADINGS[report.lens]), no_wrap=True)
    for phase in report.phases:
        at_peak = phase is peak
        heading = words(phase.name).replace(" ", "\n")
        table.add_column(
            Text(f"{heading}\n▲ peak" if at_peak else heading, style="bold" if at_peak else "not bold"),
            justify="right",
            no_wrap=True,
            style="bold" if at_peak else "",
        )
    table.add_column("share\nof peak", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, width=BAR_WIDTH)
    for name in _present(report.phases):
        table.add_row(
            label(name),
            *(_cell(report.held(phase, name)) for phase in report.phases),
            render_share(peak.components.get(name, 0), peak.peak_allocated_bytes),
            _bar(peak.components.get(name, 0), peak.peak_allocated_bytes, COLORS[name]),
        )
    table.add_section()
    table.add_row(
        "allocated", *(render_bytes(phase.peak_allocated_bytes) for phase in report.phases), style="bold"
    )
    _add_bounds(table, report)
    parts: list[RenderableType] = [title(report), table]
    if report.cause:
        parts.append(Text(_sentence(report.cause)))
    if advice := advice_line(report):
        parts.append(advice)
    if has_ladder(report):
        parts += ["", ladder_table(report)]
    elif line := _ladder_line(report):
        parts.append(line)
    return Group(*parts)


def comparison(reports: Mapping[str, MemoryReport | None], *, titled: bool = True) -> RenderableType:
    """Reports of one recipe side by side, by lens: each phase's total and the components under it.

    The difference is that of the last two columns that have an answer, the later minus the earlier;
    without a report, a column's cells are empty.
    """
    known = [report for report in reports.values() if report is not None]
    table = plain_table()
    table.add_column("", no_wrap=True)
    for lens in reports:
        table.add_column(_two_lines(HEADINGS[lens]), justify="right", no_wrap=True)
    table.add_column(_difference_heading(reports), justify="right", no_wrap=True)
    peaks = {report.peak.name for report in known}
    for phase in _phase_names(known):
        phases = [report.phase(phase) if report else None for report in reports.values()]
        mark = " ▲" if phase in peaks else ""
        totals = [found.peak_allocated_bytes if found else None for found in phases]
        table.add_row(f"{words(phase)}{mark}", *map(render_bytes, totals), _difference(totals), style="bold")
        for name in _present([found for found in phases if found]):
            parts = [
                report.held(found, name) if report and found else None
                for report, found in zip(reports.values(), phases, strict=True)
            ]
            table.add_row(Text("  ").append(label(name)), *map(_cell, parts), _difference(parts))
        table.add_section()
    _add_ladder_rows(table, reports)
    legend = Text("▲ the phase of the peak", style="dim")
    return Group(title(known[-1]), table, legend) if known and titled else Group(table, legend)


def precisions(reports: Mapping[str, MemoryReport]) -> RenderableType:
    """The components at the peak by the width that the weights are held in."""
    table = plain_table()
    table.add_column("peak, by weights held in", no_wrap=True)
    for column in reports:
        table.add_column(column, justify="right", no_wrap=True)
    for name in _present([report.peak for report in reports.values()]):
        table.add_row(
            label(name), *(_cell(report.peak.components.get(name, 0)) for report in reports.values())
        )
    table.add_section()
    table.add_row("allocated", *(render_bytes(r.allocated_bytes) for r in reports.values()), style="bold")
    table.add_row("in phase", *(words(r.peak.name) for r in reports.values()), style="dim")
    return table


def places(report: MemoryReport) -> RenderableType:
    """For each phase the operation and module at its peak, and what was measured of it beside its memory."""
    table = plain_table()
    table.add_column("phase", no_wrap=True)
    columns = {
        "duration": [_seconds(phase.duration_s) for phase in report.phases],
        "reserved": [render_bytes(phase.reserved_bytes) for phase in report.phases],
        "process": [render_bytes(phase.process_bytes) for phase in report.phases],
        "device": [render_bytes(phase.device_bytes) for phase in report.phases],
    }
    known = {heading: cells for heading, cells in columns.items() if any(cells)}
    for heading in known:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("peaks at", overflow="fold")
    for number, phase in enumerate(report.phases):
        table.add_row(words(phase.name), *(cells[number] for cells in known.values()), _place(phase))
    lines = [Text(line) for line in (_speed(report), _board(report)) if line]
    return Group(table, *lines)


def plain_table() -> Table:
    """A table without a frame: a rule under the headings, and rows as close as they come."""
    return Table(box=box.SIMPLE_HEAD, header_style="", pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))


def _present(phases: Sequence[Phase]) -> list[str]:
    """The components that hold a byte in any of the phases."""
    return [name for name in COMPONENTS if any(phase.components.get(name, 0) for phase in phases)]


def _phase_names(reports: Sequence[MemoryReport]) -> list[str]:
    return list(dict.fromkeys(phase.name for report in reports for phase in report.phases))


def _cell(count: int | None) -> Text:
    return Text("·", style="dim") if count == 0 else Text(render_bytes(count))


def label(name: str) -> Text:
    """A component's name in its color."""
    return Text(words(name), style=COLORS[name])


def _bar(part: int, whole: int, color: str) -> RenderableType:
    return Bar(size=whole or 1, begin=0, end=part, width=BAR_WIDTH, color=color)


def _difference(counts: Sequence[int | None]) -> Text:
    known = [count for count in counts if count is not None]
    if len(known) < 2:
        return Text("")
    before, after = known[-2:]
    if after == before:
        return Text("0 B", style="dim")
    change = render_bytes(after - before, signed=True)
    if before == 0:
        return Text(change)
    return Text(f"{change} ({_percent(100 * (after - before) / before)})")


def _percent(percent: float) -> str:
    if abs(percent) > 999:
        return f"{'>' if percent > 0 else '<-'}999%"
    if abs(percent) < 0.005:
        return "<0.01%"
    return f"{percent:+.2f}%" if abs(percent) < 10 else f"{percent:+.0f}%"


def _difference_heading(reports: Mapping[str, MemoryReport | None]) -> str:
    short = {"estimate": "formula", "trace": "trace", "profile": "measured"}
    known = [short[lens] for lens, report in reports.items() if report is not None]
    return f"difference\n({known[-1]} - {known[-2]})" if len(known) > 1 else "difference"


def _add_bounds(table: Table, report: MemoryReport) -> None:
    for attribute, label in (("lower_bytes", "at least"), ("upper_bytes", "at most")):
        bounds = [getattr(phase, attribute) for phase in report.phases]
        if any(bound is not None for bound in bounds):
            table.add_row(label, *map(render_bytes, bounds), style="dim")


def ladder_table(report: MemoryReport) -> RenderableType:
    """Why ``nvidia-smi`` shows more than torch: each step and how it was got, then what each one adds."""
    steps = ladder(report)
    table = plain_table()
    table.add_column("from torch\nto nvidia-smi", no_wrap=True)
    table.add_column("peak", justify="right", no_wrap=True)
    table.add_column("more", justify="right", no_wrap=True)
    table.add_column("how it was got", max_width=SOURCE_WIDTH)
    for step in steps:
        more = render_bytes(step.difference_bytes, signed=True)
        missing = Text(f"not available: {step.why_not}", style="dim") if step.why_not else step.how
        table.add_row(step.name, render_bytes(step.bytes), more, missing)
    sentences = [Text.assemble((step.name, "bold"), f": {step.explanation}.") for step in steps]
    return Group(table, "", *sentences)


def _ladder_line(report: MemoryReport) -> Text | None:
    """The same in a row where there is no more to say: on CPU, and for a formula."""
    steps = [
        ("reserved", report.reserved_bytes),
        ("process", report.process_bytes),
        ("device", report.device_bytes),
    ]
    known = [f"{name} {render_bytes(count)}" for name, count in steps if count is not None]
    if not known:
        return None
    return Text(" → ".join([f"allocated {render_bytes(report.allocated_bytes)}", *known]), style="dim")


def _add_ladder_rows(table: Table, reports: Mapping[str, MemoryReport | None]) -> None:
    for attribute in ("reserved_bytes", "process_bytes", "device_bytes"):
        counts = [getattr(report, attribute) if report else None for report in reports.values()]
        if any(count is not None for count in counts):
            table.add_row(attribute.removesuffix("_bytes"), *map(render_bytes, counts), _difference(counts))


def _lengths(report: MemoryReport) -> str:
    workload = report.recipe.get("workload", {})
    prompt, new, seq = (workload.get(key) for key in ("prompt_tokens", "new_tokens", "seq"))
    if report.task == "inference" and prompt and new:
        return f"{prompt:,} + {new:,} tokens"
    return f"{seq:,} tokens" if seq else ""


def _precision(report: MemoryReport) -> str:
    quantization = report.recipe.get("quantization", {})
    scheme = quantization.get("scheme", "none")
    parts = (quantization.get("overrides") or {}).values()
    if any((part.get("scheme") or scheme) != scheme for part in parts):
        scheme = "mixed" if scheme == "none" else f"{scheme} (mixed)"
    autocast = report.recipe.get("workload", {}).get("autocast", "none")
    dtype = report.recipe.get("model", {}).get("dtype", "")
    held = scheme if scheme != "none" else dtype
    return f"{held}, {autocast} autocast" if autocast != "none" else str(held)


def _millions(parameters: int) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= size:
            return f"{parameters / size:.3g}{unit}"
    return str(parameters)


def _place(phase: Phase) -> str:
    return " in ".join(part for part in (phase.peak_operation, phase.peak_module) if part)


def _speed(report: MemoryReport) -> str:
    speed = report.speed or Speed()
    figures = {
        "{} to the first token": _milliseconds(speed.ttft_ms),
        "{} for each further one": _milliseconds(speed.decode_ms_per_token),
        "{} s a step": _plain(speed.step_s),
        "{} tokens/s": _plain(speed.tokens_per_s),
    }
    return ", ".join(text.format(figure) for text, figure in figures.items() if figure)


def _milliseconds(duration: float | None) -> str:
    """Seconds from 10,000 ms on."""
    if duration is None:
        return ""
    return f"{_plain(duration)} ms" if duration < 10_000 else f"{_plain(duration / 1e3)} s"


def _plain(figure: float | None) -> str:
    """Four digits, and never a power of ten beside them."""
    if figure is None:
        return ""
    return f"{figure:,.0f}" if figure >= 10_000 else f"{figure:.4g}"


def _board(report: MemoryReport) -> str:
    board = report.telemetry or Telemetry()
    figures = {
        "{:.0f} W on average": board.power_mean_w,
        "{:.0f} W at most": board.power_max_w,
        "{:.0f}% busy": board.utilization_mean_percent,
        "{:.0f} °C at most": board.temperature_max_c,
    }
    return _known(figures)


def _known(figures: Mapping[str, float | None]) -> str:
    """The figures that there are, each in its text, one after the other."""
    return ", ".join(text.format(figure) for text, figure in figures.items() if figure is not None)


def _seconds(duration: float | None) -> str:
    if duration is None:
        return ""
    return f"{duration * 1e3:.0f} ms" if duration < 1 else f"{duration:.1f} s"


def words(name: str) -> str:
    """The name of a phase or a component as people read it."""
    return name.replace("_", " ").replace("kv ", "KV ")


def _two_lines(heading: str) -> str:
    return heading.replace(" (", "\n(")


def _sentence(cause: str) -> str:
    text = cause[:1].upper() + cause[1:]
    return text if text.endswith((".", "!", "?")) else text + "."
