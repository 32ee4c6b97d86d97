"""SmolLM2-135M from its package: found without importing it, refused in one sentence."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mem_gpt_cli.errors import EnvironmentUnavailableError
from mem_gpt_cli.model import resolve, smollm2
from mem_gpt_cli.recipe import load_recipe


def test_missing_package_is_one_sentence_that_names_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "a_package_that_nobody_has")
    assert smollm2.installed_file() is None
    with pytest.raises(EnvironmentUnavailableError, match="make smollm2") as caught:
        smollm2.gguf_file()
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_package_without_weights_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "PACKAGE", "json")
    assert smollm2.installed_file() is None


def test_finding_the_file_imports_neither_torch_nor_the_package() -> None:
    code = (
        "import sys; from mem_gpt_cli.model import smollm2; smollm2.installed_file(); "
        "print(sorted({'torch', 'transformers', smollm2.PACKAGE, 'llama_cpp'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.smollm2
@pytest.mark.skipif(smollm2.installed_file() is None, reason="the weights are not installed: make smollm2")
def test_its_numbers_are_read_from_the_file() -> None:
    read = resolve(load_recipe(overrides=["model.name=smollm2-135m"]).model)
    assert read.architecture.parameters == 134_515_008
    assert read.architecture.tied_embeddings
    assert {layer.attention.kv_heads for layer in read.architecture.layers} == {3}
