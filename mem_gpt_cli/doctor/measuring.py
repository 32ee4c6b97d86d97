"""What a process takes of a GPU, measured from inside it: one function a process, for nothing is given back.

A context grows with each kernel and library that is used for the first time (CUDA loads lazily, see "Lazy
Loading" in its programming guide), and torch keeps cuBLAS workspaces for good: no figure is clean in a
process that has measured another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from mem_gpt_cli.devices.nvml import Nvml, NvmlGpu
from mem_gpt_cli.devices.visible import cuda_gpu
from mem_gpt_cli.errors import EnvironmentUnavailableError

LIBRARIES = ("cublas", "sdpa_flash", "sdpa_efficient", "sdpa_cudnn")
"""What is used for the first time, each in its own process."""


class Books(Protocol):
    """What torch's allocator says of itself."""

    def reserved(self) -> int:
        """Bytes that it holds from the driver."""

    def allocated(self) -> int:
        """Bytes of live blocks."""


def idle(index: int) -> dict[str, Any]:
    """The GPU before anything runs on it: who it is, and what is used though no process has it.

    ``used_bytes`` is what the device has in use less what its processes hold, or ``None`` where the driver
    does not tell the processes' memory.
    """
    with Nvml() as nvml:
        gpu = cuda_gpu(nvml, index)
        total, used, others = gpu.total().value, gpu.memory().value, gpu.processes_memory().value
        return {
            "product": gpu.name,
            "driver": nvml.driver_version,
            "total_bytes": None if total is None else int(total),
            "used_bytes": None if used is None or others is None else max(0, int(used - others)),
        }


def outside(index: int, what: str) -> dict[str, Any]:
    """What it takes beside torch's allocator once it did ``what``: ``context``, or one of ``USES``."""
    with Nvml() as nvml:
        gpu = cuda_gpu(nvml, index)
        before = gpu.memory().value
        torch, device = _cuda(index)
        torch.empty(1, device=device)
        if what != "context":
            USES[what](device)
        torch.cuda.synchronize(device)
        process, how = process_bytes(gpu, before)
        return {
            "outside_bytes": process - CudaBooks(torch, device).reserved(),
            "how": how,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
        }


def workspaces(index: int) -> dict[str, Any]:
    """Blocks that cuBLAS keeps in torch's allocator after its first products, forward and then backward."""
    torch, device = _cuda(index)
    forward, backward = kept_by_products(device, CudaBooks(torch, device))
    return {"forward_bytes": forward, "backward_bytes": backward}


class CudaBooks:
    """The caching allocator of one GPU."""

    def __init__(self, torch: Any, device: Any) -> None:
        self._torch, self._device = torch, device

    def reserved(self) -> int:  # noqa: D102
        return int(self._torch.cuda.memory_reserved(self._device))

    def allocated(self) -> int:  # noqa: D102
        return int(self._torch.cuda.memory_allocated(self._device))


def process_bytes(gpu: NvmlGpu, before: int | float | None) -> tuple[int, str]:
    """What this process holds of the GPU, and how that was got.

    Where the driver does not list it, as in most containers, it is what the device has in use more than
    ``before`` the process touched it: right as long as nobody else comes or goes.

    Raises:
        EnvironmentUnavailableError: neither is to be had.
    """
    listed = gpu.process_memory()
    if listed.value is not None:
        return int(listed.value), listed.how
    now = gpu.memory()
    if now.value is None or before is None:
        raise EnvironmentUnavailableError(f"{listed.why_not}; {now.why_not}")
    return int(now.value - before), f"{now.how}, after the process began less before it"


def kept_by_products(device: Any, books: Books) -> tuple[int, int]:
    """Bytes that stay allocated after the first matrix products, and after the first of a backward pass.

    torch keeps one workspace for each cuBLAS handle and stream (``aten/src/ATen/cuda/CublasHandlePool.cpp``),
    and the thread that runs backward has handles of its own.
    """
    import torch

    weight = torch.randn(256, 256, device=device, requires_grad=True)
    bias = torch.randn(256, device=device, requires_grad=True)
    given = torch.randn(64, 256, device=device)
    before = books.allocated()
    with torch.no_grad():
        torch.nn.functional.linear(given, weight)
        torch.nn.functional.linear(
            given, weight, bias
        )  # with a bias by cuBLASLt, where that is torch's choice
    forward = books.allocated() - before
    torch.nn.functional.linear(given, weight, bias).sum().backward()
    weight.grad = bias.grad = None
    return forward, books.allocated() - before - forward


def _cuda(index: int) -> tuple[Any, Any]:
    import torch

    if not torch.cuda.is_available():
        why = "torch finds no GPU" if torch.version.cuda else "this build of torch has no CUDA"
        raise EnvironmentUnavailableError(why)
    if index >= torch.cuda.device_count():
        raise EnvironmentUnavailableError(
            f"torch finds {torch.cuda.device_count()} GPU(s), counted from cuda:0"
        )
    return torch, torch.device("cuda", index)


def _train(device: Any) -> None:
    """A step of a small GPT-2 in fp32 and one under autocast, with torch's own choice of kernels."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_head=4, n_embd=256, vocab_size=1024, n_positions=128)
    model = GPT2LMHeadModel(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.zeros(2, 128, dtype=torch.long, device=device)
    for enabled in (False, True):
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def _multiply(device: Any) -> None:
    import torch

    for dtype in (torch.float32, torch.bfloat16):
        given = torch.randn(64, 256, device=device, dtype=dtype)
        weight = torch.randn(256, 256, device=device, dtype=dtype, requires_grad=True)
        torch.nn.functional.linear(given, weight).sum().backward()


def _attend(device: Any, backend: str) -> None:
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    query = torch.randn(1, 4, 128, 64, device=device, dtype=torch.float16, requires_grad=True)
    with sdpa_kernel(getattr(SDPBackend, backend)):
        torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True).sum().backward()


USES: Mapping[str, Callable[[Any], None]] = {
    "training": _train,
    "cublas": _multiply,
    "sdpa_flash": lambda device: _attend(device, "FLASH_ATTENTION"),
    "sdpa_efficient": lambda device: _attend(device, "EFFICIENT_ATTENTION"),
    "sdpa_cudnn": lambda device: _attend(device, "CUDNN_ATTENTION"),
}
"""What ``outside`` can do before it measures."""
