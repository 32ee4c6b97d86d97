"""A run as a row of a CSV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FINETUNE_COLUMNS: tuple[str, ...] = (
    "schema_version", "model", "method", "dtype", "autocast", "quantization", "attention", "kv_heads",
    "checkpointing", "optimizer", "loss", "batch", "accumulate", "seq", "steps", "lr", "device", "processes",
    "parameters_trained", "data", "sequences", "held_out_tokens", "perplexity_before", "perplexity_after",
    "loss_first", "loss_last", "tokens_per_s", "seconds", "predicted_bytes", "predicted_phase",
    "predicted_by", "measured_bytes", "reserved_bytes", "process_bytes", "process_before_bytes", "out",
)  # fmt: skip
"""Columns of a run's row, in their order; new ones go to the end."""


def finetune_row(account: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ``FINETUNE_COLUMNS`` for one account."""
    recipe, perplexity = account["recipe"], account["perplexity"] or {}
    workload, memory, speed = recipe["workload"], account["memory"], account["speed"]
    plain = {
        name: account[name] for name in ("schema_version", "model", "method", "steps", "processes", "out")
    }
    return plain | {
        "dtype": recipe["model"]["dtype"],
        "autocast": workload["autocast"],
        "quantization": recipe["quantization"]["scheme"],
        "attention": recipe["attention"]["backend"],
        "kv_heads": recipe["attention"]["kv_heads"],
        "checkpointing": recipe["checkpointing"]["policy"],
        "optimizer": recipe["optimizer"]["name"],
        "loss": recipe["loss"]["kind"],
        "batch": workload["batch"],
        "accumulate": workload["accumulate"],
        "seq": workload["seq"],
        "lr": recipe["optimizer"]["lr"],
        "device": recipe["device"]["name"],
        "parameters_trained": account["parameters_trained"],
        "data": account["data"]["name"],
        "sequences": account["data"]["sequences"],
        "held_out_tokens": perplexity.get("tokens"),
        "perplexity_before": perplexity.get("before"),
        "perplexity_after": perplexity.get("after"),
        "loss_first": account["loss"]["first"],
        "loss_last": account["loss"]["last"],
        "tokens_per_s": speed["tokens_per_s"],
        "seconds": speed["seconds"],
        **{name: memory[name] for name in memory},
    }
