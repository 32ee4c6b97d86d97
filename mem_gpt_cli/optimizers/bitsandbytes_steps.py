"""A step of bitsandbytes' 8-bit optimizers, written down as the tensors that it makes, in their order.

A moment is a byte an element, and fp32 the maximum of each block of 256 (arXiv:2110.02861); tensors of fewer
than 4096 elements keep it in fp32. Sources: bitsandbytes 0.50 ``optim/optimizer.py`` (``init_state``,
``get_state_buffer``), ``backends/cpu/ops.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from mem_gpt_cli.optimizers.settings import Books, Parameter, Settings
from mem_gpt_cli.recipe.schema import Recipe

Rule = Literal["adam", "lion"]

FP32 = 4
BLOCK = 256
MAP_BYTES = 256 * FP32
"""The 256 numbers that the codes of a moment stand for; all parameters share them."""
SMALLEST_IN_8_BITS = 4096
SMALLEST_PAGED = 100_000

RULES: dict[str, Rule] = {"adamw_8bit": "adam", "paged_adamw_8bit": "adam", "lion_8bit": "lion"}
MOMENTS: dict[Rule, int] = {"adam": 2, "lion": 1}


def step(books: Books, parameters: Sequence[Parameter], settings: Settings, *, first: bool) -> None:
    """One parameter after the other: its state, if it has none yet, and its update."""
    rule = RULES[settings.name]
    if first and any(in_8_bits(parameter.numel) for parameter in parameters):
        for _ in range(MOMENTS[rule]):
            books.keep(MAP_BYTES, "tensor")
    for parameter in parameters:
        if first:
            keep_moments(books, parameter.numel, rule, paged=pages(settings))
        if not settings.cuda:
            update = books.take(update_bytes(parameter.numel, parameter.item), "optimizer_update")
            del update


def grows_within_a_step(recipe: Recipe) -> bool:
    """Whether the only step makes the state as it goes: its peak is then not linear in the depth."""
    return recipe.task == "training" and recipe.optimizer.name in RULES and recipe.workload.steps == 1


def keep_moments(books: Books, numel: int, rule: Rule, *, paged: bool = False) -> None:
    """The moments of a tensor, which are not torch's where the driver pages them."""
    wide = not in_8_bits(numel)
    for _ in range(MOMENTS[rule]):
        if not (paged and numel >= SMALLEST_PAGED):
            books.keep(numel * (FP32 if wide else 1), "zeros_like")
    if not wide:
        for _ in range(MOMENTS[rule]):
            books.keep(FP32 * blocks(numel), "zeros")


def paged_bytes(parameters: Sequence[Parameter], settings: Settings) -> int:
    """Bytes that CUDA's driver moves between the card and the host by itself; no allocator of torch's
    counts them.
    """
    if not pages(settings):
        return 0
    moments = MOMENTS[RULES[settings.name]]
    return sum(moments * parameter.numel for parameter in parameters if parameter.numel >= SMALLEST_PAGED)


def pages(settings: Settings) -> bool:
    """Whether the moments of large tensors are managed memory."""
    return settings.cuda and settings.name.startswith("paged_")


def in_8_bits(numel: int) -> bool:
    """Whether a tensor is large enough for moments of a byte an element."""
    return numel >= SMALLEST_IN_8_BITS


def blocks(numel: int) -> int:
    """Blocks of a tensor, each of which has a maximum."""
    return -(-numel // BLOCK)


def update_bytes(numel: int, item: int) -> int:
    """What an update takes on CPU at its highest, in fp32; CUDA's kernels take nothing.

    Of 8 bits: the moments and the gradient written out, and what the rule makes of them: Adam the root of a
    moment and its quotient, Lion two products and their sum. Of 32 bits: the gradient and two more. Weights
    of less precision are written out too.
    """
    weights = 1 if item < FP32 else 0
    tensors = 5 if in_8_bits(numel) else 3
    return FP32 * numel * (tensors + weights)
