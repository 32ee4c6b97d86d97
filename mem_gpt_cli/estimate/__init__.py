"""Lens 1: where the memory will go, in closed form, without torch."""

from mem_gpt_cli.estimate.curve import curve
from mem_gpt_cli.estimate.precision import precision_table
from mem_gpt_cli.estimate.report import estimate

__all__ = ["curve", "estimate", "precision_table"]
