"""What a lens does not offer is refused by name and position, never ignored."""

from __future__ import annotations

from typing import get_args

import pytest

from mem_gpt_cli.errors import RecipeError, RecipeErrors
from mem_gpt_cli.recipe import load_recipe, refuse_unavailable
from mem_gpt_cli.recipe.problems import leaves, section_at, without_none
from mem_gpt_cli.recipe.refusals import Lens

LENSES: tuple[Lens, ...] = get_args(Lens)

OFFERED: dict[str, dict[str, str]] = {
    "attention.backend": {"sdpa": "etp", "eager": "etp", "flash": "etp", "lsh": "etp"},
    "kv_cache.kind": {
        "none": "etp", "dynamic": "etp", "static": "etp", "quantized": "etp", "offloaded": "etp",
        "sliding": "etp", "paged": "etp",
    },
    "checkpointing.policy": {
        "none": "etp", "full": "etp", "every_n": "etp", "selective": "etp", "offload": "etp",
    },
    "adapters.kind": {"none": "etp", "lora": "etp", "qlora": "etp"},
    "quantization.scheme": {"none": "etp", "int8": "etp", "nf4": "etp", "int4": "etp", "fp4": "etp"},
    "quantization.backend": {"auto": "etp", "bitsandbytes": "etp", "torchao": "etp", "native": "etp"},
    "optimizer.name": {
        "adamw": "etp", "adamw_8bit": "etp", "paged_adamw_8bit": "etp", "lion_8bit": "etp",
        "adafactor": "etp", "sgd": "etp", "galore": "etp",
    },
    "optimizer.implementation": {"auto": "etp", "loop": "etp", "foreach": "etp", "fused": "etp"},
    "loss.kind": {"full": "etp", "chunked": "etp", "fused": "etp"},
    "device": {"cpu": "etp", "cuda": "etp", "cuda:1": "etp", "h100": "etp"},
}  # fmt: skip
"""Each value of an option, and the first letters of the lenses that offer it."""

BESIDE: dict[str, tuple[str, ...]] = {
    "checkpointing.policy=offload": ("device=cuda",),
    "attention.backend=lsh": ("kv_cache.kind=dynamic",),
    "kv_cache.kind=offloaded": ("device=cuda",),
    "kv_cache.kind=sliding": ("kv_cache.window=64",),
    "optimizer.name=paged_adamw_8bit": ("device=cuda",),
    "quantization.backend=bitsandbytes": ("quantization.scheme=int8",),
    "quantization.backend=torchao": ("quantization.scheme=int8",),
    "quantization.backend=native": ("quantization.scheme=int8",),
}
"""What a value needs beside it to mean anything."""

CASES = [(key, value, lens) for key, values in OFFERED.items() for value in values for lens in LENSES]


def test_the_table_has_every_value_of_every_option() -> None:
    for key, values in OFFERED.items():
        section, _, name = key.partition(".")
        found = section_at((section,))
        assert found is not None
        if name:
            assert set(values) == set(get_args(without_none(found.model_fields[name].annotation)))
    options = {".".join(path) for path in leaves() if path[-1] in ("kind", "scheme", "backend", "policy")}
    assert options <= set(OFFERED)


@pytest.mark.parametrize(("key", "value", "lens"), CASES)
def test_each_lens_offers_what_it_says(key: str, value: str, lens: Lens) -> None:
    training = key.startswith(("checkpointing", "optimizer", "loss"))
    override = f"{key}={value}"
    task = f"task={'training' if training else 'inference'}"
    recipe = load_recipe(None, overrides=[override, task, *BESIDE.get(override, ())])
    if lens[0] in OFFERED[key][value]:
        refuse_unavailable(recipe, lens)
        return
    with pytest.raises(RecipeError) as caught:
        refuse_unavailable(recipe, lens)
    message = str(caught.value)
    assert message.startswith(f"--set {override}:1:{len(key) + 2}: {key}")
    assert f"{value!r} " in message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("task", "override", "message"),
    [
        ("inference", "checkpointing.policy=full", "belongs to training"),
        ("inference", "optimizer.lr=0.1", "belongs to training"),
        ("inference", "optimizer.implementation=foreach", "belongs to training"),
        ("inference", "workload.steps=3", "belongs to training"),
        ("inference", "workload.hold_outputs=true", "belongs to training"),
        ("inference", "workload.accumulate=2", "belongs to training"),
        ("inference", "loss.kind=chunked", "belongs to training"),
        ("training", "checkpointing.every=3", "means something for checkpointing.policy: every_n alone"),
        ("training", "checkpointing.keep=[attention]", "policy: selective alone"),
        ("training", "adapters.rank=4", "adapters.kind: lora or adapters.kind: qlora alone"),
        ("training", "optimizer.momentum=0.9", "optimizer.name: sgd alone"),
        ("training", "optimizer.bits=8", "optimizer.name: galore alone"),
        ("training", "loss.chunk=64", "loss.kind: chunked alone"),
        ("training", "quantization.scheme=int8", "quantized weights cannot be trained"),
        ("training", "workload.logits=all", "belongs to inference"),
        ("training", "sampling.temperature=0.7", "belongs to inference"),
        ("training", "sampling.top_k=5", "belongs to inference"),
        ("training", "quality.windows=2", "is measured of an inference"),
    ],
)
@pytest.mark.parametrize("lens", LENSES)
def test_what_the_task_would_ignore_is_refused(task: str, override: str, message: str, lens: Lens) -> None:
    recipe = load_recipe(None, overrides=[f"task={task}", override])
    with pytest.raises(RecipeError, match=message) as caught:
        refuse_unavailable(recipe, lens)
    assert str(caught.value).startswith(f"--set {override}:1:")


@pytest.mark.parametrize("task", ["inference", "training"])
@pytest.mark.parametrize("kind", ["none", "dynamic"])
def test_the_cache_kinds_that_change_nothing_in_training_pass(task: str, kind: str) -> None:
    for lens in LENSES:
        refuse_unavailable(load_recipe(None, overrides=[f"task={task}", f"kv_cache.kind={kind}"]), lens)


@pytest.mark.parametrize("override", ["sampling.temperature=0.7", "quality.windows=2"])
def test_one_recipe_serves_all_subcommands(override: str) -> None:
    """What only generate or profile reads takes no part in memory: no lens refuses it."""
    for lens in LENSES:
        refuse_unavailable(load_recipe(None, overrides=[override]), lens)


@pytest.mark.parametrize("override", ["sampling.top_p=0.9", "sampling.top_k=40"])
def test_limits_on_a_greedy_choice_are_refused(override: str) -> None:
    with pytest.raises(RecipeError, match="changes nothing at temperature 0"):
        refuse_unavailable(load_recipe(None, overrides=[override]), "profile")
    refuse_unavailable(load_recipe(None, overrides=[override, "sampling.temperature=1"]), "profile")


def test_a_sweep_is_no_single_recipe() -> None:
    with pytest.raises(RecipeError, match=r"all\.yaml:\d+:\d+: sweep: .*run `memgpt bench`"):
        refuse_unavailable(load_recipe("all"), "estimate")


def test_all_that_is_refused_is_reported_at_once_and_each_key_once() -> None:
    overrides = ["adapters.rank=4", "checkpointing.policy=every_n", "loss.kind=chunked"]
    with pytest.raises(RecipeErrors) as caught:
        refuse_unavailable(load_recipe(None, overrides=overrides), "profile")
    keys = [error.message.partition(":")[0] for error in caught.value.errors]
    assert sorted(keys) == ["adapters.rank", "checkpointing.policy", "loss.kind"]


def test_qlora_brings_nf4_and_refuses_full_weights() -> None:
    assert load_recipe(None, overrides=["adapters.kind=qlora"]).quantization.scheme == "nf4"
    int8 = load_recipe(None, overrides=["adapters.kind=qlora", "quantization.scheme=int8"])
    assert int8.quantization.scheme == "int8"
    with pytest.raises(RecipeError, match=r"quantization\.scheme: none, but qlora is lora over quantized"):
        load_recipe(None, overrides=["adapters.kind=qlora", "quantization.scheme=none"])
    lora = load_recipe(None, overrides=["adapters.kind=lora", "quantization.scheme=nf4"])
    with pytest.raises(RecipeError, match="beside quantized weights is 'qlora'"):
        refuse_unavailable(lora, "trace")
