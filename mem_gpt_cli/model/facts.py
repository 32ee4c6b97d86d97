"""What a report says of a torch model."""

from __future__ import annotations

from typing import Any

import torch

from mem_gpt_cli.model.source import ModelSource
from mem_gpt_cli.report import ModelSummary


def decoder_config(model: torch.nn.Module) -> Any:
    """The config of the decoder: of the whole model, or of the language part of one that sees images too."""
    config: Any = model.config
    return config.get_text_config()


def vocabulary(model: torch.nn.Module) -> int:
    """The number of token ids that the model takes."""
    return int(decoder_config(model).vocab_size)


def logits_width(model: torch.nn.Module) -> int | None:
    """The width of the model's logits; ``None`` without an output matrix."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    return None if head is None else int(head.weight.shape[0])


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that training changes, by their names, in the model's order; tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def summarise(source: ModelSource, model: torch.nn.Module, parameters: int | None = None) -> ModelSummary:
    """The model's name and size; tied weights count once.

    ``parameters`` is their number where options have replaced some of the model's own.
    """
    return ModelSummary(
        name=source.name,
        architecture=str(source.config.get("model_type")),
        parameters=sum(p.numel() for p in model.parameters()) if parameters is None else parameters,
        layers=getattr(decoder_config(model), "num_hidden_layers", None),
        source=source.source,
    )
