"""Tables in a narrow terminal and in a pipe: no number is cut, nothing unknown is shown as 0."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from report_samples import GIB, inference, phase, training
from rich.console import Console, RenderableType

from mem_gpt_cli.report import MemoryReport, table
from mem_gpt_cli.report.sizes import render_bytes, render_share


def render(shown: RenderableType, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=25, highlight=False)
    console.print(shown)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def row(lines: list[str], label: str) -> list[str]:
    """The cells of the first row with that label."""
    line = next(line for line in lines if line.strip().startswith(label))
    return re.split(r"\s{2,}", line.strip())


def wide(lens: str) -> MemoryReport:
    """Figures as wide as they come, in every phase of a training."""
    held = {"weights": 1010 * GIB, "optimizer_state": 99 * GIB + 1, "logits": 1023, "workspace": 1023 * 2**20}
    phases = tuple(phase(name, **held) for name in ("load", "forward", "backward", "optimizer_step"))
    return replace(
        training(lens), phases=phases, model=replace(training().model, name="org/" + "long-name-" * 4)
    )


EVERY_TABLE = [
    table.summary(training()),
    table.summary(inference()),
    table.summary(wide("estimate")),
    table.comparison({"estimate": training(), "trace": training("trace", 384), "profile": inference()}),
    table.comparison({"estimate": wide("estimate"), "trace": training("trace"), "profile": wide("profile")}),
    table.precisions({name: wide("estimate") for name in ("fp32", "bf16", "int8", "nf4")}),
]


@pytest.mark.parametrize("shown", EVERY_TABLE)
def test_80_columns_cut_nothing_and_wider_ones_change_nothing(shown: RenderableType) -> None:
    narrow, broad = render(shown, 80), render(shown, 200)
    assert not any("…" in line for line in narrow)
    assert all(len(line) <= 80 for line in narrow)
    assert [line.rstrip() for line in narrow] == [line.rstrip() for line in broad]


def test_a_component_that_is_0_everywhere_has_no_row_and_elsewhere_a_dot() -> None:
    lines = render(table.summary(training()))
    assert row(lines, "gradients")[1:4] == ["·", "·", "5.80 GiB"]
    assert not any("KV cache" in line or "adapters" in line for line in lines)


def test_the_phase_of_the_peak_is_marked_and_its_shares_shown() -> None:
    lines = render(table.summary(training()))
    marked = next(line for line in lines if "▲ peak" in line)
    assert "forward" in lines[lines.index(marked) - 1]
    assert row(lines, "optimizer state")[5] == "45%"
    assert row(lines, "logits")[5] == "<1%"
    assert "█" in row(lines, "optimizer state")[6]
    assert "The peak is in the forward pass: activations of 48 layers hold 31%." in lines


def test_bounds_and_the_ladder_are_shown_where_they_are_known() -> None:
    lines = render(table.summary(inference()))
    assert row(lines, "at least") == ["at least", "56.3 MiB"]
    assert "allocated 56.8 MiB → process 460 MiB" in lines
    assert not any(
        line.startswith(("process", "duration", "at most")) for line in render(table.summary(training()))
    )


def test_places_say_where_each_phase_peaks_and_what_the_clock_said() -> None:
    lines = render(table.places(inference()))
    assert row(lines, "prefill") == ["prefill", "1.5 s", "460 MiB", "aten.addmm in transformer.h.3.mlp"]
    assert row(lines, "decode") == ["decode", "12.0 s"]
    assert lines[-1] == "1500 ms to the first token, 80 ms for each further one, 12.5 tokens/s"
    assert row(render(table.places(training())), "backward") == ["backward", "aten.mm"]


def test_a_component_that_the_lens_cannot_see_is_empty_and_not_0() -> None:
    blind = replace(inference(), provenance={"kv_cache": "unavailable"})
    blind = replace(blind, phases=(*blind.phases[:2], phase("decode", weights=9_600_000)))
    assert row(render(table.summary(blind)), "KV cache")[1] == "15.9 MiB"


def test_comparison_puts_a_phase_above_its_components_and_subtracts_the_last_two() -> None:
    formula, traced, measured = training(), training("trace", 384), training("profile", 500_000_000)
    lines = render(table.comparison({"estimate": formula, "trace": traced, "profile": measured}))
    start = next(n for n, line in enumerate(lines) if line.startswith("backward"))
    assert row(lines[start:], "backward")[1:] == ["25.1 GiB", "25.1 GiB", "25.6 GiB", "+477 MiB (+1.86%)"]
    assert lines[start + 1].startswith("  weights")
    assert row(lines[start:], "activations")[1:] == ["1.50 GiB", "1.50 GiB", "1.96 GiB", "+477 MiB (+31%)"]
    assert row(lines[start:], "weights")[-1] == "0 B"
    assert any("measured - trace" in line for line in lines)
    two = render(table.comparison({"estimate": formula, "trace": traced}))
    assert row(two, "backward")[-1] == "+384 B (<0.01%)"
    assert any("trace - formula" in line for line in two)


def test_a_missing_lens_is_an_empty_column() -> None:
    lines = render(table.comparison({"estimate": None, "trace": training("trace"), "profile": None}))
    assert row(lines, "backward") == ["backward", "25.1 GiB"]
    assert any(re.search(r"measured\s+difference", line) for line in lines)
    assert not any("0 B" in line for line in lines)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (10_235, "10.0 KiB"),
        (1_048_063, "1023 KiB"),
        (1_048_064, "1.00 MiB"),
        (6_230_444_800, "5.80 GiB"),
        (180 * 10**9, "168 GiB"),
        (2**60, "1024 PiB"),
        (-384, "-384 B"),
        (None, ""),
    ],
)
def test_bytes_are_rendered_in_binary_units(count: int | None, text: str) -> None:
    assert render_bytes(count) == text


def test_signs_and_shares() -> None:
    assert render_bytes(2048, signed=True) == "+2.00 KiB"
    assert render_bytes(0, signed=True) == "0 B"
    assert [render_share(part, 1000) for part in (0, 1, 10, 414, 1000)] == ["", "<1%", "1%", "41%", "100%"]
    assert render_share(0, 0) == ""
