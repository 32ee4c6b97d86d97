"""Reading a recipe: the rules of YAML, extending, overrides, flags, names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mem_gpt_cli.errors import Position, RecipeError, RecipeErrors
from mem_gpt_cli.recipe import Recipe, expand, load_recipe, resolved
from mem_gpt_cli.recipe.document import parse


def write(folder: Path, **files: str) -> Path:
    """Write ``name.yaml`` for each; return the first."""
    paths = [folder / f"{name}.yaml" for name in files]
    for path, text in zip(paths, files.values(), strict=True):
        path.write_text(text, encoding="utf-8")
    return paths[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E+3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-0.25", -0.25),
        ("010", 10),
        ("0o17", 15),
        ("0xff", 255),
        ("+7", 7),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("Null", None),
        ("no", "no"),
        ("off", "off"),
        ("yes", "yes"),
        ("ON", "ON"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("2024-01-02", "2024-01-02"),
        ("'1e-4'", "1e-4"),
        ("=", "="),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("!!str 12", "12"),
        ("!!float 3", 3.0),
    ],
)
def test_plain_values_follow_the_core_schema_of_yaml_1_2(text: str, value: Any) -> None:
    node, errors = parse(f"key: {text}\n", "text")
    assert errors == []
    found = node.plain()["key"]
    assert found == value
    assert type(found) is type(value)


def test_every_key_and_value_knows_its_place() -> None:
    node, _ = parse("a:\n  b: [1,\n      22]\n", "f")
    inner = node.at(("a", "b"))
    assert inner is not None
    assert inner.key_position == Position("f", 2, 3)
    assert inner.position == Position("f", 2, 6)
    second = node.at(("a", "b", 1))
    assert second is not None
    assert second.position == Position("f", 3, 7)
    assert node.at(("a", "c")) is None
    assert node.at(("a", "b", 2)) is None


def test_merge_keys_bring_what_is_not_given_and_the_first_of_several_wins() -> None:
    text = "x: &x {a: 1, b: 1}\ny: &y {a: 2, c: 2}\nz: {b: 3, <<: [*x, *y]}\n"
    node, errors = parse(text, "f")
    assert errors == []
    assert node.plain()["z"] == {"a": 1, "b": 3, "c": 2}
    merged = node.at(("z", "c"))
    assert merged is not None
    assert merged.position == Position("f", 2, 17)


def test_no_file_is_the_defaults() -> None:
    assert load_recipe() == Recipe()
    assert load_recipe().lengths.seq == 512


def test_a_byte_order_mark_and_dos_line_ends_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "dos.yaml"
    path.write_bytes("﻿task: training\r\nworkload:\r\n  seq: 9\r\n".encode())
    recipe = load_recipe(path)
    assert (recipe.task, recipe.workload.seq) == ("training", 9)


def test_the_short_form_of_device() -> None:
    assert load_recipe(None, overrides=["device=cuda:1"]).device.name == "cuda:1"
    assert Recipe.model_validate({"device": "cuda"}).device.type == "cuda"


def test_a_file_laid_over_another_keeps_what_it_does_not_give(tmp_path: Path) -> None:
    top = write(
        tmp_path,
        top="extends: middle.yaml\nworkload: {batch: 4}\nmodel: {config: {n_head: 2}}\ndevice: cuda\n",
        middle="extends: base.yaml\nworkload: {seq: 64}\n",
        base="task: training\nworkload: {batch: 2, seq: 32, steps: 3}\n"
        "model: {config: {n_layer: 4, n_head: 8}}\ndevice: {threads: 2}\n",
    )
    recipe = load_recipe(top)
    assert recipe.task == "training"
    assert (recipe.workload.batch, recipe.workload.seq, recipe.workload.steps) == (4, 64, 3)
    assert recipe.model.config == {"n_layer": 4, "n_head": 2}
    assert (recipe.device.name, recipe.device.threads) == ("cuda", 2)


def test_errors_point_into_the_file_that_the_value_came_from(tmp_path: Path) -> None:
    top = write(tmp_path, top="extends: base.yaml\ntask: trianing\n", base="\nworkload: {batch: 0}\n")
    with pytest.raises(RecipeErrors) as caught:
        load_recipe(top)
    assert {error.position for error in caught.value.errors} == {
        Position(str(tmp_path / "base.yaml"), 2, 19),
        Position(str(tmp_path / "top.yaml"), 2, 7),
    }


def test_a_value_that_is_replaced_needs_not_be_right(tmp_path: Path) -> None:
    top = write(tmp_path, top="extends: base.yaml\nworkload: {batch: 1}\n", base="workload: {batch: 0}\n")
    assert load_recipe(top).workload.batch == 1


def test_a_recipe_extends_a_shipped_one_by_name_and_from_another_folder(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    write(tmp_path, mine="extends: tiny-train\nworkload: {steps: 5}\n")
    top = write(tmp_path / "inner", top="extends: ../mine.yaml\n")
    assert resolved(load_recipe(top)) == resolved(load_recipe("tiny-train", overrides=["workload.steps=5"]))


def test_a_loop_of_extensions_is_named(tmp_path: Path) -> None:
    first = write(tmp_path, a="extends: b.yaml\n", b="extends: c.yaml\n", c="extends: b.yaml\n")
    with pytest.raises(RecipeError, match=r"c\.yaml:1:10: extends: .*loop: b\.yaml -> c\.yaml -> b\.yaml$"):
        load_recipe(first)


def test_a_base_drops_its_sweep_for_null(tmp_path: Path) -> None:
    assert load_recipe("all", overrides=["sweep=null"]).sweep is None
    assert load_recipe(write(tmp_path, top="extends: all\nsweep:\n")).sweep is None


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("workload.batch=4", ("workload", "batch"), 4),
        ("optimizer.lr=1e-4", ("optimizer", "lr"), 1e-4),
        ("budget.memory=24GiB", ("budget", "memory"), 24 * 2**30),
        ("budget.memory=80 GB", ("budget", "memory"), 80 * 10**9),
        ("model.config.n_layer=4", ("model", "config", "n_layer"), 4),
        ("model.config={a: [1, {b: no}]}", ("model", "config", "a"), [1, {"b": "no"}]),
        ("model.config.rope.theta=5e5", ("model", "config", "rope"), {"theta": 5e5}),
        ("model.name='12'", ("model", "name"), "12"),
        ("description=a=b", ("description",), "a=b"),
        ("sweep.axes.workload.batch=[1, 2]", ("sweep", "axes", "workload.batch"), [1, 2]),
        (" workload.seq =7", ("workload", "seq"), 7),
    ],
)  # fmt: skip
def test_an_override_is_a_yaml_value_at_a_dotted_key(
    override: str, path: tuple[str, ...], value: Any
) -> None:
    found: Any = resolved(load_recipe(None, overrides=[override]))
    for step in path:
        found = found[step]
    assert found == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("workload.bacth=4", ":1:1: workload.bacth: unknown key, did you mean workload.batch?"),
        ("batch=4", ":1:1: batch: unknown key, did you mean workload.batch?"),
        ("optimizer.fused=true", ":1:1: optimizer.fused: unknown key; known here: name, implementation"),
        ("workload.batch=four", ":1:16: workload.batch: must be a whole number, not 'four'"),
        ("workload.batch=", ":1:16: workload.batch: must be a whole number, not null"),
        ("attention.backend=eagre", ":1:19: attention.backend: 'eagre' is not one of"),
        ("workload.batch", ":1:1: an override is KEY=VALUE with a dotted key, e.g. workload.batch=4"),
        ("=4", ":1:1: an override is KEY=VALUE"),
        ("workload..batch=4", ":1:1: an override is KEY=VALUE"),
        ("extends=all", ":1:1: extends: only a recipe file can extend another"),
        ("model.config={a: 1, a: 2}", ":1:21: model.config: a: stands twice, first in line 1: delete one"),
        ("model.config=[1", ":not YAML"),
        ("task.kind=training", ": task: a mapping is not one of inference, training"),
    ],
)
def test_a_wrong_override_is_its_own_source(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(None, overrides=[override])
    text = str(caught.value)
    assert text.startswith(f"--set {override}:1:")
    assert message.lstrip(":") in text


def test_overrides_beat_flags_and_flags_beat_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, top="workload: {batch: 1, steps: 1, seed: 1}\n")
    recipe = load_recipe(
        path,
        overrides=["workload.batch=3", "workload.batch=4"],
        flags={"workload.batch": 2, "workload.seed": 2, "workload.steps": None, "device": "cuda"},
    )
    assert (recipe.workload.batch, recipe.workload.seed, recipe.workload.steps) == (4, 2, 1)
    assert recipe.device.name == "cuda"


def test_a_wrong_flag_is_named_as_it_was_written() -> None:
    flags = {"workload.new_tokens": 0, "kv_cache.kind": "dynamc", "budget.memory": "9X"}
    with pytest.raises(RecipeErrors) as caught:
        load_recipe(None, flags=flags)
    assert [str(error) for error in caught.value.errors] == [
        "--new-tokens 0: workload.new_tokens: must be greater than 0, not 0",
        "--kv-cache dynamc: kv_cache.kind: 'dynamc' is not one of none, dynamic, static, quantized, "
        "offloaded, sliding, paged, did you mean 'dynamic'?",
        "--budget 9X: budget.memory: '9X' is not a size: write bytes, or a number with GiB, MiB, GB or "
        "MB, e.g. 24GiB",
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tiny-genrate", "is neither a file nor a shipped recipe, did you mean 'tiny-generate'?"),
        ("elsewhere/tiny-train.yml", "is neither a file nor a shipped recipe, did you mean 'tiny-train'?"),
        ("qqqqqq", "is neither a file nor a shipped recipe; `memgpt recipes list` shows the shipped"),
        ("~nobody-here/x.yaml", "is neither a file nor a shipped recipe"),
        ("x" * 5000, "is neither a file nor a shipped recipe"),
        ("a\0b", "is neither a file nor a shipped recipe"),
        ("", " is a folder, not a recipe: name a YAML file in it"),
        (".", " is a folder, not a recipe: name a YAML file in it"),
    ],
)  # fmt: skip
def test_a_recipe_that_is_not_there(source: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = write(tmp_path, secret="task: training\n")
    path.chmod(0)
    with pytest.raises(RecipeError, match=r"secret\.yaml:1:1: cannot be read: permission denied$"):
        load_recipe(path)


def test_a_file_that_is_no_regular_one_is_read() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"workload: {batch: 6}\n")
    os.close(writing)
    try:
        assert load_recipe(f"/dev/fd/{reading}").workload.batch == 6
    finally:
        os.close(reading)
    with pytest.raises(RecipeError, match="is larger than 1 MiB"):
        load_recipe("/dev/zero")


def test_lengths_fill_in_what_is_open() -> None:
    def lengths(*overrides: str) -> tuple[int, int, int]:
        found = load_recipe(None, overrides=[f"workload.{each}" for each in overrides]).lengths
        return found.seq, found.prompt, found.new

    assert lengths() == (512, 480, 32)
    assert lengths("seq=100") == (100, 68, 32)
    assert lengths("seq=10") == (10, 5, 5)
    assert lengths("seq=100", "new_tokens=1") == (100, 99, 1)
    assert lengths("seq=100", "prompt_tokens=60") == (100, 60, 40)
    assert lengths("prompt_tokens=60") == (92, 60, 32)
    assert lengths("prompt_tokens=60", "new_tokens=4", "seq=64") == (64, 60, 4)
    training = load_recipe(None, overrides=["task=training", "workload.seq=77"]).lengths
    assert (training.seq, training.prompt, training.new) == (77, 77, 0)


PIECES = st.sampled_from(
    ["a", "b: ", "- ", "\n", "  ", "{", "}", "[", "]", ",", ":", "&x ", "*x", "<<: ", "!!int ", "'", '"',
     "|\n", "? ", "#", "---\n", "%", "\t", "1e9", "workload:\n  ", "batch: ", "sweep: ", "axes: ",
     "extends: ",
     "device: "]
)  # fmt: skip


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=60) | st.lists(PIECES, max_size=30).map(lambda parts: "".join(parts).encode())
)
def test_whatever_a_file_holds_it_is_a_recipe_or_a_recipe_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(content)
    failure: RecipeError | None = None
    try:
        cells = expand(load_recipe(path))
    except RecipeError as error:
        failure, cells = error, ()
    assert cells or (failure and failure.position and str(failure).startswith(str(tmp_path)))
