"""Damaged folders of adapters: each is one sentence, and none keeps the others from being listed."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from mem_gpt_cli.adapters.documents import LoraConfig
from mem_gpt_cli.adapters.folder import CONFIG, RECORD, WEIGHTS, read_adapter
from mem_gpt_cli.cli import main as cli
from mem_gpt_cli.errors import UsageError

MODULE = "transformer.h.0.attn.c_attn"
FIRST, SECOND = (f"base_model.model.{MODULE}.lora_{side}.weight" for side in "AB")
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "rank_pattern": {}, "alpha_pattern": {}}
NOTE: dict[str, Any] = {
    "schema_version": 1,
    "saved": "2026-01-02T03:04:05+00:00",
    "base": {
        "name": "memgpt-tiny",
        "architecture": {"model_type": "gpt2", "layers": 4},
        "weights": [{"name": "transformer.wte.weight", "dtype": "float32", "values": [0.5] * 8}],
    },
    "quantization": None,
}
HEADER: dict[str, Any] = {
    FIRST: {"dtype": "F32", "shape": [2, 256], "data_offsets": [0, 2048]},
    SECOND: {"dtype": "F32", "shape": [768, 2], "data_offsets": [2048, 8192]},
}


def folder_with(
    folder: Path, config: dict[str, Any] = LORA, record: Any = NOTE, header: dict[str, Any] = HEADER
) -> Path:
    """A saved adapter of these documents, its factors 0."""
    folder.mkdir()
    (folder / CONFIG).write_text(json.dumps(config))
    (folder / RECORD).write_text(json.dumps(record))
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + bytes(8192))
    return folder


def base_with(**changes: Any) -> dict[str, Any]:
    return {"record": NOTE | {"base": NOTE["base"] | changes}}


def first_with(**changes: Any) -> dict[str, Any]:
    return {"header": HEADER | {FIRST: HEADER[FIRST] | changes}}


DAMAGED: dict[str, tuple[dict[str, Any], str]] = {
    "alpha null": ({"config": LORA | {"lora_alpha": None}}, "lora_alpha: must be a valid number, not null"),
    "alpha a text": ({"config": LORA | {"lora_alpha": "x"}}, "lora_alpha: must be a valid number, not 'x'"),
    "patterns a list": (
        {"config": LORA | {"alpha_pattern": ["a"]}},
        "alpha_pattern: must be an object, not a list",
    ),
    "no pattern": (
        {"config": LORA | {"alpha_pattern": {"(": 3}}},
        "alpha_pattern.(: is no regular expression (missing ), unterminated subpattern)",
    ),
    "rank 0": ({"config": LORA | {"r": 0}}, "r: must be greater than 0, not 0"),
    "factors of rank 0": (first_with(shape=[0, 256]), f"{FIRST}.shape.0: must be greater than 0, not 0"),
    "another rank": (
        {"config": LORA | {"rank_pattern": {"c_attn": 3}}},
        f"the factors of {MODULE} are of rank 2, and {CONFIG} says 3",
    ),
    "tensor without a type": (
        {"header": HEADER | {FIRST: {"shape": [2, 256], "data_offsets": [0, 2048]}}},
        f"{FIRST}.dtype: is missing",
    ),
    "tensor of too few bytes": (
        first_with(data_offsets=[0, 1024]),
        f"{FIRST}: has 1024 bytes, which are not those of F32 [2, 256]",
    ),
    "offsets cut": (first_with(data_offsets=[0]), "its header is no safetensors header"),
    "note without a base": ({"record": NOTE | {"base": None}}, "base: must be an object, not null"),
    "base a text": ({"record": NOTE | {"base": "x"}}, "base: must be an object, not 'x'"),
    "saved yesterday": ({"record": NOTE | {"saved": "yesterday"}}, "saved: must be a valid datetime"),
    "weights unnamed": (
        base_with(weights=[{"dtype": "float32", "values": [0.5]}]),
        "base.weights.0.name: is missing",
    ),
    "architecture a list": (base_with(architecture=[1]), "base.architecture: must be an object, not a list"),
    "architecture empty": (base_with(architecture={}), "base.architecture: "),
    "note a list": ({"record": [1]}, "is no JSON object"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_folder_is_one_sentence(name: str, tmp_path: Path) -> None:
    documents, message = DAMAGED[name]
    folder = folder_with(tmp_path / "a", **documents)
    with pytest.raises(UsageError) as raised:
        read_adapter(folder)
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(folder))
    assert "\n" not in str(raised.value)


def test_damaged_folders_are_listed_beside_whole_ones(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder_with(tmp_path / "whole")
    for name, (documents, _) in DAMAGED.items():
        folder_with(tmp_path / name.replace(" ", "-"), **documents)
    assert cli.run(["adapters", "list", str(tmp_path)]) == 0
    shown = capfd.readouterr()
    assert shown.out.count("not read") == len(DAMAGED)
    assert shown.err.count("warning: ") == len(DAMAGED)
    assert shown.err.endswith(f"1 adapter under {tmp_path}\n")
    assert cli.run(["adapters", "list", str(tmp_path), "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capfd.readouterr().out)}
    assert rows["whole"]["saved"] == NOTE["saved"]
    assert {name for name, row in rows.items() if "problem" in row} == {*rows} - {"whole"}


def test_a_whole_folder_is_shown_as_it_was_noted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = folder_with(tmp_path / "a", record=NOTE | {"quantization": {"scheme": "nf4"}})
    assert cli.run(["adapters", "show", str(folder), "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["record"] == NOTE | {"quantization": {"scheme": "nf4"}}
    assert shown["config"] == LORA
    assert cli.run(["adapters", "show", str(folder)]) == 0
    assert "weights in nf4" in capfd.readouterr().out


def test_ranks_and_scales_by_pattern_are_pefts() -> None:
    config = LoraConfig(
        r=8, lora_alpha=16, rank_pattern={"attn.c_attn": 4}, alpha_pattern={r"h\.1\..*": 1.5, "c_attn": 2}
    )
    wanted = {
        "transformer.h.0.attn.c_attn": (4, 0.5),
        "transformer.h.1.attn.c_attn": (4, 0.375),
        "transformer.h.1.mlp.c_fc": (8, 0.1875),
        "transformer.h.0.mlp.c_fc": (8, 2.0),
    }
    assert {path: (config.rank_of(path), config.scale_of(path)) for path in wanted} == wanted
    assert LoraConfig(r=16, lora_alpha=8, use_rslora=True).scale_of("any") == 2.0
