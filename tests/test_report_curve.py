"""The curve of growth: bars that add up, exponents that are those of the data."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from report_samples import GIB, inference, phase
from rich.console import Console

from mem_gpt_cli.report import COMPONENTS, MemoryReport
from mem_gpt_cli.report.curve import BAR_WIDTH, GLYPHS, growth
from mem_gpt_cli.report.growth import in_words, power
from mem_gpt_cli.report.table import words

LENGTHS = (128, 256, 512, 1024, 2048)


def points() -> dict[int, MemoryReport]:
    """Weights of 1 GiB, a cache of 1 MiB a token, activations of 1 KiB a pair of tokens."""
    return {
        n: replace(
            inference("estimate"),
            phases=(phase("prefill", weights=GIB, kv_cache=n * 2**20, activations=n * n * 2**10),),
        )
        for n in LENGTHS
    }


def rendered(width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=25)
    heights = {
        (phase.name, words(name)): [report.phases[0].components[name] for report in points().values()]
        for phase in points()[128].phases
        for name in COMPONENTS
    }
    console.print(growth("seq", points(), heights))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def test_the_longest_bar_fills_its_column_and_the_others_are_in_proportion() -> None:
    lines = [line for line in rendered() if "█" in line and "prefill" in line]
    bars = [sum(line.count(glyph) for glyph in GLYPHS.values()) for line in lines]
    peaks = [report.allocated_bytes for report in points().values()]
    assert len(bars) == len(LENGTHS)
    assert bars == [round(BAR_WIDTH * peak / max(peaks)) for peak in peaks]


def test_each_component_is_said_to_grow_as_it_does() -> None:
    lines = rendered()
    start = next(number for number, line in enumerate(lines) if line.startswith("highest in each phase"))
    grown = {line.strip().split("  ")[0]: line for line in lines[start:]}
    assert "not at all" in grown["weights"]
    assert "linearly (n^1.00)" in grown["KV cache"]
    assert "quadratically (n^2.00)" in grown["activations"]
    assert "prefill" in grown
    assert "logits" not in grown, "what holds nothing has no row"


def test_80_columns_hold_it() -> None:
    assert not any("…" in line for line in rendered())
    assert max(map(len, rendered())) <= 80


@pytest.mark.parametrize(
    ("heights", "said", "short"),
    [
        ([5, 5, 5], "not at all", "constant"),
        ([1, 4, 8], "linearly (n^1.00)", "n^1.00"),
        ([1, 10, 30], "as n^1.58", "n^1.58"),
        ([1, 8, 8], "levels off", "levels off"),
        ([0, 8, 8], "levels off", "levels off"),
        ([0, 0, 8], "", ""),
        ([8], "", ""),
    ],
)
def test_growth_between_the_last_two_points(heights: list[int], said: str, short: str) -> None:
    values = [50, 100, 200][: len(heights)]
    assert in_words(values, heights) == said
    assert power(values, heights) == short
