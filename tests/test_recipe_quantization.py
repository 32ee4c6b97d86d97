"""What a recipe's quantization comes down to, and what of it is refused."""

from __future__ import annotations

import pytest

from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.quantization.plan import plan_of
from mem_gpt_cli.recipe import load_recipe, refuse_unavailable
from mem_gpt_cli.recipe.methods import Method, method


def section(text: str) -> Method | None:
    return method(load_recipe(overrides=[f"quantization={text}"]).quantization)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", None),
        ("{scheme: nf4}", Method("nf4", "bitsandbytes", "symmetric", 64, True)),
        ("{scheme: fp4, double_quant: false}", Method("fp4", "bitsandbytes", "symmetric", 64, False)),
        ("{scheme: int8}", Method("int8", "bitsandbytes", "symmetric", None, False)),
        ("{scheme: int8, group_size: 32}", Method("int8", "native", "symmetric", 32, False)),
        ("{scheme: int8, mapping: asymmetric}", Method("int8", "native", "asymmetric", None, False)),
        ("{scheme: int4}", Method("int4", "native", "symmetric", 64, False)),
        ("{scheme: int4, backend: torchao}", Method("int4", "torchao", "asymmetric", 128, False)),
    ],
)
def test_what_is_left_out_is_the_backends_choice(text: str, expected: Method | None) -> None:
    assert section(text) == expected


def test_the_last_pattern_that_matches_counts_and_the_rest_is_as_in_the_section() -> None:
    text = (
        "{scheme: nf4, group_size: 128, double_quant: false, overrides: {'*.mlp.*': {scheme: int4}, "
        "'*.0.mlp.*': {scheme: none}, '*.attn.*': {double_quant: true}, embeddings: {scheme: int8}}}"
    )
    plan = plan_of(load_recipe(overrides=[f"quantization={text}"]))
    assert plan.method("h.1.attn.c_attn", "linear") == Method("nf4", "bitsandbytes", "symmetric", 128, True)
    assert plan.method("h.1.mlp.c_fc", "linear") == Method("int4", "native", "symmetric", 128, False)
    assert plan.method("h.0.mlp.c_fc", "linear") is None
    assert plan.method("lm_head", "head") is None
    table = plan.shared(("wte", "embedding"), ("lm_head", "head"))
    assert table == Method("int8", "native", "symmetric", 128, False)


@pytest.mark.parametrize(
    ("text", "at", "said"),
    [
        (
            "{scheme: fp4, backend: torchao}",
            "1:37",
            "torchao has no fp4 (it has int8, int4): choose bitsandb",
        ),
        ("{scheme: nf4, mapping: asymmetric}", "1:37", "has no zero point: leave it out, or choose int8 or"),
        ("{scheme: int8, backend: bitsandbytes, group_size: 64}", "1:64", "one scale a row: leave it out"),
        (
            "{scheme: nf4, group_size: 48}",
            "1:40",
            "has groups of 32, 64, 128, 256, 512, 1024, 2048, 4096, not",
        ),
        ("{scheme: int4, double_quant: true}", "1:43", "belongs to nf4 and fp4"),
        (
            "{scheme: int4, backend: torchao, mapping: symmetric}",
            "1:56",
            "stores a zero point: choose backend",
        ),
        ("{mapping: symmetric}", "1:24", "changes nothing, because nothing is quantized"),
        ("{overrides: {head: {}}}", "1:33", "changes nothing, because quantization.scheme is none"),
        ("{scheme: nf4, overrides: {embeddings: {}}}", "1:52", "stored in int8 and int4 by native alone"),
        ("{scheme: int4, overrides: {head: {scheme: none, group_size: 3}}}", "1:74", "keeps these weights"),
        (
            "{scheme: int4, overrides: {head: {shceme: int8}}}",
            "1:48",
            "did you mean quantization.overrides.head",
        ),
        (
            "{scheme: int4, overrides: {head: {scheme: int9}}}",
            "1:56",
            "is not one of none, int8, int4, nf4, fp4",
        ),
        (
            "{scheme: int4, overrides: {head: int8}}",
            "1:47",
            "(its keys: scheme, backend, mapping, group_size",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_place_and_a_mend(text: str, at: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        refuse_unavailable(load_recipe(overrides=[f"quantization={text}"]), "estimate")
    assert f":{at}:" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "pair", ["quantization.overrides.*.mlp.*.scheme=int4", "quantization.overrides.*.mlp.*={scheme: int4}"]
)
def test_a_dotted_pattern_can_be_set(pair: str) -> None:
    overrides = load_recipe(overrides=[pair]).quantization.overrides
    assert {pattern: override.scheme for pattern, override in overrides.items()} == {"*.mlp.*": "int4"}


def test_quantized_weights_are_not_trained() -> None:
    recipe = load_recipe(overrides=["task=training", "quantization.overrides={head: {scheme: int8}}"])
    with pytest.raises(RecipeError, match=r"overrides.head.scheme: quantized weights cannot be trained"):
        refuse_unavailable(recipe, "trace")
