"""A saved adapter as it lies in a folder, in peft's own format, read without torch.

The format (peft's ``PeftModel.save_pretrained``): ``adapter_config.json``, the fields of a ``LoraConfig``,
and ``adapter_model.safetensors`` with two matrices for each target, ``base_model.model.<path>.lora_A.weight``
of ``[rank, inputs]`` and ``...lora_B.weight`` of ``[outputs, rank]``. What memgpt saves has
``memgpt_adapter.json`` beside them, which says what it was made of; peft does not look at it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.model.safetensors_header import METADATA, BrokenFileError, header_of

if TYPE_CHECKING:
    from mem_gpt_cli.adapters.documents import Entry, LoraConfig, Record

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
RECORD = "memgpt_adapter.json"
PREFIX = "base_model.model."
_PICKLED = "adapter_model.bin"
_FACTOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

_NOT_READ: Mapping[str, str] = {
    "use_dora": "DoRA, which scales the columns of the base",
    "modules_to_save": "whole modules of its own",
    "trainable_token_indices": "rows of the embedding",
    "target_parameters": "stacked parameters",
    "layer_replication": "layers that the base has not",
    "lora_bias": "biases",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal factors",
    "arrow_config": "a router over other adapters",
    "alora_invocation_tokens": "tokens that switch it on",
    "velora_config": "VeLoRA",
    "monteclora_config": "sampled factors",
    "kasa_config": "KaSA, which truncates the base",
}
"""Fields of a ``LoraConfig`` that make more of it than the sum of two factors, and what they bring."""
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of ``init_lora_weights`` after which the base is another one than before."""


@dataclass(frozen=True)
class Factors:
    """The two factors at one matrix, ``[rank, inputs]`` and ``[outputs, rank]``.

    ``module`` is the path in the base model, ``scale`` what their product is multiplied by, ``nbytes`` what
    they take in the file.
    """

    module: str
    rank: int
    inputs: int
    outputs: int
    scale: float
    nbytes: int

    @property
    def parameters(self) -> int:
        """Elements of both."""
        return self.rank * (self.inputs + self.outputs)

    @property
    def target(self) -> str:
        """The last part of the path, as targets are named."""
        return self.module.rpartition(".")[2]


@dataclass(frozen=True)
class SavedAdapter:
    """One adapter in a folder: its factors, and what memgpt noted beside it.

    ``config`` is all that peft wrote, ``lora`` the part of it that memgpt computes with.
    """

    folder: Path
    config: Mapping[str, Any]
    lora: LoraConfig
    factors: tuple[Factors, ...]
    dtypes: tuple[str, ...]
    record: Record | None

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.folder.resolve().name

    @property
    def base(self) -> str | None:
        """The model that it says it was trained on."""
        noted = self.record.base.name if self.record else None
        return noted or self.lora.base_model_name_or_path or None

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that occur, ascending."""
        return tuple(sorted({one.rank for one in self.factors}))

    @property
    def targets(self) -> tuple[str, ...]:
        """The last parts of the paths, in the order of the file."""
        return tuple(dict.fromkeys(one.target for one in self.factors))

    @property
    def parameters(self) -> int:
        """Elements of all factors."""
        return sum(one.parameters for one in self.factors)

    @property
    def nbytes(self) -> int:
        """Bytes of all factors as they are stored."""
        return sum(one.nbytes for one in self.factors)

    @property
    def saved(self) -> datetime:
        """When it was saved: as memgpt noted, else the time of the file."""
        if self.record:
            return self.record.saved
        return datetime.fromtimestamp((self.folder / WEIGHTS).stat().st_mtime, UTC).replace(microsecond=0)


def read_adapter(folder: str | Path) -> SavedAdapter:
    """The adapter in a folder.

    Raises:
        UsageError: where there is none, it is damaged, or it is more than a sum of two factors.
    """
    from mem_gpt_cli.adapters.documents import LoraConfig, Record, checked  # most recipes load no adapter

    folder = Path(folder).expanduser()
    if not (folder / CONFIG).is_file():
        missing = f"holds no {CONFIG}" if folder.is_dir() else "does not exist"
        raise UsageError(f"{folder} {missing}: name the folder of a saved adapter")
    config = _json(folder / CONFIG)
    _refuse_other_kinds(folder, config)
    lora = checked(LoraConfig, config, folder / CONFIG)
    tensors = _tensors(folder)
    noted = folder / RECORD
    return SavedAdapter(
        folder=folder,
        config=config,
        lora=lora,
        factors=tuple(_factors(folder, lora, tensors)),
        dtypes=tuple(dict.fromkeys(one.dtype for one in tensors.values())),
        record=checked(Record, _json(noted), noted) if noted.is_file() else None,
    )


def adapter_folders(folder: Path) -> Sequence[Path]:
    """Every folder at or under ``folder`` that says it holds an adapter, in the order of their paths.

    Raises:
        UsageError: if there is no such folder.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: name one that holds adapters, at whatever depth")
    return sorted(path.parent for path in folder.rglob(CONFIG) if not path.parent.name.startswith("."))


def by_target(adapter: SavedAdapter) -> Mapping[str, Sequence[Factors]]:
    """The factors of each target, in the order of the file."""
    found: dict[str, list[Factors]] = {target: [] for target in adapter.targets}
    for one in adapter.factors:
        found[one.target].append(one)
    return found


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read ({error}): fetch or save the adapter again") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} is no JSON object: fetch or save the adapter again")
    return found


def _refuse_other_kinds(folder: Path, config: Mapping[str, Any]) -> None:
    """Pass LoRA whose effect is a sum: only that can be added up, sized and merged without a look at data."""
    kind = str(config.get("peft_type") or "unknown")
    if kind != "LORA":
        raise UsageError(f"{folder} holds an adapter of peft's type {kind}: memgpt reads LoRA alone")
    for key, what in _NOT_READ.items():
        if config.get(key):
            raise UsageError(f"{folder} holds {what} ({key}): memgpt reads adapters of two factors alone")
    if config.get("bias") not in (None, "none"):
        raise UsageError(
            f"{folder} holds biases of the base (bias: {config['bias']}): memgpt reads adapters of two "
            "factors alone"
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGES_THE_BASE):
        raise UsageError(
            f"{folder} was trained from {start}, which changes the base: convert it by peft's "
            "path_initial_model_for_weight_conversion first"
        )


def _tensors(folder: Path) -> Mapping[str, Entry]:
    """What the header of the file says of each tensor."""
    from mem_gpt_cli.adapters.documents import Entry, checked

    path = folder / WEIGHTS
    if not path.is_file():
        reason = f"{folder} holds no {WEIGHTS}"
        if (folder / _PICKLED).is_file():
            raise UsageError(
                f"{reason} but {_PICKLED}, which may run code when it is read: save it again by peft"
            )
        raise UsageError(f"{reason}: fetch or save the adapter again")
    try:
        header = header_of(path)
    except (BrokenFileError, OSError) as error:
        raise UsageError(f"{path} cannot be read: {error}; fetch or save the adapter again") from error
    return {name: checked(Entry, entry, path, name) for name, entry in header.items() if name != METADATA}


def _factors(folder: Path, lora: LoraConfig, tensors: Mapping[str, Entry]) -> Iterator[Factors]:
    """The pairs of matrices, in the order in which their first one stands in the model's paths."""
    sides: dict[str, dict[str, Entry]] = {}
    for name, tensor in tensors.items():
        match = _FACTOR.fullmatch(name)
        if match is None or len(tensor.shape) != 2:
            raise UsageError(f"{folder}: {name!r} is no factor of a linear layer: memgpt reads such alone")
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    if not sides:
        raise UsageError(f"{folder}: {WEIGHTS} is empty: fetch or save the adapter again")
    for module in sorted(sides, key=_in_order):
        pair = sides[module]
        if len(pair) < 2 or pair["A"].shape[0] != pair["B"].shape[1]:
            raise UsageError(
                f"{folder}: the two factors of {module} do not fit together: fetch or save it again"
            )
        (rank, inputs), (outputs, _) = pair["A"].shape, pair["B"].shape
        if rank != lora.rank_of(module):
            raise UsageError(
                f"{folder}: the factors of {module} are of rank {rank}, and {CONFIG} says "
                f"{lora.rank_of(module)}: fetch or save the adapter again"
            )
        nbytes = pair["A"].nbytes + pair["B"].nbytes
        yield Factors(module, rank, inputs, outputs, lora.scale_of(module), nbytes)


def _in_order(module: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in module.split(".")]
