"""Every departure of CUDA from the CPU is one named rule, with its source, and stands on the page.

What each rule says is tested beside the others of its kind: ``test_cuda_*`` and ``test_trace_cuda``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mem_gpt_cli.devices.kernels.bitsandbytes import reads_four_bits
from mem_gpt_cli.devices.kernels.cublas import lt_workspace_bytes, workspace_bytes
from mem_gpt_cli.ledger.accumulation import sums_in_place
from mem_gpt_cli.optimizers.settings import implementation
from mem_gpt_cli.trace.cuda import attention_kernels, bitsandbytes_kernels, kernels
from mem_gpt_cli.trace.cuda.adapters import autocast_without_a_name, int8_in_training
from mem_gpt_cli.trace.cuda.autocast import cuda_autocast_lists
from mem_gpt_cli.trace.cuda.births import BIRTHS
from mem_gpt_cli.trace.cuda.blas import adds_bias_in_kernel, operand_copies
from mem_gpt_cli.trace.cuda.caches import moved_numbers, offloaded_layers
from mem_gpt_cli.trace.cuda.composites import dropout, log_softmax, softmax
from mem_gpt_cli.trace.cuda.host import host_tensors, offloaded_activations
from mem_gpt_cli.trace.cuda.sdpa_choice import choose_kernel
from mem_gpt_cli.trace.optimizer_kernels import paged_moments

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "cuda.md").read_text(encoding="utf-8")

STEERING = (
    *(host_tensors, cuda_autocast_lists, softmax, log_softmax, dropout, choose_kernel),
    *(paged_moments, sums_in_place, implementation, operand_copies, adds_bias_in_kernel),
    *(workspace_bytes, lt_workspace_bytes, offloaded_layers, moved_numbers, reads_four_bits),
    *(offloaded_activations, autocast_without_a_name, int8_in_training),
)
BUFFERS = (
    *attention_kernels.RULES.values(),
    *kernels.RULES.values(),
    *bitsandbytes_kernels.RULES.values(),
)
RULES: dict[str, Callable[..., Any]] = {
    rule.__name__: rule for rule in (*STEERING, *BUFFERS, *BIRTHS.values())
}


def test_there_are_rules_of_every_kind() -> None:
    assert len(RULES) > 20
    assert not attention_kernels.RULES.keys() & kernels.RULES.keys()


@pytest.mark.parametrize("name", sorted(RULES))
def test_each_rule_says_in_a_sentence_what_it_does_and_from_where(name: str) -> None:
    rule = RULES[name]
    text = inspect.getdoc(rule) or ""
    module = inspect.getdoc(inspect.getmodule(rule)) or ""
    assert text.splitlines()[0].rstrip().endswith((".", ":"))
    assert "ATen" in text + module or "torch/" in text + module, "no source is named"


@pytest.mark.parametrize("name", sorted(RULES))
def test_each_rule_stands_on_the_page(name: str) -> None:
    assert f"`{name}`" in PAGE
