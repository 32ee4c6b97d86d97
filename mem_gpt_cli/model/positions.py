"""How many positions a model can tell apart."""

from __future__ import annotations

import torch

from mem_gpt_cli.errors import UnsupportedError
from mem_gpt_cli.model.facts import decoder_config
from mem_gpt_cli.model.source import ModelSource

_TABLES = ("wpe", "embed_positions", "position_embeddings")


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
