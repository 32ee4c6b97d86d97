"""The tensors that torch's and transformers' modules hold, by name and exact shape."""

from __future__ import annotations

from mem_gpt_cli.model.architecture import Tensor

Tensors = tuple[Tensor, ...]
FLOAT32 = 4
BOOL = 1


def linear(name: str, inputs: int, outputs: int, *, bias: bool = False, count: int = 1) -> Tensors:
    """``count`` modules ``nn.Linear(inputs, outputs, bias)``."""
    weight = Tensor(f"{name}.weight", (outputs, inputs), "linear", count)
    return (weight, Tensor(f"{name}.bias", (outputs,), "bias", count)) if bias else (weight,)


def conv1d(name: str, inputs: int, outputs: int, *, count: int) -> Tensors:
    """``count`` modules ``Conv1D``, GPT-2's linear layer with a transposed weight and always a bias."""
    return (
        Tensor(f"{name}.weight", (inputs, outputs), "linear", count),
        Tensor(f"{name}.bias", (outputs,), "bias", count),
    )


def embedding(name: str, rows: int, width: int) -> Tensors:
    """One ``nn.Embedding(rows, width)``."""
    return (Tensor(f"{name}.weight", (rows, width), "embedding"),)


def layernorm(name: str, width: int, *, bias: bool = True, count: int = 1) -> Tensors:
    """``count`` modules ``nn.LayerNorm(width)``."""
    weight = Tensor(f"{name}.weight", (width,), "norm", count)
    return (weight, Tensor(f"{name}.bias", (width,), "norm", count)) if bias else (weight,)


def rmsnorm(name: str, width: int, *, count: int = 1) -> Tensors:
    """``count`` root-mean-square norms, which have a weight alone."""
    return layernorm(name, width, bias=False, count=count)


def output_head(name: str, hidden: int, vocab: int, *, tied: bool, bias: bool = False) -> Tensors:
    """The output matrix; a tied one is the input embedding's tensor and only its bias counts."""
    return tuple(
        tensor for tensor in linear(name, hidden, vocab, bias=bias) if tensor.kind == "bias" or not tied
    )


def gated_experts(name: str, experts: int, hidden: int, intermediate: int, *, count: int) -> Tensors:
    """``count`` stacks of ``experts`` gated MLPs, each stack two three-dimensional parameters."""
    return (
        Tensor(f"{name}.gate_up_proj", (experts, 2 * intermediate, hidden), "linear", count),
        Tensor(f"{name}.down_proj", (experts, hidden, intermediate), "linear", count),
    )


def gated_mlp(name: str, hidden: int, intermediate: int, *, bias: bool = False, count: int = 1) -> Tensors:
    """``count`` gated MLPs of three linear layers."""
    return (
        *linear(f"{name}.gate_proj", hidden, intermediate, bias=bias, count=count),
        *linear(f"{name}.up_proj", hidden, intermediate, bias=bias, count=count),
        *linear(f"{name}.down_proj", intermediate, hidden, bias=bias, count=count),
    )


def rotary(name: str, rotary_dim: int, *, layer_types: tuple[str, ...] = ()) -> Tensors:
    """The frequencies of a rotary embedding, kept twice (``original_`` is for dynamic scaling), in fp32.

    With ``layer_types`` there is one pair for each of them.
    """
    prefixes = [f"{layer_type}_" for layer_type in layer_types] or [""]
    return tuple(
        Tensor(f"{name}.{prefix}{kind}inv_freq", (rotary_dim // 2,), "buffer", dtype_bytes=FLOAT32)
        for prefix in prefixes
        for kind in ("", "original_")
    )
