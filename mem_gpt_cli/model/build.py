"""From a model's config to a torch model that owns its memory."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from mem_gpt_cli.errors import UnsupportedError, UsageError
from mem_gpt_cli.model.imports import broken_packages_named
from mem_gpt_cli.model.source import ModelSource
from mem_gpt_cli.recipe.schema import Recipe

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
EXPERTS = {"eager": "eager", "grouped": "grouped_mm", "batched": "batched_mm"}
_DROPOUT = re.compile(r"(^|_)(drop|dropout|pdrop|dropout_prob)$")
_NOT_OF_THE_DECODER = re.compile(r"classifier|layerdrop|summary")


def transformers_config(source: ModelSource, recipe: Recipe) -> Any:
    """The model's config as transformers knows it, with the recipe's dropout and expert code.

    Raises:
        UnsupportedError: for a model type that this transformers does not know, or knows as no causal LM.
        UsageError: for values that the config class refuses.
    """
    from transformers import CONFIG_MAPPING

    model_type = str(source.config.get("model_type"))
    if model_type not in CONFIG_MAPPING:
        raise UnsupportedError(
            f"{source.name}: the installed transformers knows no model type {model_type!r}; a newer one may"
        )
    try:
        config = CONFIG_MAPPING[model_type].from_dict(dict(source.config))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"{source.name}: transformers refuses this config: {_first_line(error)}") from error
    except Exception as error:  # huggingface_hub's strict dataclasses raise their own kinds
        if "Validation" not in type(error).__name__:
            raise
        raise UsageError(f"{source.name}: transformers refuses this config: {_first_line(error)}") from error
    if recipe.model.dropout is not None:
        set_dropout(config, recipe.model.dropout)
    return config


def set_dropout(config: Any, probability: float) -> None:
    """Replace every dropout probability of a decoder's config."""
    for key, value in list(vars(config).items()):
        if _DROPOUT.search(key) and not _NOT_OF_THE_DECODER.search(key) and isinstance(value, int | float):
            setattr(config, key, probability)


def with_layers(config: Any, layers: int) -> Any:
    """A copy of a transformers config with fewer layers; lists of one entry a layer are cut."""
    shallow = copy.deepcopy(config)
    text = shallow.get_text_config()
    full = text.num_hidden_layers
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == full:
            setattr(text, key, value[:layers])
    text.num_hidden_layers = layers
    return shallow


@broken_packages_named()
def plain_on_meta(
    source: ModelSource, recipe: Recipe, attention: str, layers: int | None = None
) -> torch.nn.Module:
    """The model as transformers has it, without memory: every tensor on torch's ``meta`` device.

    Args:
        source: which model.
        recipe: the dtype, the dropout and the experts' code.
        attention: transformers' name of the attention.
        layers: build that many layers instead of all.

    Raises:
        UnsupportedError: for a model that has no such attention.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = transformers_config(source, recipe)
    if layers is not None:
        config = with_layers(config, layers)
    options: dict[str, Any] = {}
    if recipe.model.experts != "auto":
        options["experts_implementation"] = EXPERTS[recipe.model.experts]

    def of_attention(backend: str) -> Any:
        options["attn_implementation"] = backend
        if type(config) in AutoModelForCausalLM._model_mapping:
            return AutoModelForCausalLM.from_config(config, dtype=DTYPES[recipe.model.dtype], **options)
        return decoder_class(source, config)._from_config(config, dtype=DTYPES[recipe.model.dtype], **options)

    with torch.device("meta"), no_init_weights():
        try:
            model = of_attention(attention)
        except ValueError as error:
            if attention == "eager" or "scaled_dot_product_attention" not in str(error):
                raise UnsupportedError(f"{source.name}: {_first_line(error)}") from error
            model = of_attention(
                "eager"
            )  # what transformers itself takes for such a model; see attention.backend.note
    model.tie_weights()  # no_init_weights leaves this out too
    if getattr(model, "loss_type", None) is None:
        model.loss_type = "ForCausalLM"  # what transformers takes then, with a remark on it for every model
    return model  # type: ignore[no-any-return]


def decoder_class(source: ModelSource, config: Any) -> Any:
    """The causal LM of a text part that transformers registers under the multimodal model's type alone.

    Raises:
        UnsupportedError: where there is none.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        if config.model_type.startswith(name):
            whole = CONFIG_MAPPING[name]
            if whole.sub_configs.get("text_config") is type(config):
                return AutoModelForCausalLM._model_mapping[whole]
    raise UnsupportedError(
        f"{source.name}: transformers has no causal language model of type {config.model_type!r}"
    )


def materialise(model: torch.nn.Module, device: torch.device, but: Collection[int] = ()) -> None:
    """Give every parameter and buffer memory of its own; tied ones stay tied.

    ``Module.to_empty`` would untie them, because it makes a new tensor for each name.

    Args:
        model: the model on ``meta``.
        device: where the memory is taken.
        but: the ``id`` of each tensor that stays as it is.
    """
    memo: dict[int, torch.Tensor] = {}

    def real(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in but:
            return tensor
        if id(tensor) not in memo:
            memo[id(tensor)] = empty_like_on(tensor, device)
        return memo[id(tensor)]

    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in list(table.items()):
                if tensor is not None:
                    table[name] = real(tensor)  # type: ignore[assignment]


def empty_like_on(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Memory for a tensor of another device, a parameter where that is one."""
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
    if isinstance(tensor, torch.nn.Parameter):
        empty = torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
        empty.__dict__.update(tensor.__dict__)
    return empty


Turn = Callable[[torch.nn.Module], None]


def initialise(model: torch.nn.Module, before: Turn | None = None, after: Turn | None = None) -> None:
    """Fill weights and buffers as transformers initialises them, in place.

    Args:
        model: the model; what of it has no memory is left alone.
        before: called with each module before its turn.
        after: called with each module after its turn; children have theirs before their parents.
    """
    for module in model.modules():
        module.__dict__.pop("_is_hf_initialized", None)
    with _turns(before, after):
        model.initialize_weights()  # type: ignore[operator]


def last_turns(model: torch.nn.Module) -> dict[int, torch.nn.Module]:
    """By the ``id`` of each weight the module at whose turn it is filled last; ``model`` is on ``meta``.

    Mostly that is the module that holds the weight; GPT-2's blocks fill some of their children's again.
    """
    from transformers import initialization

    found: dict[int, torch.nn.Module] = {}
    now: list[torch.nn.Module] = []

    def note(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        found[id(tensor)] = now[-1]
        return tensor

    with mock.patch.dict(
        initialization.TORCH_INIT_FUNCTIONS, dict.fromkeys(initialization.TORCH_INIT_FUNCTIONS, note)
    ):
        initialise(model, before=now.append)
    return found


@contextmanager
def _turns(before: Turn | None, after: Turn | None) -> Iterator[None]:
    from transformers import PreTrainedModel

    own = PreTrainedModel._initialize_weights

    def turn(model: Any, module: torch.nn.Module, *args: Any) -> None:
        if before is not None:
            before(module)
        own(model, module, *args)
        if after is not None:
            after(module)

    if before is None and after is None:
        yield
        return
    with mock.patch.object(PreTrainedModel, "_initialize_weights", turn):
        yield


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
