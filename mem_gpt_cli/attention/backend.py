"""Which of torch's attention kernels a recipe allows."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from mem_gpt_cli.attention.cost import FLASH_CAPABILITY, LSH_NOT_TAKEN, NO_FLASH
from mem_gpt_cli.attention.lsh_interface import PREFIX, register
from mem_gpt_cli.attention.plan import Lsh
from mem_gpt_cli.errors import UnsupportedError
from mem_gpt_cli.recipe.schema import Recipe

IMPLEMENTATION = {"eager": "eager", "sdpa": "sdpa", "flash": "sdpa"}
"""transformers' name of each backend: ``flash`` is SDPA with its flash kernel alone."""
FLASH_ATTN = "flash_attention_2"
"""transformers' name of the package flash-attn, which runs where it is installed, on CUDA."""
_KERNELS = {
    "_scaled_dot_product_flash_attention_for_cpu": "sdpa flash",
    "_scaled_dot_product_flash_attention": "sdpa flash",
    "_scaled_dot_product_efficient_attention": "sdpa efficient",
    "_scaled_dot_product_cudnn_attention": "sdpa cudnn",
    "_safe_softmax": "sdpa math",
}
"""The operators that SDPA comes down to, each with what a report calls it."""
NO_KERNEL = "No available kernel"
"""How torch begins when none of the kernels that it may use can run (ATen's ``sdp_utils``)."""


@contextmanager
def attention_kernels(recipe: Recipe) -> Iterator[None]:
    """Leave torch's SDPA the kernels that the recipe allows it.

    ``flash`` is SDPA with its flash kernel alone. It must hold in backward as well, where checkpointed
    layers run again.

    Raises:
        UnsupportedError: where flash alone cannot run.
    """
    if recipe.attention.backend != "flash":
        yield
        return
    try:
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            # torch says by warnings why no kernel serves, then raises; what it raises is answered below.
            warnings.filterwarnings("ignore", message="(?s).*kernel.*")
            yield
    except RuntimeError as error:
        if NO_KERNEL not in str(error):
            raise
        raise UnsupportedError(NO_FLASH) from error


def implementation(recipe: Recipe, device: torch.device | None = None) -> str:
    """transformers' name of the recipe's attention; our own is registered there under its name.

    Args:
        recipe: the recipe.
        device: where the model's memory is; without one, as in a trace, flash is that of SDPA, whose kernels
            are those of flash-attn (aten/src/ATen/native/transformers/cuda/flash_attn).
    """
    if recipe.attention.backend == "lsh":
        return register(Lsh.of(recipe.attention))
    if recipe.attention.backend == "flash" and device is not None and runs_flash_attn(device):
        return FLASH_ATTN
    return IMPLEMENTATION[recipe.attention.backend]


def runs_flash_attn(device: torch.device) -> bool:
    """Whether flash-attn is installed and has a GPU that it runs on."""
    from transformers.utils import is_flash_attn_2_available

    return (
        device.type == "cuda"
        and bool(is_flash_attn_2_available())
        and torch.cuda.get_device_capability(device) >= FLASH_CAPABILITY
    )


def prefer_flash_attn(model: torch.nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Let a model that has real memory run flash-attn where the recipe wants flash and it is installed."""
    if implementation(recipe, device) == FLASH_ATTN:
        model.set_attn_implementation(FLASH_ATTN)  # type: ignore[operator]


def kernels_that_ran(operators: Iterable[str], attention: str) -> list[str]:
    """Which attention a run's operators show, as a report says it: ``sdpa flash``, ``sdpa math``, ``eager``.

    Args:
        operators: names of the operators of the run, such as ``aten.bmm``.
        attention: transformers' name of the attention that the model was given.
    """
    if attention == FLASH_ATTN:
        return ["flash-attn"]
    names = {name.split(".")[1] for name in operators if name.startswith("aten.")}
    found = sorted({label for name, label in _KERNELS.items() if name in names})
    if attention.startswith(PREFIX):
        return ["lsh", *found]
    return found or ["eager"]


@contextmanager
def attention_is_known(recipe: Recipe) -> Iterator[None]:
    """While a model is built: code with a list of attentions of its own (GPT-J) does not find ours in it.

    Raises:
        UnsupportedError: for such a model.
    """
    try:
        yield
    except KeyError as error:
        if recipe.attention.backend != "lsh" or error.args != (implementation(recipe),):
            raise
        raise UnsupportedError(LSH_NOT_TAKEN) from error


def check_attention(model: torch.nn.Module, recipe: Recipe) -> None:
    """Refuse a model whose code calls an attention of its own, whatever is registered.

    Raises:
        UnsupportedError: for such a model where the recipe wants memgpt's attention.
    """
    if recipe.attention.backend == "lsh" and not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedError(LSH_NOT_TAKEN)


def attention_note(model: torch.nn.Module, recipe: Recipe) -> tuple[str, ...]:
    """What to tell of a model that lacks the recipe's attention and runs another; mostly nothing."""
    runs = getattr(model.config, "_attn_implementation", None)
    if runs in (None, implementation(recipe)):
        return ()
    return (
        f"{type(model).__name__} has no {recipe.attention.backend} attention in transformers: "
        f"{runs} runs instead",
    )
