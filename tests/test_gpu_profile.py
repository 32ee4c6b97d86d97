"""The profile on a real GPU: what must hold between its figures, whatever the GPU."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from mem_gpt_cli.allocator import compare, read_history
from mem_gpt_cli.profile import profile
from mem_gpt_cli.profile.lens import Measured, passes_over, prepare
from mem_gpt_cli.profile.progress import Ticker
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report import MemoryReport
from mem_gpt_cli.report.ladder import ladder
from tests.profiled import MODELS, small_recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no NVIDIA GPU here"),
]
CASES = pytest.mark.parametrize(
    ("model", "task"), [(model, task) for model in MODELS for task in ("inference", "training")]
)
RESERVED_STEP = 2 * 2**20
"""The allocator asks the driver for multiples of this."""


def gpu_recipe(model: str, task: str) -> Recipe:
    return small_recipe(MODELS[model], task, device={"name": "cuda"})


@cache
def report_of(model: str, task: str) -> MemoryReport:
    return profile(gpu_recipe(model, task))


@cache
def passes_of(model: str, task: str) -> Measured:
    job = prepare(gpu_recipe(model, task))
    return passes_over(job, Ticker(None, 2 * job.steps), "both")


@CASES
def test_the_allocator_counts_at_least_what_the_ledger_sees(model: str, task: str) -> None:
    measured = passes_of(model, task)
    assert measured.clean is not None
    for phase, moment in measured.account.peaks().items():
        levels = measured.clean.levels(phase)
        assert levels.allocated_bytes is not None
        assert levels.requested_bytes is not None
        assert max(moment.allocated_bytes, levels.requested_bytes) <= levels.allocated_bytes


@CASES
def test_the_bare_pass_begins_with_an_empty_allocator(model: str, task: str) -> None:
    report = report_of(model, task)
    assert report.details["start_reserved_bytes"] == 0, report.warnings
    assert report.details["allocator_retries"] == 0


@CASES
def test_each_step_of_the_ladder_is_at_least_the_one_below(model: str, task: str) -> None:
    report = report_of(model, task)
    known = [step for step in ladder(report) if step.bytes is not None]
    assert [step.name for step in known[:2]] == ["allocated", "reserved"]
    assert known[-1].name == "device"
    assert all(step.why_not for step in ladder(report) if step.bytes is None)
    for phase in report.phases:
        levels = (phase.peak_allocated_bytes, phase.reserved_bytes, phase.process_bytes, phase.device_bytes)
        assert all(low <= high for low, high in pairwise([count for count in levels if count is not None]))


@CASES
def test_what_is_reserved_only_grows(model: str, task: str) -> None:
    reserved = [phase.reserved_bytes or 0 for phase in report_of(model, task).phases]
    assert reserved == sorted(reserved)
    assert all(count > 0 and count % RESERVED_STEP == 0 for count in reserved)


def test_two_runs_in_one_process_measure_the_same() -> None:
    first, second = (profile(gpu_recipe("gpt2", "training")) for _ in range(2))
    for before, after in zip(first.phases, second.phases, strict=True):
        assert before.peak_allocated_bytes == after.peak_allocated_bytes
        assert before.reserved_bytes == after.reserved_bytes


@CASES
def test_the_history_replays(model: str, task: str, tmp_path: Path) -> None:
    path = tmp_path / "history.json.gz"
    report = profile(gpu_recipe(model, task), history=path)
    history = read_history(path)
    comparison = compare(history)
    assert comparison.allocations > 100
    assert comparison.difference is None, str(comparison.difference)
    assert comparison.stats.reserved_peak == report.reserved_bytes
