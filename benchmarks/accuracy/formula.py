"""How far the formula is from the trace, over a fixed grid of recipes.

    python benchmarks/accuracy/formula.py            # all cells; writes results/formula_vs_trace.csv
    python benchmarks/accuracy/formula.py --only gpt2
    python benchmarks/accuracy/formula.py --cuda     # GPUs instead; writes results/formula_vs_trace_cuda.csv

The trace runs the real transformers code on fake tensors, so that no cell takes memory or needs weights:
shapes are the full ones as well as scaled-down ones, in which activations outweigh weights. Each row is one
recipe. The command ends with 3 where GPT-2 and Llama are more than 3% off at the median, or 10% at worst.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mem_gpt_cli.errors import MemgptError
from mem_gpt_cli.estimate import estimate
from mem_gpt_cli.recipe import Recipe, load_recipe
from mem_gpt_cli.report import MemoryReport
from mem_gpt_cli.trace import trace

RESULTS = Path(__file__).parents[2] / "results" / "formula_vs_trace.csv"
CUDA_RESULTS = RESULTS.with_name("formula_vs_trace_cuda.csv")
MEDIAN_LIMIT, WORST_LIMIT = 3.0, 10.0

MODELS: dict[str, tuple[tuple[str, str], ...]] = {
    "gpt2": (
        ("gpt2", ""),
        ("gpt2-xl", ""),
        ("gpt2", "n_layer=4 n_embd=256 n_head=8 vocab_size=4096 n_positions=4096"),
    ),
    "llama": (
        ("llama-2-7b", ""),
        ("llama-3.2-1b", ""),
        (
            "llama-2-7b",
            "num_hidden_layers=4 hidden_size=256 intermediate_size=688 num_attention_heads=8 "
            "num_key_value_heads=2 vocab_size=4096",
        ),
    ),
    "opt": (("opt-125m", "num_hidden_layers=4"),),
    "qwen3": (("qwen3-0.6b", "num_hidden_layers=4"),),
    "gemma3": (("gemma-3-1b", "num_hidden_layers=6"),),
    "mistral": (("mistral-7b-v0.1", "num_hidden_layers=2 hidden_size=1024 sliding_window=200"),),
    "mixtral": (("mixtral-8x7b", "num_hidden_layers=2 hidden_size=1024 intermediate_size=2048"),),
    "deepseek": (
        (
            "deepseek-v3",
            "num_hidden_layers=3 hidden_size=1024 intermediate_size=2048 moe_intermediate_size=512 "
            "n_routed_experts=16 n_group=4 topk_group=2 num_attention_heads=16 num_key_value_heads=16 "
            "first_k_dense_replace=1",
        ),
    ),
}

OPTIONS: tuple[str, ...] = (
    "workload.batch=1 workload.seq=32",
    "workload.batch=2 workload.seq=512",
    "workload.batch=4 workload.seq=1024 attention.backend=eager",
    "workload.batch=1 workload.seq=2048 model.dtype=bf16",
    "workload.batch=1 workload.seq=4096 model.dtype=bf16 attention.backend=eager",
    "workload.batch=2 workload.seq=512 workload.autocast=bf16",
    "workload.batch=1 workload.seq=1024 kv_cache.kind=none",
    "workload.batch=2 workload.seq=1024 workload.logits=all",
    "task=training workload.batch=1 workload.seq=128",
    "task=training workload.batch=4 workload.seq=512",
    "task=training workload.batch=2 workload.seq=1024 model.dropout=0",
    "task=training workload.batch=2 workload.seq=512 attention.backend=eager",
    "task=training workload.batch=2 workload.seq=512 workload.autocast=bf16",
    "task=training workload.batch=1 workload.seq=1024 workload.autocast=bf16 attention.backend=eager "
    "model.dropout=0",
    "task=training workload.batch=2 workload.seq=1024 model.dtype=bf16 model.dropout=0",
    "task=training workload.batch=4 workload.seq=1024 checkpointing.policy=full",
    "task=training workload.batch=1 workload.seq=4096 checkpointing.policy=full model.dropout=0 "
    "model.dtype=bf16",
    "task=training workload.batch=1 workload.seq=512 optimizer.implementation=foreach",
    "task=training workload.batch=1 workload.seq=512 workload.hold_outputs=true "
    "optimizer.implementation=fused",
)


CUDA_MODELS: dict[str, str] = {
    "gpt2": "device.name=h100",
    "gpt2-medium": "device.name=a100-80gb",
    "gpt2-xl": "device.name=h100",
    "llama-3.2-1b": "device.name=h100",
}
"""The GPU of each model, where the options name none."""

CUDA_OPTIONS: tuple[str, ...] = (
    "workload.batch=1 workload.seq=256",
    "workload.batch=4 workload.prompt_tokens=1000 workload.new_tokens=8 model.dtype=bf16",
    "workload.batch=2 workload.prompt_tokens=512 workload.new_tokens=8 attention.backend=eager",
    "workload.batch=1 workload.seq=1024 workload.autocast=bf16 device.name=rtx-4090",
    "task=training workload.batch=2 workload.seq=512",
    "task=training workload.batch=1 workload.seq=1024 model.dtype=bf16 optimizer.implementation=fused",
    "task=training workload.batch=2 workload.seq=512 workload.autocast=bf16 device.name=a100-80gb",
    "task=training workload.batch=2 workload.seq=512 attention.backend=eager optimizer.implementation=loop",
    "task=training workload.batch=4 workload.seq=1024 checkpointing.policy=full workload.autocast=bf16",
    "task=training workload.batch=1 workload.seq=512 model.dropout=0 device.name=rtx-4090",
)


@dataclass(frozen=True)
class Row:
    """One recipe, both answers. ``residual_percent`` is the formula's distance from the trace."""

    schema_version: int
    family: str
    model: str
    config: str
    options: str
    status: str
    formula_peak_bytes: int | None = None
    trace_peak_bytes: int | None = None
    residual_percent: float | None = None
    formula_phase: str = ""
    trace_phase: str = ""
    weights_residual_bytes: int | None = None
    kv_cache_residual_bytes: int | None = None
    formula_ms: float | None = None
    trace_ms: float | None = None
    formula_reserved_bytes: int | None = None
    trace_reserved_bytes: int | None = None
    reserved_residual_percent: float | None = None


def cells(only: str | None) -> Iterator[tuple[str, str, str, str]]:
    """Family, model, config replacements and options of each cell."""
    for family, models in MODELS.items():
        if only in (None, family):
            for name, config in models:
                for options in OPTIONS:
                    yield family, name, config, options


def measure(family: str, name: str, config: str, options: str) -> Row:
    """Ask both lenses about one cell; a cell that they refuse is a row that says so."""
    try:
        recipe = load_recipe(overrides=overrides(name, config, options))
        began = time.perf_counter()
        formula = estimate(recipe)
        between = time.perf_counter()
        traced = trace(recipe)
        ended = time.perf_counter()
    except MemgptError as error:
        return Row(1, family, name, config, options, status=f"unsupported: {error}")
    return Row(
        1,
        family,
        name,
        config,
        options,
        status="ok",
        formula_peak_bytes=formula.allocated_bytes,
        trace_peak_bytes=traced.allocated_bytes,
        residual_percent=percent(formula.allocated_bytes, traced.allocated_bytes),
        formula_phase=formula.peak.name,
        trace_phase=traced.peak.name,
        weights_residual_bytes=residual(formula, traced, "weights", "load"),
        kv_cache_residual_bytes=cache_residual(recipe, formula, traced),
        formula_ms=round(1e3 * (between - began), 1),
        trace_ms=round(1e3 * (ended - between), 1),
        formula_reserved_bytes=formula.reserved_bytes,
        trace_reserved_bytes=traced.reserved_bytes,
        reserved_residual_percent=percent(formula.reserved_bytes, traced.reserved_bytes),
    )


def percent(ours: int | None, theirs: int | None) -> float | None:
    """How much larger ours is, in percent."""
    return round(100 * (ours / theirs - 1), 4) if ours and theirs else None


def overrides(name: str, config: str, options: str) -> list[str]:
    """The cell as ``--set`` would be given it."""
    return [f"model.name={name}", *(f"model.config.{pair}" for pair in config.split()), *options.split()]


def cache_residual(recipe: Recipe, formula: MemoryReport, traced: MemoryReport) -> int | None:
    """Bytes of the cache at the prefill's peak, formula less trace."""
    if recipe.task == "training" or recipe.kv_cache.kind == "none":
        return None
    return residual(formula, traced, "kv_cache", "prefill")


def residual(formula: MemoryReport, traced: MemoryReport, component: str, phase: str) -> int | None:
    """One component at one phase's peak, formula less trace, in bytes."""
    ours, theirs = formula.phase(phase), traced.phase(phase)
    return ours.components[component] - theirs.components[component] if ours and theirs else None


def summarise(rows: list[Row], console: Console) -> bool:
    """Print the errors by family; whether GPT-2 and Llama keep the limits."""
    table = Table("family", "cells", "median %", "worst %", "weights exact", "KV exact", box=None)
    for family in MODELS:
        found = [row for row in rows if row.family == family and row.residual_percent is not None]
        if found:
            table.add_row(
                family, str(len(found)), *errors(found), exact(found, "weights"), exact(found, "kv_cache")
            )
    console.print(table)
    held = [row for row in rows if row.family in ("gpt2", "llama") and row.residual_percent is not None]
    sizes = [abs(row.residual_percent or 0) for row in held]
    kept = bool(sizes) and statistics.median(sizes) <= MEDIAN_LIMIT and max(sizes) <= WORST_LIMIT
    if held:
        median, worst = errors(held)
        console.print(f"GPT-2 and Llama, {len(held)} cells: median {median}%, worst {worst}%")
    return kept


def summarise_cuda(rows: list[Row], console: Console) -> bool:
    """Print the errors on GPUs by family; whether all allocated are within 1%, all reserved within 3%."""
    table = Table(
        "family", "cells", "allocated median %", "worst %", "reserved median %", "worst %", box=None
    )
    held = [row for row in rows if row.residual_percent is not None]
    for family in sorted({row.family for row in held}):
        found = [row for row in held if row.family == family]
        table.add_row(family, str(len(found)), *errors(found), *reserved_errors(found))
    console.print(table)
    return all(
        abs(row.residual_percent or 0) <= 1 and abs(row.reserved_residual_percent or 0) <= 3 for row in held
    )


def reserved_errors(rows: list[Row]) -> tuple[str, str]:
    """Median and largest distance of the reserved bytes, in percent."""
    sizes = [abs(row.reserved_residual_percent or 0) for row in rows]
    return f"{statistics.median(sizes):.3f}", f"{max(sizes):.2f}"


def errors(rows: list[Row]) -> tuple[str, str]:
    """Median and largest distance, in percent."""
    sizes = [abs(row.residual_percent or 0) for row in rows]
    return f"{statistics.median(sizes):.3f}", f"{max(sizes):.2f}"


def exact(rows: list[Row], component: str) -> str:
    """How many of the cells that hold the component have it to the byte."""
    found = [r for row in rows if (r := getattr(row, f"{component}_residual_bytes")) is not None]
    return f"{sum(r == 0 for r in found)} of {len(found)}" if found else ""


def cuda_cells(only: str | None) -> Iterator[tuple[str, str, str, str]]:
    """Family, model, config replacements and options of each cell on a GPU."""
    for name, gpu in CUDA_MODELS.items():
        for options in CUDA_OPTIONS:
            family = name.partition("-")[0]
            if only in (None, family):
                yield family, name, "", options if "device.name" in options else f"{options} {gpu}"


def write(rows: list[Row], path: Path) -> None:
    """The rows as CSV; the columns of reserved bytes are those of GPUs alone."""
    names = [field.name for field in fields(Row) if path == CUDA_RESULTS or "reserved" not in field.name]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=sorted(MODELS), help="one family, written nowhere")
    parser.add_argument("--cuda", action="store_true", help="recipes on GPUs")
    asked = parser.parse_args()
    console, rows = Console(), []
    for cell in (cuda_cells if asked.cuda else cells)(asked.only):
        rows.append(measure(*cell))
        row = rows[-1]
        shown = row.status if row.residual_percent is None else f"{row.residual_percent:+8.3f}%"
        if row.reserved_residual_percent is not None:
            shown += f" {row.reserved_residual_percent:+8.3f}%"
        console.print(f"{shown}  {row.model} {row.config} {row.options}", highlight=False, soft_wrap=True)
    if asked.only is None:
        write(rows, CUDA_RESULTS if asked.cuda else RESULTS)
    if asked.cuda:
        return 0 if summarise_cuda(rows, console) else 3
    return 0 if summarise(rows, console) or asked.only not in (None, "gpt2", "llama") else 3


if __name__ == "__main__":
    sys.exit(main())
