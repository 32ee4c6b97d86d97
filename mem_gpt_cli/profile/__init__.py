"""Lens 3: the workload for real, measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mem_gpt_cli.profile.progress import Progress
    from mem_gpt_cli.recipe.schema import Recipe
    from mem_gpt_cli.report.model import MemoryReport
    from mem_gpt_cli.report.per_token import PerToken

__all__ = ["per_token", "profile"]


def profile(
    recipe: Recipe,
    *,
    passes: Literal["both", "memory"] = "both",
    progress: Progress | None = None,
    timeline: Path | None = None,
    history: Path | None = None,
) -> MemoryReport:
    """Run the recipe's workload for real on its device and measure its memory and its speed.

    Args:
        recipe: what to run.
        passes: ``both`` runs the workload twice: bare, for the durations and the memory of the process, and
            recorded, for the allocator's account. ``memory`` leaves the first out, and with it durations and
            ``process_bytes``. On a GPU both are run all the same: its peaks are from the bare run.
        progress: called at each step of the workload as ``(phase, step, steps, live_bytes)``.
        timeline: a file to draw memory over time into: ``.html``, ``.png``, ``.svg`` or ``.csv``.
        history: a file to write every action of CUDA's allocator in the bare run into, as JSON (``.gz`` packs
            it); ``mem_gpt_cli.allocator.history`` reads it.

    Raises:
        UsageError: for lengths beyond a model's learned positions, a timeline of an unknown kind, or a
            history on CPU.
        RecipeError: for an option that cannot be measured.
        EnvironmentUnavailableError: if the device or the weights are not there.
        MissingExtraError: if ``timeline`` needs a package that is not installed.
    """
    from mem_gpt_cli.profile.lens import profile as run

    return run(recipe, passes=passes, progress=progress, timeline=timeline, history=history)


def per_token(recipe: Recipe, *, progress: Progress | None = None) -> PerToken:
    """Measure what each new token of a generation adds, with a key-value cache and without.

    Raises:
        UsageError: for a training recipe.
        EnvironmentUnavailableError: if the device or the weights are not there.
    """
    from mem_gpt_cli.profile.tokens import per_token as run

    return run(recipe, progress=progress)
