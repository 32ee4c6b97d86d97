"""Sweeps: every cell in a process of its own, predicted and measured, one row each."""

from mem_gpt_cli.bench.columns import COLUMNS
from mem_gpt_cli.bench.sweep import Plan, run_sweep

__all__ = ["COLUMNS", "Plan", "run_sweep"]
