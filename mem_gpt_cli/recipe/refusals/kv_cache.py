"""Which cache excludes what."""

from __future__ import annotations

from collections.abc import Iterator

from mem_gpt_cli.recipe.refusals import Lens, Refusal, paged
from mem_gpt_cli.recipe.schema import Recipe

_OF_A_KIND = {
    "max_tokens": "static",
    "format": "quantized",
    "window": "sliding",
    "page_size": "paged",
    "pages": "paged",
    "batch_tokens": "paged",
}
"""Keys of the section, and the one kind that each belongs to."""
_UNDER_A_MASK = ("static", "sliding")
"""Caches that a decode step reads under a mask."""


def refusals(recipe: Recipe, lens: Lens) -> Iterator[Refusal]:
    """Caches that cannot serve the recipe, and keys that the cache would ignore."""
    if recipe.task == "training":
        if recipe.kv_cache.kind not in ("none", "dynamic"):
            yield ("kv_cache", "kind"), "belongs to inference, training keeps no KV cache: leave it out"
        yield from _keys(recipe)
        return
    yield from paged.refusals(recipe)
    yield from _keys(recipe)
    yield from _sizes(recipe)
    yield from _device(recipe)
    yield from _attention(recipe)
    if lens == "estimate" and recipe.kv_cache.format in ("int4", "int2"):
        yield (
            ("kv_cache", "format"),
            f"how {recipe.kv_cache.format} is laid out is up to the package that stores it, and no formula "
            "knows: run `memgpt profile`, or choose fp8",
        )
    yield from _autocast(recipe)


def _keys(recipe: Recipe) -> Iterator[Refusal]:
    """Keys that belong to another kind."""
    for key, kind in _OF_A_KIND.items():
        if getattr(recipe.kv_cache, key) is not None and recipe.kv_cache.kind != kind:
            yield (
                ("kv_cache", key),
                f"belongs to a {kind} cache, and the kind is {recipe.kv_cache.kind}: leave it out",
            )


def _sizes(recipe: Recipe) -> Iterator[Refusal]:
    cache, total = recipe.kv_cache, recipe.lengths.seq
    if cache.kind == "static" and cache.max_tokens is not None and cache.max_tokens < total:
        yield (
            ("kv_cache", "max_tokens"),
            f"{cache.max_tokens:,} is less than the {total:,} tokens of the workload, prompt and new: write "
            f"{total} or more",
        )
    if cache.kind == "sliding" and cache.window == 1:
        yield ("kv_cache", "window"), "a window of 1 token would see no token before: write 2 or more"


def _device(recipe: Recipe) -> Iterator[Refusal]:
    if recipe.kv_cache.kind == "offloaded" and recipe.device.type == "cpu":
        yield (
            ("kv_cache", "kind"),
            "'offloaded' moves layers from a GPU's memory to the host's, and here the device is the host: "
            "choose dynamic, or a device with CUDA",
        )


def _autocast(recipe: Recipe) -> Iterator[Refusal]:
    """Caches that cannot hold, or join, what autocast makes of keys and values."""
    if recipe.workload.autocast == "none":
        return
    mend = "set model.dtype in place of workload.autocast"
    if recipe.kv_cache.kind == "static":
        yield (
            ("kv_cache", "kind"),
            f"autocast may give keys and values of unlike widths, which a static cache cannot hold: {mend}",
        )
    # Only the CPU's autocast has ``cat`` in its lists, and its promotion fails at fp8 (ATen/autocast_mode.h).
    stored = recipe.kv_cache.format or "fp8"
    if recipe.kv_cache.kind == "quantized" and stored == "fp8" and recipe.device.type == "cpu":
        yield ("kv_cache", "kind"), f"autocast on a CPU cannot join what is stored in fp8: {mend}"


def _attention(recipe: Recipe) -> Iterator[Refusal]:
    """Kernels that cannot read what the cache, or the padding, gives them."""
    kind, backend = recipe.kv_cache.kind, recipe.attention.backend
    if backend != "flash" or recipe.device.type == "cpu" or kind == "paged":
        return
    if kind in _UNDER_A_MASK:
        yield (
            ("attention", "backend"),
            f"a {kind} cache is read under a mask, which torch's flash kernel for CUDA does not take: "
            "choose sdpa",
        )
    elif len(set(recipe.prompts)) > 1:
        yield (
            ("attention", "backend"),
            "unlike requests are padded, and torch's flash kernel for CUDA takes no mask: choose sdpa",
        )
