"""Saved adapters in other files: peft's plain folder, one safetensors file, or several summed into one."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mem_gpt_cli.adapters.folder import PREFIX, SavedAdapter
from mem_gpt_cli.adapters.saved import factors_of, write_adapter, write_factors
from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.report.whole_folder import refuse_taken

Format = Literal["peft", "safetensors"]
FORMATS: tuple[str, ...] = get_args(Format)
"""What adapters are exported to: a folder that peft reads, or its weights with the config in one file."""
CONFIG_KEY = "adapter_config"
"""Where the single file holds the config, as JSON, among its metadata."""


def export(adapters: Sequence[SavedAdapter], out: Path, to: Format = "peft", dtype: str | None = None) -> int:
    """Write adapters as one, without what memgpt notes beside them; several become their exact sum.

    The sum of adapters of ranks r and s is one of rank r + s: their factors beside each other, the scales in
    the second one.

    Args:
        adapters: of the same base.
        out: a folder for ``peft``, a file for ``safetensors``; nothing may be there.
        to: the format.
        dtype: a recipe's name of the width to store them in; ``None``: as they are.

    Returns:
        Parameters in what was written.

    Raises:
        UsageError: where ``out`` is taken, or the adapters are of different models.
    """
    refuse_taken(out)
    config, tensors = _single(adapters[0]) if len(adapters) == 1 else _sum(adapters)
    if to == "peft":
        write_adapter(out, config, tensors, dtype=dtype)
    else:
        _write_file(out, config, tensors, dtype)
    return sum(tensor.numel() for tensor in tensors.values())


def _single(adapter: SavedAdapter) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    return adapter.config, {f"{PREFIX}{name}": tensor for name, tensor in factors_of(adapter)}


def _sum(adapters: Sequence[SavedAdapter]) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """One adapter whose products are the sums of theirs, its scales 1."""
    _refuse_strangers(adapters)
    parts: dict[str, list[Tensor]] = {}
    for adapter in adapters:
        scales = {one.module: one.scale for one in adapter.factors}
        for name, tensor in factors_of(adapter):
            module, _, side = name.removesuffix(".weight").rpartition(".")
            scale = scales[module] if side == "lora_B" else 1.0
            parts.setdefault(f"{PREFIX}{name}", []).append(tensor.float() * scale)
    tensors = {name: torch.cat(each, dim=1 if ".lora_B." in name else 0) for name, each in parts.items()}
    ranks = {
        name.removeprefix(PREFIX).removesuffix(".lora_A.weight"): len(tensor)
        for name, tensor in tensors.items()
        if ".lora_A." in name
    }
    return _config(adapters, ranks), tensors


def _config(adapters: Sequence[SavedAdapter], ranks: Mapping[str, int]) -> Mapping[str, Any]:
    """The first one's config with the sums' ranks; alpha is the rank, so that the scale is 1."""
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {re.escape(module): rank for module, rank in ranks.items() if rank != usual}
    config = dict(adapters[0].config)
    alike = {json.dumps(adapter.config.get("target_modules"), sort_keys=True) for adapter in adapters}
    modules = {tuple(sorted(one.module for one in adapter.factors)) for adapter in adapters}
    if len(alike) > 1 or len(modules) > 1:
        config |= {"target_modules": list(ranks), "layers_to_transform": None, "layers_pattern": None}
        config["exclude_modules"] = None
    return config | {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": dict(others),
        "use_rslora": False,
    }


def _refuse_strangers(adapters: Sequence[SavedAdapter]) -> None:
    """Pass adapters that can stand on one model, as far as their shapes tell."""
    shapes: dict[str, tuple[int, int]] = {}
    for adapter in adapters:
        for one in adapter.factors:
            if shapes.setdefault(one.module, (one.outputs, one.inputs)) != (one.outputs, one.inputs):
                raise UsageError(
                    f"{adapter.folder} adapts {one.module} of another shape than {adapters[0].folder} does: "
                    "name adapters of one model"
                )
    families = [adapter.record.base.architecture if adapter.record else None for adapter in adapters]
    first = next((family for family in families if family), None)
    for adapter, family in zip(adapters, families, strict=True):
        if family and family != first:
            raise UsageError(
                f"{adapter.folder} was trained on {adapter.base}, another model: name adapters of one"
            )


def _write_file(
    out: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: str | None
) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            partial = Path(folder) / out.name
            write_factors(partial, tensors, dtype, {CONFIG_KEY: json.dumps(config, sort_keys=True)})
            partial.rename(out)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror or error}") from error
