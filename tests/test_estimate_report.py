"""What an estimate says beside its bytes: cause, warnings, columns of precision, curves."""

from __future__ import annotations

import builtins
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mem_gpt_cli.errors import MissingExtraError, UsageError
from mem_gpt_cli.estimate import curve, estimate, precision_table
from mem_gpt_cli.estimate.books import SLOTS, Moment
from mem_gpt_cli.estimate.cause import cause_of
from mem_gpt_cli.estimate.curve import part_heights
from mem_gpt_cli.estimate.plot import draw, finer, growth_label, largest_parts, spread_out
from mem_gpt_cli.model import resolve
from mem_gpt_cli.recipe import Recipe, load_recipe
from mem_gpt_cli.report.growth import exponent
from mem_gpt_cli.report.model import COMPONENTS, Phase, components


def recipe_of(text: str) -> Recipe:
    return load_recipe(overrides=text.split())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            "task=training model.config.n_layer=1 workload.seq=1024",
            "in the backward pass: 50,257-wide logits in fp32",
        ),
        ("", "in the prefill: the weights in fp32 hold 88% and cached keys and values"),
        ("workload.batch=64 model.dtype=bf16", "cached keys and values of 511 tokens hold"),
        (
            "task=training optimizer.implementation=foreach workload.seq=64",
            "the optimizer state (adamw) holds",
        ),
        (
            "task=training attention.backend=eager workload.seq=4096",
            "attention scores over 4,096 x 4,096 positions",
        ),
    ],
)
def test_the_cause_names_what_holds_most(options: str, sentence: str) -> None:
    cause = estimate(recipe_of(f"model.name=gpt2 {options}")).cause
    assert cause is not None
    assert cause.startswith("the peak is ")
    assert sentence in cause


@pytest.mark.parametrize("slot", range(len(SLOTS)))
def test_every_part_has_a_name_in_the_cause(slot: int) -> None:
    """Whatever dominates, there is a sentence for it."""
    recipe = recipe_of("model.name=gpt2 workload.autocast=bf16")
    live = tuple(1000 if index == slot else 1 for index in range(len(SLOTS)))
    moment = Moment(sum(live), live, "", "")
    phase = Phase("prefill", sum(live), components(weights=sum(live)))
    sentence = cause_of(phase, moment, resolve(recipe.model).architecture, recipe)
    assert sentence.startswith("the peak is in the prefill: ")
    assert "99%" in sentence


def test_every_phase_adds_up() -> None:
    for options in ("", "task=training", "task=training workload.autocast=bf16 checkpointing.policy=full"):
        report = estimate(recipe_of(f"model.name=gpt2 {options}"))
        for phase in report.phases:
            assert sum(phase.components.values()) == phase.peak_allocated_bytes
            assert set(phase.components) == set(COMPONENTS)
            parts = report.details["at_peak_by_part"][phase.name]
            assert sum(parts.values()) == phase.peak_allocated_bytes


def test_the_end_of_learned_positions_is_a_warning_and_not_an_error() -> None:
    report = estimate(recipe_of("model.name=gpt2-xl workload.seq=4096"))
    assert any("learned positions end at 1,024" in warning for warning in report.warnings)
    assert not estimate(recipe_of("model.name=gpt2-xl workload.seq=1024")).warnings


def test_a_window_that_cuts_the_cache_is_told() -> None:
    report = estimate(recipe_of("model.name=mistral-7b-v0.1 workload.seq=8192"))
    assert any("window of 4,096 tokens" in warning for warning in report.warnings)
    assert not estimate(recipe_of("model.name=mistral-7b-v0.1 workload.seq=1024")).warnings


def test_experts_are_told_to_depend_on_the_data() -> None:
    assert any("experts" in warning for warning in estimate(recipe_of("model.name=mixtral-8x7b")).warnings)


def test_a_model_without_sdpa_is_estimated_as_eager() -> None:
    fused, eager = (
        estimate(recipe_of(f"model.name=bloom-560m attention.backend={b}")) for b in ("sdpa", "eager")
    )
    assert fused.allocated_bytes == eager.allocated_bytes
    assert any("no sdpa attention" in warning for warning in fused.warnings)
    assert not any("no sdpa attention" in warning for warning in eager.warnings)


@pytest.mark.parametrize(("name", "told"), [("falcon-7b", True), ("llama-2-7b", False), ("gpt2", False)])
def test_a_family_that_is_not_followed_is_told(name: str, told: bool) -> None:
    warnings = estimate(recipe_of(f"model.name={name}")).warnings
    assert any("add --trace" in warning for warning in warnings) == told


def test_precisions_shrink_the_weights_and_say_what_stays() -> None:
    table = precision_table(recipe_of("model.name=llama-2-7b"))
    assert list(table) == ["fp32", "bf16", "int8", "nf4"]
    weights = [report.peak.components["weights"] for report in table.values()]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == pytest.approx(2 * weights[1], rel=1e-4)
    assert "lm_head.weight" in table["nf4"].details["kept_in_full_precision"]
    assert any("lm_head" in warning for warning in table["int8"].warnings)


def test_quantized_columns_are_left_out_of_training() -> None:
    assert list(precision_table(recipe_of("model.name=gpt2 task=training"))) == ["fp32", "bf16"]


def growth(options: str, phase: str, part: str) -> float:
    points = curve(recipe_of(f"model.name=gpt2 {options}"), "seq", points=(4096, 8192, 16384))
    heights = part_heights(points)[(phase, part)]
    found = exponent(list(points), heights)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("options", "phase", "part", "power"),
    [
        ("", "decode", "cached keys and values", 1),
        ("", "prefill", "attention", 1),
        ("attention.backend=eager", "prefill", "attention scores", 2),
        ("attention.backend=eager", "decode", "attention scores", 1),
        ("task=training attention.backend=eager", "forward", "attention scores", 2),
        ("task=training model.dropout=0", "forward", "attention", 1),
        ("task=training", "backward", "logits", 1),
        ("task=training", "optimizer_step", "optimizer state", 0),
    ],
)
def test_parts_grow_as_they_should(options: str, phase: str, part: str, power: int) -> None:
    assert growth(options, phase, part) == pytest.approx(power, abs=0.01)


def test_without_a_cache_a_generation_computes_instead_of_keeping() -> None:
    points = {
        kind: curve(recipe_of(f"model.name=gpt2 kv_cache.kind={kind}"), "seq", points=(2048, 4096))
        for kind in ("dynamic", "none")
    }
    for length in (2048, 4096):
        kept, computed = points["dynamic"][length], points["none"][length]
        assert computed.allocated_bytes < kept.allocated_bytes
        assert kept.details["decode_tokens"] == 31
        assert computed.details["decode_tokens"] == sum(range(length - 31, length))
        assert computed.details["decode_flops"] > 1000 * kept.details["decode_flops"]


def test_a_curve_doubles_up_to_the_recipes_own_size() -> None:
    assert list(curve(recipe_of("model.name=gpt2 workload.seq=20000"))) == [128 * 2**n for n in range(8)] + [
        20000
    ]
    assert list(curve(recipe_of("model.name=gpt2"), "batch")) == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize("points", [(0, 4), (1, 4)])
def test_a_curve_refuses_points_that_are_no_sizes(points: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="at least"):
        curve(recipe_of("model.name=gpt2"), "seq", points=points)


def test_the_formula_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from mem_gpt_cli.estimate import estimate; from mem_gpt_cli.recipe import load_recipe; "
        "estimate(load_recipe(overrides=['model.name=gpt2'])); "
        "print({'torch', 'numpy', 'pandas', 'matplotlib', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_curve_is_drawn(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = curve(recipe_of("model.name=gpt2 attention.backend=eager"), "seq", points=(256, 512, 1024))
    path = tmp_path / f"curve{suffix}"
    draw("seq", points, path)
    head = path.read_bytes()[:200]
    assert head.startswith(b"\x89PNG") if suffix == ".png" else b"<?xml" in head
    assert path.stat().st_size > 10_000


def test_a_drawing_says_which_parts_grow_how() -> None:
    points = curve(recipe_of("model.name=gpt2 attention.backend=eager"), "seq", points=(2048, 4096))
    parts = largest_parts(points)
    labels = [growth_label(phase, part, (2048, 4096), heights) for phase, part, heights in parts]
    assert "weights  constant" in labels
    assert "cached keys and values  n^1.00" in labels
    assert "attention scores, prefill  n^2.02" in labels
    assert "attention scores, one decode step  n^1.00" in labels


def test_a_drawing_needs_a_pictures_suffix(tmp_path: Path) -> None:
    points = curve(recipe_of("model.name=gpt2"), "seq", points=(256, 512))
    with pytest.raises(UsageError, match=r"\.png, \.svg"):
        draw("seq", points, tmp_path / "curve.txt")
    with pytest.raises(UsageError, match="cannot write"):
        draw("seq", points, tmp_path / "no" / "folder" / "curve.png")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *more: Any, **keywords: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *more, **keywords)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match=r"mem-gpt-cli\[plot\]"):
        draw("seq", curve(recipe_of("model.name=gpt2"), "seq", points=(256, 512)), tmp_path / "c.png")


def test_a_picture_has_the_points_of_the_table_and_those_between() -> None:
    assert finer([1, 2, 4, 8]) == [1, 2, 3, 4, 6, 8]


def test_names_beside_a_plot_never_overlap() -> None:
    moved = spread_out([0.5, 0.51, 0.52, 0.9], 0.06)
    assert all(after - before >= 0.0599 for before, after in pairwise(moved))
    assert moved[3] == 0.9
