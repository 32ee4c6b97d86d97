"""On the rehearsed card: print what torch chooses and allocates, one JSON object."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from tests.cuda_attention.cases import BACKENDS, Call, Kernel, allocations, choices


def main() -> None:
    kernels: tuple[Kernel, ...] = tuple(sys.argv[1:])  # type: ignore[assignment]
    weight = torch.empty(4, 4, device="cuda", requires_grad=True)
    (weight @ weight).sum().backward()  # cuBLAS takes its workspaces before anything is recorded
    chosen = "".join(_choice(call) for call in choices())
    allocated = [_allocated(kernel, call) for kernel, call in allocations(kernels)]
    print(json.dumps({"torch": torch.__version__, "choices": chosen, "allocations": allocated}))


def _choice(call: Call) -> str:
    choice = torch._fused_sdp_choice(  # type: ignore[attr-defined]
        *call.tensors("cuda"), call.mask_tensor("cuda"), call.dropout, call.is_causal, enable_gqa=call.groups
    )
    return "mfec"[choice]


def _allocated(kernel: Kernel, call: Call) -> list[list[int]]:
    tensors, mask = call.tensors("cuda"), call.mask_tensor("cuda")
    with sdpa_kernel(BACKENDS[kernel]):
        output, forward = _recorded(
            lambda: scaled_dot_product_attention(
                *tensors, mask, call.dropout, call.is_causal, enable_gqa=call.groups
            )
        )
    if not call.trains:
        return [forward]
    like = torch.contiguous_format if call.gradient_by_heads else torch.preserve_format
    gradient = torch.empty_like(output, memory_format=like)
    wanted = [*tensors, *([mask] if mask is not None and call.mask_trains else [])]
    _, backward = _recorded(lambda: torch.autograd.grad(output, wanted, gradient))
    return [forward, backward]


def _recorded(run: Callable[[], Any]) -> tuple[Any, list[int]]:
    """What it returns, and the bytes of each block it allocated, negative where one was freed."""
    gc.collect()
    torch.cuda.memory._record_memory_history(enabled="all", context=None, clear_history=True)
    result = run()
    trace = torch.cuda.memory._snapshot()["device_traces"][0]
    torch.cuda.memory._record_memory_history(enabled=None)
    signs = {"alloc": 1, "free_completed": -1}
    return result, [signs[event["action"]] * event["size"] for event in trace if event["action"] in signs]


if __name__ == "__main__":
    main()
