"""What a reader of an estimate should be told before they believe it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mem_gpt_cli.estimate.dialect import dialect_of
from mem_gpt_cli.estimate.parameters import trainable
from mem_gpt_cli.kv_cache import cost as cache_cost
from mem_gpt_cli.kv_cache.paged_schedule import pages_needed
from mem_gpt_cli.optimizers.notes import notes as optimizer_notes
from mem_gpt_cli.quantization import cost as quantization_cost
from mem_gpt_cli.quantization.plan import plan_of
from mem_gpt_cli.recipe.paging import Paging
from mem_gpt_cli.recipe.schema import Recipe

if TYPE_CHECKING:
    from mem_gpt_cli.model import ModelSource
    from mem_gpt_cli.model.architecture import Architecture


def caveats(recipe: Recipe, source: ModelSource, architecture: Architecture) -> tuple[str, ...]:
    """The warnings of a report by formula, in the order in which they matter."""
    return (
        *_positions(recipe, source, architecture),
        *_attention(recipe, architecture),
        *_windows(recipe, architecture),
        *_pages(recipe),
        *_experts(architecture),
        *_loading(architecture),
        *_quantization(recipe, source),
        *_adapters(recipe, architecture),
        *_optimizer(recipe, architecture),
        *_device(recipe),
        *source.notes,
    )


def _adapters(recipe: Recipe, architecture: Architecture) -> Iterator[str]:
    """A matrix that is walked as two, and what autocast does to frozen weights."""
    if recipe.adapters.kind == "none" and not recipe.adapters.load:
        return
    if any(layer.mlp.fused_gate and not layer.mlp.experts for layer in architecture.layers):
        yield (
            "gate and up projection are one matrix, which the formula walks as two with an adapter each; "
            "add --trace for the exact peak"
        )
    if recipe.workload.autocast != "none" and recipe.model.dtype == "fp32":
        yield (
            "autocast casts frozen weights anew at each use, and backward holds on to the copies: "
            f"model.dtype: {recipe.workload.autocast} has the weights in that width alone"
        )


def _pages(recipe: Recipe) -> Iterator[str]:
    if recipe.kv_cache.kind != "paged" or recipe.kv_cache.pages is None:
        return
    needed = pages_needed(Paging.of(recipe))
    if recipe.kv_cache.pages < needed:
        yield (
            f"the requests have up to {needed} pages in use at once, the pool {recipe.kv_cache.pages}: some "
            "begin anew, and the formula's steps are as large as they could be; add --trace to run the real "
            "scheduler"
        )


def _device(recipe: Recipe) -> Iterator[str]:
    if recipe.device.type == "cuda":
        yield (
            "the formulas for CUDA were held against traces, and these against torch's own host code over a "
            "stub driver; never against a GPU"
        )


def _positions(recipe: Recipe, source: ModelSource, architecture: Architecture) -> Iterator[str]:
    limit, length = architecture.max_positions, recipe.lengths.seq
    if limit is None or length <= limit:
        return
    if architecture.learned_positions:
        yield (
            f"{source.name}'s learned positions end at {limit:,}: a run with {length:,} tokens fails; "
            "the figures are for a model with as many positions as the run has tokens"
        )
    else:
        yield (
            f"{source.name} was made for {limit:,} positions: a run with {length:,} tokens works, "
            "but beyond what it has learned"
        )


def _attention(recipe: Recipe, architecture: Architecture) -> Iterator[str]:
    if not dialect_of(architecture.model_type).followed:
        yield (
            f"the formula follows {architecture.model_type}'s attention from afar: long prompts and large "
            "batches take more than it says; add --trace to run the real code"
        )
    if recipe.attention.backend != "eager" and not dialect_of(architecture.model_type).sdpa:
        yield (
            f"transformers' {architecture.model_type} code has no {recipe.attention.backend} attention: "
            "the figures are for eager, which runs instead"
        )


def _windows(recipe: Recipe, architecture: Architecture) -> Iterator[str]:
    lengths = recipe.lengths
    spans = [cache_cost.span(layer.attention) for layer in architecture.layers]
    for window in sorted({width for width in spans if width}):
        count = spans.count(window)
        if recipe.task == "inference" and lengths.seq > window and recipe.kv_cache.kind != "none":
            yield (
                f"{count} of {len(architecture.layers)} layers see a window of {window:,} tokens: "
                f"their cache ends at {window:,}, but the prefill's keeps all {lengths.prompt:,} "
                "until the first decode step"
            )


def _experts(architecture: Architecture) -> Iterator[str]:
    experts = max((layer.mlp.experts for layer in architecture.layers), default=0)
    if experts:
        yield (
            f"which of the {experts} experts a token takes is decided by the data: "
            "the figures are for an even spread"
        )


def _loading(architecture: Architecture) -> Iterator[str]:
    if architecture.model_type == "gpt_bigcode":
        yield (
            "the code of gpt_bigcode makes a mask of all positions while it loads, which the formula leaves "
            "out of that phase; add --trace for it"
        )


def _optimizer(recipe: Recipe, architecture: Architecture) -> Iterator[str]:
    if recipe.task == "training":
        yield from optimizer_notes(recipe, trainable(architecture, recipe))
        if recipe.device.type == "cuda" and recipe.optimizer.name == "adafactor":
            yield (
                "the formula leaves out what CUDA's reductions take while adafactor finds the norms of "
                "columns; add --trace to count it"
            )
        narrow = recipe.device.type == "cpu" and recipe.model.dtype != "fp32"
        if narrow and recipe.adapters.kind == "none" and recipe.optimizer.name in ("adafactor", "galore"):
            yield (
                f"{recipe.optimizer.name}'s products in {recipe.model.dtype} take buffers on a CPU that "
                "depend on the processor; the formula leaves them out, add --trace to ask for them"
            )


def _quantization(recipe: Recipe, source: ModelSource) -> Iterator[str]:
    yield from quantization_cost.kept_note(source, recipe)
    quantizes = plan_of(recipe).quantizes
    if quantizes and recipe.workload.autocast != "none":
        yield "the formula leaves out what autocast casts around quantized matrices; add --trace for it"
    elif quantizes and recipe.device.type == "cpu" and recipe.model.dtype != "fp32":
        yield (
            f"products in {recipe.model.dtype} take buffers on a CPU that depend on the processor; the "
            "formula leaves them out, add --trace to ask for them"
        )
