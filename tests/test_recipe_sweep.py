"""From a recipe with a sweep to its cells: order, exclusions, baselines, keys that last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mem_gpt_cli.errors import RecipeErrors
from mem_gpt_cli.recipe import Cell, Recipe, expand, load_recipe, resolved


def cells_of(tmp_path: Path, text: str) -> tuple[Cell, ...]:
    path = tmp_path / "sweep.yaml"
    path.write_text(text, encoding="utf-8")
    return expand(load_recipe(path))


def test_without_a_sweep_there_is_one_cell() -> None:
    recipe = load_recipe("tiny-train")
    (cell,) = expand(recipe)
    assert (cell.index, cell.values, cell.baseline, cell.key) == (0, {}, None, "-")
    assert cell.recipe is recipe


def test_cells_are_crossed_with_the_product_of_the_axes_in_the_order_of_the_text(tmp_path: Path) -> None:
    cells = cells_of(
        tmp_path,
        "workload: {steps: 3}\n"
        "sweep:\n"
        "  axes: {workload.batch: [2, 1], workload.seq: [16, 8]}\n"
        "  cells: [{task: training}, {task: inference, kv_cache.kind: none}]\n",
    )
    assert [cell.index for cell in cells] == list(range(8))
    assert [cell.key for cell in cells][:5] == [
        "task=training batch=2 seq=16",
        "task=training batch=2 seq=8",
        "task=training batch=1 seq=16",
        "task=training batch=1 seq=8",
        "task=inference kv_cache=none batch=2 seq=16",
    ]
    assert cells[3].values == {"task": "training", "workload.batch": 1, "workload.seq": 8}
    assert all(cell.recipe.sweep is None for cell in cells)
    assert {cell.recipe.workload.steps for cell in cells} == {3}
    assert cells[7].recipe.kv_cache.kind == "none"
    assert (cells[7].recipe.workload.batch, cells[7].recipe.lengths.seq) == (1, 8)


def test_a_swept_section_is_laid_over_the_recipe(tmp_path: Path) -> None:
    cells = cells_of(
        tmp_path,
        "model: {dtype: bf16, config: {n_layer: 2}}\ndevice: {threads: 1}\n"
        "sweep:\n  axes:\n    model: [{name: gpt2}, {name: gpt2-xl, config: {n_head: 5}}]\n"
        "    device: [cpu, cuda]\n",
    )
    last = cells[-1].recipe
    assert (last.model.name, last.model.dtype) == ("gpt2-xl", "bf16")
    assert last.model.config == {"n_layer": 2, "n_head": 5}
    assert (last.device.name, last.device.threads) == ("cuda", 1)


def test_an_entry_excludes_the_cells_where_all_of_it_holds(tmp_path: Path) -> None:
    cells = cells_of(
        tmp_path,
        "workload: {seed: 5}\n"
        "sweep:\n"
        "  axes: {workload.batch: [1, 2], attention.backend: [sdpa, eager]}\n"
        "  cells: [{workload.seq: 8}, {workload.seq: 16, workload.seed: 6}]\n"
        "  exclude:\n"
        "    - {workload.batch: 2, attention.backend: eager, workload.seed: 5}\n"
        "    - {workload.seq: 16, workload.batch: 1}\n",
    )
    assert [cell.key for cell in cells] == [
        "seq=8 batch=1 attention=sdpa",
        "seq=8 batch=1 attention=eager",
        "seq=8 batch=2 attention=sdpa",
        "seq=16 seed=6 batch=2 attention=sdpa",
        "seq=16 seed=6 batch=2 attention=eager",
    ]


def test_each_group_is_compared_with_its_own_baseline(tmp_path: Path) -> None:
    cells = cells_of(
        tmp_path,
        "device: cpu\n"
        "sweep:\n"
        "  axes: {workload.seq: [8, 16]}\n"
        "  cells: [{attention.backend: eager}, {device: cpu}, {kv_cache.kind: none}]\n"
        "  baseline: {attention.backend: sdpa, kv_cache.kind: dynamic, device: cpu}\n",
    )
    assert [cell.baseline for cell in cells] == [2, 3, 2, 3, 2, 3]


def test_without_a_baseline_no_cell_is_compared(tmp_path: Path) -> None:
    assert {cell.baseline for cell in cells_of(tmp_path, "sweep: {axes: {workload.seq: [8, 16]}}\n")} == {
        None
    }


def test_several_wrong_values_are_reported_once_each_in_order(tmp_path: Path) -> None:
    text = (
        "sweep:\n  axes:\n    workload.seq: [0, 8]\n    attention.backend: [flsh, sdpa]\n    task: [train]\n"
    )
    with pytest.raises(RecipeErrors) as caught:
        cells_of(tmp_path, text)
    places = [str(error).partition("sweep.yaml:")[2] for error in caught.value.errors]
    assert [place[:23] for place in places] == [
        "3:20: workload.seq: mus",
        "4:25: attention.backend",
        "5:12: task: 'train' is ",
    ]


def test_a_digest_stands_for_what_is_run_not_for_its_text() -> None:
    def digest(*overrides: str) -> str:
        return expand(load_recipe(None, overrides=overrides))[0].digest

    assert digest() == digest("workload.batch=1", "description=other", "task=inference")
    assert digest() == digest("workload.seq=512") != digest("workload.seq=513")
    assert digest("budget.memory=1GiB") == digest("budget.memory=1024MiB")
    assert len(digest()) == 16


def test_digests_stay_the_same_from_run_to_run() -> None:
    data = json.loads(json.dumps(resolved(load_recipe("tiny-train"))))
    (again,) = expand(Recipe.model_validate(data))
    assert again.digest == expand(load_recipe("tiny-train"))[0].digest


def test_a_recipe_changed_in_python_expands_as_it_is_now() -> None:
    recipe = load_recipe(None, overrides=["sweep.axes.workload.seq=[8, 16]"])
    assert recipe.sweep is not None
    sweep = recipe.sweep.model_copy(update={"axes": {"workload.seq": [32, 64, 128]}})
    changed = recipe.model_copy(update={"sweep": sweep, "task": "training"})
    assert [(cell.recipe.lengths.seq, cell.recipe.task) for cell in expand(changed)] == [
        (32, "training"),
        (64, "training"),
        (128, "training"),
    ]


AXES = st.dictionaries(
    st.sampled_from(["workload.seq", "workload.batch", "workload.seed", "model.config.n_layer"]),
    st.lists(st.integers(2, 99), min_size=1, max_size=3, unique=True),
    min_size=1,
    max_size=3,
)


@settings(deadline=None)
@given(axes=AXES)
def test_a_sweep_has_as_many_different_cells_as_its_axes_say(axes: dict[str, list[int]]) -> None:
    recipe = Recipe.model_validate({"sweep": {"axes": axes}})
    cells = expand(recipe)
    product = 1
    for values in axes.values():
        product *= len(values)
    assert len(cells) == product
    assert len({cell.digest for cell in cells}) == len({cell.key for cell in cells}) == product
    for cell in cells:
        assert set(cell.values) == set(axes)
        assert all(cell.values[key] in axes[key] for key in axes)
