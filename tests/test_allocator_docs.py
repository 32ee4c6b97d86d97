"""What docs/allocator.md says is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mem_gpt_cli.allocator.settings import READERS, WITHOUT_EFFECT

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "allocator.md").read_text(encoding="utf-8")
SETTINGS = TEXT.partition("## Settings")[2].partition("\n## ")[0]


def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "docs/allocator.md", "exec"), {})


def test_the_table_has_every_key_that_changes_memory() -> None:
    assert set(re.findall(r"^\| `(\w+)`", SETTINGS, re.MULTILINE)) == set(READERS)


def test_the_keys_without_effect_are_named() -> None:
    sentence = SETTINGS.partition("Accepted and without effect")[2].partition(";\n")[0]
    assert {key.split(":")[0] for key in re.findall(r"`([\w:]+)`", sentence)} == set(WITHOUT_EFFECT)
