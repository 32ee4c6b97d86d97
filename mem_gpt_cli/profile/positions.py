"""A model with learned positions cannot run beyond them: better said before the run than in its middle."""

from __future__ import annotations

import torch

from mem_gpt_cli.errors import UnsupportedError, UsageError
from mem_gpt_cli.model import ModelSource
from mem_gpt_cli.model.facts import decoder_config
from mem_gpt_cli.recipe.schema import Recipe

_TABLES = ("wpe", "embed_positions", "position_embeddings")


def refuse_beyond_positions(source: ModelSource, recipe: Recipe, model: torch.nn.Module) -> None:
    """Pass a recipe whose sequences fit; the last new token is never fed back, so it needs no position.

    Raises:
        UsageError: for a sequence longer than the model's table of learned positions.
    """
    positions = learned_positions(source, model)
    needed = recipe.lengths.seq - (1 if recipe.task == "inference" else 0)
    if positions is not None and needed > positions:
        raise UsageError(
            f"{source.name}'s learned positions end at {positions}, the workload needs {needed}: "
            f"use workload.seq={positions} or less, or a longer table of positions by model.config"
        )


def learned_positions(source: ModelSource, model: torch.nn.Module) -> int | None:
    """How many positions have a learned row; ``None`` where positions are computed.

    The closed form knows it of its families; of others the model's own modules tell.
    """
    try:
        architecture = source.architecture
    except UnsupportedError:
        return _table_rows(model)
    return architecture.max_positions if architecture.learned_positions else None


def _table_rows(model: torch.nn.Module) -> int | None:
    has_table = any(
        isinstance(module, torch.nn.Embedding) and name.rpartition(".")[2] in _TABLES
        for name, module in model.named_modules()
    )
    if not has_table:
        return None
    # Some tables (OPT's) begin with rows that no position uses, so the config says it, not the table.
    limit = getattr(decoder_config(model), "max_position_embeddings", None)
    return None if limit is None else int(limit)
