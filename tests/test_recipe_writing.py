"""What `recipes show` prints loads to the same recipe; the JSON Schema agrees with the loader."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mem_gpt_cli.errors import RecipeError
from mem_gpt_cli.recipe import Recipe, json_schema, load_recipe, resolved, shipped, to_yaml
from mem_gpt_cli.recipe.document import parse
from mem_gpt_cli.recipe.problems import leaves, section_at, without_none
from mem_gpt_cli.recipe.schema import Section

TEXTS = st.text(st.characters(blacklist_categories=["Cs"]), max_size=30) | st.sampled_from(
    [
        "no",
        "1e-4",
        "12:30",
        "0o7",
        "~",
        "null",
        "<<",
        "=",
        "# x",
        " a ",
        "a: b",
        "-",
        "é\n ü",
        "\x85",
        "﻿",
        "\t",
    ]
)
NAMES = TEXTS.filter(bool)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | FLOATS | TEXTS
NESTED = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
CONFIGS = st.dictionaries(TEXTS, NESTED, max_size=4)
NUMBERS = st.integers(1, 10**9)
OVERRIDES = st.dictionaries(
    TEXTS,
    st.fixed_dictionaries(
        {},
        optional={
            "scheme": st.sampled_from(["none", "int8", "nf4"]),
            "group_size": NUMBERS,
            "double_quant": st.booleans(),
        },
    ),
    max_size=3,
)
REQUESTS = st.one_of(
    st.lists(NUMBERS, min_size=1, max_size=5),
    st.fixed_dictionaries({"lengths": st.lists(NUMBERS, min_size=1, max_size=5)}),
    st.fixed_dictionaries(
        {"count": st.integers(1, 9), "shortest": st.integers(1, 50), "longest": st.integers(50, 10**9)}
    ),
)


def values_of(path: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """Values that the key at ``path`` takes."""
    section = section_at(path[:-1])
    assert section is not None
    annotation = without_none(section.model_fields[path[-1]].annotation)
    special: dict[tuple[str, ...], st.SearchStrategy[Any]] = {
        ("model", "name"): NAMES,
        ("model", "dropout"): st.none() | st.floats(0, 0.99),
        ("model", "config"): CONFIGS,
        ("device", "name"): st.sampled_from(["cpu", "cuda", "cuda:3", "h100"]),
        ("device", "allocator"): st.none() | TEXTS,
        ("budget", "memory"): st.none() | NUMBERS | st.sampled_from(["24GiB", "80 GB", "1.5tib"]),
        ("optimizer", "lr"): st.floats(1e-300, 1e300),
        ("optimizer", "weight_decay"): st.floats(0, 1e300),
        ("optimizer", "momentum"): st.floats(0, 0.99),
        ("checkpointing", "keep"): st.lists(st.sampled_from(["attention", "products"]), min_size=1),
        ("adapters", "alpha"): st.floats(1e-300, 1e300),
        ("adapters", "dropout"): st.floats(0, 0.99),
        ("adapters", "targets"): st.lists(NAMES, min_size=1, max_size=3),
        ("adapters", "load"): st.lists(NAMES, max_size=3),
        ("finetune", "data"): NAMES,
        ("finetune", "held_out"): NAMES,
        ("finetune", "held_out_percent"): st.floats(0.01, 99),
        ("workload", "seed"): st.integers(0, 2**63 - 1),
        ("quantization", "overrides"): OVERRIDES,
        ("quality", "text"): NAMES,
        ("quality", "tokens"): st.integers(2, 10**9),
        ("sampling", "temperature"): st.floats(0, 1e300),
        ("sampling", "top_p"): st.none() | st.floats(1e-300, 1),
        ("sampling", "repetition_penalty"): st.floats(1e-300, 1e300),
        ("description",): TEXTS,
    }
    if path in special:
        return special[path]
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    return st.booleans() if annotation is bool else NUMBERS


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """The data of a valid recipe, each key given or left out."""
    data: dict[str, Any] = {}
    for path in leaves():
        given = path[0] != "sweep" and path[-1] not in ("seq", "prompt_tokens", "new_tokens")
        if "requests" in path or not given or draw(st.booleans()):
            continue
        section = data
        for step in path[:-1]:
            section = section.setdefault(step, {})
        section[path[-1]] = draw(values_of(path))
    if data.get("task") != "training" and draw(st.booleans()):
        data.setdefault("workload", {}).pop("batch", None)  # the requests say it
        data["workload"]["requests"] = draw(REQUESTS)
    if (
        data.get("adapters", {}).get("kind") == "qlora"
        and data.get("quantization", {}).get("scheme") == "none"
    ):
        del data["quantization"]["scheme"]  # the one pair that no recipe may hold
    if draw(st.booleans()):
        axes = st.dictionaries(
            st.sampled_from(["workload.batch", "model.name"]), st.lists(SCALARS, max_size=3)
        )
        data["sweep"] = {"axes": draw(axes), "exclude": draw(st.lists(CONFIGS, max_size=2))}
    return data


@settings(deadline=None)
@given(recipes())
def test_what_show_prints_loads_to_an_equal_recipe(data: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(data)
    text = to_yaml(recipe)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shown.yaml"
        path.write_text(text, encoding="utf-8", newline="")
        again = load_recipe(path)
    assert again == recipe
    assert resolved(again) == resolved(recipe)
    assert to_yaml(again) == text


@settings(deadline=None)
@given(recipes())
def test_both_versions_of_yaml_read_it_alike(data: dict[str, Any]) -> None:
    text = to_yaml(Recipe.model_validate(data))
    node, errors = parse(text, "text")
    assert errors == []
    assert node.plain() == yaml.safe_load(text)


@settings(deadline=None)
@given(recipes())
def test_the_json_schema_takes_what_the_loader_takes(data: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.validate(data)
    validator.validate(resolved(Recipe.model_validate(data)))


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_the_json_schema_takes_every_shipped_recipe(path: Path) -> None:
    node, _ = parse(path.read_text(encoding="utf-8"), str(path))
    jsonschema.Draft202012Validator(json_schema()).validate(node.plain())


@pytest.mark.parametrize(
    "data",
    [
        {"workload": {"bacth": 1}},
        {"workload": {"batch": 0}},
        {"workload": {"batch": "4"}},
        {"workload": {"hold_outputs": "yes"}},
        {"kv_cache": {"kind": "no"}},
        {"budget": {"memory": "24G"}},
        {"model": {"name": ""}},
        {"model": "gpt2"},
        {"seq": 4},
        {"extends": ["a.yaml"]},
        {"sweep": {"axes": {"workload.seq": 4}}},
    ],
)
def test_the_json_schema_refuses_what_the_loader_refuses(data: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(json_schema()).validate(data)
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    with pytest.raises(RecipeError):
        load_recipe(path)


def test_the_json_schema_is_sound_and_describes_every_key() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    sections = [schema, *schema["$defs"].values()]
    assert set(schema["$defs"]) == {section.__name__ for section in Section.__subclasses__()} - {"Recipe"}
    for section in sections:
        assert section["additionalProperties"] is False
        for name, field in section["properties"].items():
            shared = schema["$defs"][field["$ref"].rpartition("/")[2]] if "$ref" in field else {}
            assert len(field.get("description", shared.get("description", ""))) > 10, name
    assert {"extends", "device", "sweep"} <= set(schema["properties"])
