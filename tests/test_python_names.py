"""The names of the library that options have: a model is loaded, adjusted and asked for text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import mem_gpt_cli as memgpt
from mem_gpt_cli.attention import use_flash_attention_if_available
from mem_gpt_cli.errors import EnvironmentUnavailableError, RecipeError, UsageError
from mem_gpt_cli.kv_cache import use_paged_kv_cache_if_available
from mem_gpt_cli.quantization import QuantizedModel

PROMPT = "Hello, I am a language model."


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plain() -> Any:
    return memgpt.load({"model.name": "memgpt-tiny"})


def weight_bytes(model: Any) -> int:
    from mem_gpt_cli.quantization.modules import stored_tensors

    storages = [tensor.untyped_storage() for tensor in stored_tensors(model.model)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize(("file", "blocks"), [("README.md", 1), ("docs/generate.md", 2)])
def test_the_documents_blocks_run(file: str, blocks: int, capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).resolve().parent.parent / file).read_text(encoding="utf-8")
    found = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "generate(" in block]
    assert len(found) >= blocks
    for block in found:
        exec(compile(block, file, "exec"), {})
    assert "Hello, I am a language model." in capsys.readouterr().out


def test_the_lines_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    model = QuantizedModel.from_pretrained("memgpt-tiny", bits=4)
    model = use_flash_attention_if_available(model)
    assert model.recipe.attention.backend == "flash"
    model = use_paged_kv_cache_if_available(model)
    assert model.recipe.kv_cache.kind == "paged"
    assert "flash alone does not take" in capsys.readouterr().err
    text = model.generate(PROMPT, new_tokens=16)
    assert text.startswith(PROMPT)
    assert len(text) > len(PROMPT) + 20
    assert model.recipe.quantization.scheme == "nf4"
    # Flash and pages change where things are computed and lie, so the text is the quantized model's own.
    assert text == QuantizedModel.from_pretrained("memgpt-tiny", bits=4).generate(PROMPT, new_tokens=16)


@pytest.mark.parametrize(
    ("options", "most"),
    [({"bits": 8}, 0.50), ({"bits": 4}, 0.40), ({"scheme": "int4", "overrides": {"embeddings": {}}}, 0.20)],
)
def test_fewer_bits_are_fewer_bytes(options: dict[str, Any], most: float, plain: Any) -> None:
    """Its embeddings are a quarter of memgpt-tiny's weights, and stay in full unless they are named."""
    full = sum(parameter.nbytes for parameter in plain.model.parameters())
    assert weight_bytes(QuantizedModel.from_pretrained("memgpt-tiny", **options)) < most * full


def test_flash_and_pages_change_no_token(plain: Any) -> None:
    expected = plain.generate(PROMPT, new_tokens=12)
    assert use_flash_attention_if_available(plain).generate(PROMPT, new_tokens=12) == expected
    assert use_paged_kv_cache_if_available(plain).generate(PROMPT, new_tokens=12) == expected
    assert plain.recipe.attention.backend == "sdpa"
    assert plain.generate(PROMPT, new_tokens=12) == expected


def test_models_that_share_weights_keep_their_own_attention(plain: Any) -> None:
    eager = plain.with_options(attention={"backend": "eager"})
    assert plain.model is eager.model
    for model, name in ((plain, "sdpa"), (eager, "eager"), (plain, "sdpa")):
        model.generate(PROMPT, new_tokens=1)
        assert model.model.config._attn_implementation == name


def test_what_is_not_to_be_had_leaves_the_model_as_it_is(
    plain: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    window = memgpt.load(
        {"model.name": "mistral-7b", "model.config": SMALL_MISTRAL, "model.weights": "random"}
    )
    assert use_paged_kv_cache_if_available(window) is window
    assert "memgpt: no paged KV cache: " in capsys.readouterr().err
    lsh = plain.with_options(attention={"backend": "lsh"})
    assert use_paged_kv_cache_if_available(lsh) is lsh
    assert "'lsh' cannot read a paged cache" in capsys.readouterr().err


SMALL_MISTRAL = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "vocab_size": 64,
}


def test_text_of_random_weights_needs_a_tokenizer_all_the_same() -> None:
    model = memgpt.load({"model.name": "gpt2", "model.config": {"n_layer": 1, "n_embd": 16, "n_head": 2}})
    with pytest.raises(EnvironmentUnavailableError, match="gpt2 has no tokenizer here"):
        model.generate(PROMPT)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.generate(PROMPT, temprature=1), UsageError, "no option 'temprature'"),
        (
            lambda m: m.generate(PROMPT, temperature=-1),
            UsageError,
            "sampling.temperature: must be at least 0",
        ),
        (lambda m: m.generate(PROMPT, top_k=3), RecipeError, "changes nothing at temperature 0"),
        (lambda m: m.generate(PROMPT, new_tokens=0), UsageError, "must be greater than 0"),
        (lambda m: m.generate(["a", "b"]), UsageError, r"not list: for several, take complete\(read"),
        (lambda m: m.read("a"), UsageError, "takes a list of texts"),
        (lambda m: m.read([3]), UsageError, "takes a list of texts"),
        (lambda m: m.generate(3), UsageError, "one text, not int"),
        (
            lambda m: m.with_options(attention={"backend": "egar"}),
            RecipeError,
            "^attention.backend: 'egar' is not one of .*, did you mean 'eager'",
        ),
        (
            lambda _: memgpt.load({"model": {"nam": "x"}}),
            RecipeError,
            "^model.nam: unknown key, did you mean model.name",
        ),
        (lambda m: m.generate(""), UsageError, "is empty"),
        (lambda m: m.generate("word " * 1100), UsageError, "positions that memgpt-tiny has learned"),
        (lambda m: m.with_options(quantization={"scheme": "int8"}), UsageError, "is built already"),
        (lambda m: m.with_options(attention={"kv_heads": 1}), UsageError, "load the model again"),
        (lambda m: m.with_options(kv_cache={"kind": "pagd"}), UsageError, "kv_cache"),
        (lambda _: QuantizedModel.from_pretrained("memgpt-tiny", bits=3), UsageError, "bits is 3"),
        (lambda _: QuantizedModel.from_pretrained("memgpt-tinny"), UsageError, "memgpt-tiny"),
        (lambda _: QuantizedModel.from_pretrained("memgpt-tiny", shceme="int4"), RecipeError, "scheme"),
    ],
)
def test_mistakes_raise_the_librarys_own_errors(
    call: Any, error: type[Exception], message: str, plain: Any
) -> None:
    with pytest.raises(error, match=message):
        call(plain)


def test_sampling_is_the_recipes_or_the_calls(plain: Any) -> None:
    warm = memgpt.load({"model.name": "memgpt-tiny", "sampling.temperature": 0.9, "workload.seed": 5})
    texts = {
        warm.generate(PROMPT, new_tokens=12),
        plain.generate(PROMPT, new_tokens=12, temperature=0.9, seed=5),
    }
    assert len(texts) == 1
    assert texts != {plain.generate(PROMPT, new_tokens=12)}
