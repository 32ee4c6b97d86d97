"""The claims of quantization, flash and paging, by the code of ``memgpt bench``: one cell at a time."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.cells import KitCell, cells_of
from benchmarks.gpu.crew import LEAST_S
from benchmarks.gpu.kit import Kit
from mem_gpt_cli.bench import Plan, run_sweep

NAME = "claims.csv"


def run(kit: Kit, share: float) -> list[str]:
    """Measure what has no good row yet; returns the names of the cells that time was too short for."""
    cells = with_baselines(kit)
    if not cells or kit.clock.left(share) < LEAST_S:
        return [cell.name for cell in cells]
    plan = Plan(
        name="claims",
        cells=[cell.cell for cell in cells],
        csv=kit.out / NAME,
        lenses=("profile",),
        timeout_s=kit.clock.left(share),
        resume=True,
    )
    left = {cell.cell.index: cell.name for cell in cells}
    for row in run_sweep(plan):
        del left[row["cell"]]
        kit.say(f"claims/{row['cell']} {row['status']}: {row['claim'] or 'baseline'}")
        if kit.clock.left(share) < LEAST_S:
            break
    return list(left.values())


def with_baselines(kit: Kit) -> Sequence[KitCell]:
    """The cells that match, and those that they are compared with."""
    asked = {cell.cell.index for cell in cells_of(kit.device, "claims", kit.pattern)}
    every = cells_of(kit.device, "claims")
    homes = {cell.cell.baseline for cell in every if cell.cell.index in asked}
    return [cell for cell in every if cell.cell.index in asked | homes]
