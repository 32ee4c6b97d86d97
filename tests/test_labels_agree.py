"""Formula and trace call what a quantized model has in memory the same, component by component."""

from __future__ import annotations

import pytest
from rich.console import Console

from mem_gpt_cli.bench.columns import COLUMNS
from mem_gpt_cli.bench.table import sweep_table
from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.estimate import estimate
from mem_gpt_cli.recipe import expand, load_recipe
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.model import MemoryReport, Speed
from mem_gpt_cli.report.table import _percent, _precision, _speed

MIXED = (
    '{scheme: int8, overrides: {"*.mlp.*": {scheme: int4}, "transformer.h.0.*": {scheme: none}, '
    "embeddings: {scheme: int8, backend: native}}}"
)
SECTIONS = [
    MIXED,
    "{scheme: nf4, double_quant: true}",
    "{scheme: int8, backend: bitsandbytes}",
    "{scheme: int8, backend: torchao}",
    "{scheme: int8, backend: torchao, mapping: asymmetric}",
    "{scheme: int4, backend: torchao}",
    "{scheme: int4, backend: native, overrides: {head: {scheme: int8}}}",
    "{scheme: int8, backend: native, mapping: asymmetric}",
]


def recipe_of(section: str, *more: str) -> Recipe:
    sizes = ["model.name=memgpt-tiny", "workload.prompt_tokens=16", "workload.new_tokens=4"]
    return load_recipe(overrides=[*sizes, f"quantization={section}", *more])


@pytest.mark.parametrize("section", SECTIONS)
def test_components_agree_in_every_phase(section: str) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("torchao")
    from mem_gpt_cli.trace import trace

    recipe = recipe_of(section)
    told, traced = estimate(recipe), trace(recipe)
    assert {p.name: held(p.components) for p in told.phases} == {
        p.name: held(p.components) for p in traced.phases
    }
    kept = [warning for warning in told.warnings if warning.startswith("quantization leaves")]
    assert kept
    assert [warning for warning in traced.warnings if warning.startswith("quantization leaves")] == kept


def held(components: object) -> dict[str, int]:
    return {name: nbytes for name, nbytes in dict(components).items() if nbytes}  # type: ignore[call-overload]


def test_what_is_left_in_full_is_named_by_its_layer() -> None:
    report = estimate(recipe_of('{scheme: int8, overrides: {"transformer.h.0.*": {scheme: none}}}'))
    left = [warning for warning in report.warnings if "quantization leaves" in warning]
    assert "transformer.h.0.*" in left[0]
    assert "c_fc" not in left[0]
    assert "transformer.h.0.*" in report.details["kept_in_full_precision"]


def test_a_model_of_several_widths_is_called_mixed() -> None:
    report = estimate(recipe_of("{overrides: {embeddings: {scheme: int8, backend: native}}}"))
    assert _precision(report) == "mixed"
    assert _precision(estimate(recipe_of("{scheme: nf4}"))) == "nf4"
    weights = estimate(recipe_of('{scheme: none, overrides: {"*.mlp.c_fc": {scheme: int8}}}'))
    assert weights.cause is not None
    assert "in fp32 hold" not in weights.cause.partition("weights")[2]


def test_figures_are_plain() -> None:
    report: MemoryReport = estimate(recipe_of("{scheme: nf4}"))
    object.__setattr__(report, "speed", Speed(ttft_ms=24_050.0, decode_ms_per_token=9_000.0))
    assert _speed(report) == "24.05 s to the first token, 9000 ms for each further one"
    assert _percent(12_345.0) == ">999%"
    assert _percent(50.0) == "+50%"


def test_a_misspelt_key_of_a_claim_is_answered_with_its_own_place() -> None:
    with pytest.raises(RecipeError, match=r"did you mean sweep\.claims\[0\]\.memory_saved_percent"):
        load_recipe(
            overrides=[
                "sweep={axes: {workload.batch: [1]}, claims: [{name: a, of: {}, memory_saved_percnt: 3}]}"
            ]
        )


def test_a_sweep_shows_perplexity_within_80_columns() -> None:
    cells = expand(load_recipe(overrides=["sweep={axes: {workload.batch: [1]}}"]))
    row = dict.fromkeys(COLUMNS) | {"cell": 0, "key": "k", "status": "ok"}
    figures = {"formula": 1, "trace": 1, "measured": 1}
    row |= {f"{name}_peak_bytes": 1234567 for name in figures}
    row |= {"trace_residual_bytes": 0, "tokens_per_s": 9.0, "memory_ratio": 1.0, "speed_ratio": 1.0}

    def shown(**more: float) -> str:
        console = Console(width=80)
        with console.capture() as capture:
            console.print(sweep_table(cells, [row | more]))
        return capture.get()

    assert "perplex" not in shown()
    text = shown(perplexity=23.4567)
    assert "23.457" in text
    assert max(map(len, text.splitlines())) <= 80
