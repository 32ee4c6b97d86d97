"""A dry run on fake tensors of the CPU takes the way that CUDA would take."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.ledger import Ledger
from mem_gpt_cli.trace.cuda.adapters import autocast_without_a_name, int8_in_training
from mem_gpt_cli.trace.cuda.autocast import cuda_autocast_lists
from mem_gpt_cli.trace.cuda.caches import caches_on_cuda
from mem_gpt_cli.trace.cuda.composites import composites
from mem_gpt_cli.trace.cuda.host import host_tensors, offloaded_activations
from mem_gpt_cli.trace.cuda.sdpa import attention_of


@contextmanager
def like_cuda(gpu: Gpu, ledger: Ledger) -> Iterator[None]:
    """Apply every rule of steering; to be entered before the ledger, whose own patches come around these.

    Functions are replaced rather than watched: a ``TorchFunctionMode`` is not active while backward
    recomputes a checkpointed layer.
    """
    with ExitStack() as stack:
        stack.enter_context(host_tensors(ledger))
        stack.enter_context(offloaded_activations(ledger))
        stack.enter_context(caches_on_cuda(ledger))
        stack.enter_context(attention_of(gpu))
        stack.enter_context(composites())
        stack.enter_context(cuda_autocast_lists())
        stack.enter_context(autocast_without_a_name())
        stack.enter_context(int8_in_training())
        yield
