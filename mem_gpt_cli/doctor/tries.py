"""What is tried, each in a process of its own: a backend works when it has computed something right.

A try is a function that imports what it needs, computes, compares, and returns facts with a ``detail`` for
people; it raises, crashes or hangs where the backend does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mem_gpt_cli.errors import EnvironmentUnavailableError

Facts = dict[str, Any]


@dataclass(frozen=True)
class Try:
    """One thing to try.

    Args:
        name: as the table shows it.
        function: its function in ``module``.
        package: the distribution that brings it; without it there is nothing to try.
        cuda: whether it needs a GPU that torch can use.
        required: whether memgpt is of no use without it.
        arguments: for the function.
        module: where the function is.
    """

    name: str
    function: str
    package: str
    cuda: bool = False
    required: bool = False
    arguments: tuple[tuple[str, str], ...] = ()
    module: str = __name__

    @property
    def target(self) -> str:
        """The function for ``attempt``."""
        return f"{self.module}:{self.function}"


TORCH_ON_CUDA = Try("torch on CUDA", "torch_matmul", "torch", cuda=True, arguments=(("device", "cuda"),))
"""What every other try on CUDA needs."""

TRIES = (
    Try("torch on CPU", "torch_matmul", "torch", required=True, arguments=(("device", "cpu"),)),
    Try("transformers", "transformers_forward", "transformers", required=True),
    TORCH_ON_CUDA,
    Try(
        "SDPA flash",
        "sdpa",
        "torch",
        cuda=True,
        arguments=(("backend", "FLASH_ATTENTION"), ("device", "cuda")),
    ),
    Try(
        "SDPA efficient",
        "sdpa",
        "torch",
        cuda=True,
        arguments=(("backend", "EFFICIENT_ATTENTION"), ("device", "cuda")),
    ),
    Try(
        "SDPA cuDNN",
        "sdpa",
        "torch",
        cuda=True,
        arguments=(("backend", "CUDNN_ATTENTION"), ("device", "cuda")),
    ),
    Try("flash-attn", "flash_attn", "flash-attn", cuda=True),
    Try("triton", "triton", "triton", cuda=True),
    Try("bitsandbytes nf4, CPU", "bitsandbytes_nf4", "bitsandbytes", arguments=(("device", "cpu"),)),
    Try(
        "bitsandbytes nf4, CUDA",
        "bitsandbytes_nf4",
        "bitsandbytes",
        cuda=True,
        arguments=(("device", "cuda"),),
    ),
    Try("torchao int8", "torchao_int8", "torchao"),
    Try("peft LoRA", "peft_lora", "peft"),
    Try("accelerate", "accelerate", "accelerate"),
    Try("matplotlib", "matplotlib", "matplotlib"),
    Try("plotly", "plotly", "plotly"),
)
"""Everything that is tried, what is required first."""


def torch_matmul(device: str) -> Facts:
    """A matrix product on a device, against the same on the CPU in double precision."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        why = "torch finds no GPU" if torch.version.cuda else "this build of torch has no CUDA"
        raise EnvironmentUnavailableError(why)
    left, right = torch.randn(64, 48), torch.randn(48, 32)
    product = (left.to(device) @ right.to(device)).cpu()
    _agree(product, (left.double() @ right.double()).float(), 1e-2)  # TF32 has a 10-bit mantissa
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA in this build"
    if device == "cpu":
        return {"detail": f"{build}; {torch.get_num_threads()} threads", **_build(torch)}
    facts = torch.cuda.get_device_properties(device)
    return {"detail": f"{facts.name}, sm_{facts.major}{facts.minor}", "gpus": torch.cuda.device_count()}


def transformers_forward() -> Facts:
    """One pass through a GPT-2 of one layer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=8)).eval()
    with torch.no_grad():
        logits = model(torch.arange(8)[None]).logits
    _expect(tuple(logits.shape) == (1, 8, 32) and bool(logits.isfinite().all()), "GPT-2's logits are wrong")
    return {"detail": "GPT-2, one layer, forward"}


def sdpa(backend: str, device: str) -> Facts:
    """One kernel of ``scaled_dot_product_attention``, forward and backward, against the plain formula."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    query, key, value = (
        torch.randn(1, 2, 128, 64, device=device, dtype=torch.float16, requires_grad=True) for _ in range(3)
    )
    with sdpa_kernel(getattr(SDPBackend, backend)):
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        out.sum().backward()
    with sdpa_kernel(SDPBackend.MATH):
        plain = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    _agree(out.float(), plain.float(), 5e-2)
    _expect(query.grad is not None and bool(query.grad.isfinite().all()), "its gradient is not finite")
    return {"detail": "forward and backward, float16"}


def flash_attn() -> Facts:
    """The package's own kernel, against torch's plain formula."""
    import torch
    from flash_attn import flash_attn_func

    query, key, value = (torch.randn(1, 128, 2, 64, device="cuda", dtype=torch.float16) for _ in range(3))
    out = flash_attn_func(query, key, value, causal=True).transpose(1, 2)
    moved = [each.transpose(1, 2) for each in (query, key, value)]
    plain = torch.nn.functional.scaled_dot_product_attention(moved[0], moved[1], moved[2], is_causal=True)
    _agree(out.float(), plain.float(), 5e-2)
    return {"detail": "forward, float16"}


def triton() -> Facts:
    """A kernel compiled and run."""
    import torch

    from mem_gpt_cli.doctor.triton_kernel import add_one

    source = torch.arange(1000, device="cuda", dtype=torch.float32)
    target = torch.empty_like(source)
    add_one[(4,)](source, target, source.numel(), block=256)
    _agree(target, source + 1, 0.0)
    return {"detail": "a kernel compiled and run"}


def bitsandbytes_nf4(device: str) -> Facts:
    """Weights to 4 bits and back: normal float 4 is off by about a tenth of the standard deviation."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = torch.randn(128, 64, device=device)
    packed, state = quantize_4bit(weight, quant_type="nf4")
    _expect(
        packed.numel() * packed.element_size() * 2 == weight.numel(), "it does not pack two weights a byte"
    )
    error = ((dequantize_4bit(packed, state) - weight).std() / weight.std()).item()
    _expect(0.02 < error < 0.2, f"its rounding error is {error:.3f} of the weights")
    return {"detail": f"rounding error {error:.3f} of the weights"}


def torchao_int8() -> Facts:
    """A linear layer with weights of 8 bits."""
    import torch
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    layer = torch.nn.Sequential(torch.nn.Linear(64, 32, bias=False))
    given = torch.randn(4, 64)
    exact = layer(given)
    quantize_(layer, Int8WeightOnlyConfig())
    _agree(layer(given), exact, 5e-2)
    return {"detail": "a linear layer, forward"}


def peft_lora() -> Facts:
    """A LoRA adapter on a GPT-2 of one layer."""
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=8))
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    trainable, _ = get_peft_model(model, config).get_nb_trainable_parameters()
    _expect(trainable == 2 * (16 + 48), f"it has {trainable} trainable parameters, not {2 * (16 + 48)}")
    return {"detail": "an adapter on GPT-2"}


def accelerate() -> Facts:
    """A layer without memory."""
    import torch
    from accelerate import init_empty_weights

    with init_empty_weights():
        layer = torch.nn.Linear(4, 4)
    _expect(layer.weight.is_meta, "its empty weights take memory")
    return {"detail": "a layer on the meta device"}


def matplotlib() -> Facts:
    """A picture without a screen."""
    from io import BytesIO

    import matplotlib as library

    library.use("Agg")
    from matplotlib.figure import Figure

    figure, file = Figure(), BytesIO()
    figure.subplots().plot([1, 2, 3])
    figure.savefig(file, format="png")
    _expect(file.getvalue().startswith(b"\x89PNG"), "it wrote no PNG")
    return {"detail": "a PNG drawn"}


def plotly() -> Facts:
    """A page that needs nothing from elsewhere."""
    from plotly.graph_objects import Figure, Scatter

    page = Figure(Scatter(y=[1, 2, 3])).to_html(include_plotlyjs=False)
    _expect("<div" in page, "it wrote no page")
    return {"detail": "a page drawn"}


def _build(torch: Any) -> Facts:
    cudnn = torch.backends.cudnn.version() if torch.version.cuda else None
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": cudnn}


def _agree(found: Any, right: Any, tolerance: float) -> None:
    """Hold a result to the right one, by the largest difference in units of the right one's largest value."""
    difference = ((found - right).abs().max() / right.abs().max()).item()
    _expect(difference <= tolerance, f"its result is off by {difference:.2g}, more than {tolerance:g}")


def _expect(fine: bool, otherwise: str) -> None:
    """Raise a sentence.

    Raises:
        ArithmeticError: it computes, but not what it should.
    """
    if not fine:
        raise ArithmeticError(otherwise)
