"""``memgpt adapters`` and saved adapters: the real command, and peft reading and writing the same folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mem_gpt_cli.adapters.apply import adapted_layers
from mem_gpt_cli.adapters.base import check_base, over_other_weights
from mem_gpt_cli.adapters.cost import saved as told
from mem_gpt_cli.adapters.folder import read_adapter
from mem_gpt_cli.adapters.saved import load_adapters, save_adapters
from mem_gpt_cli.cli import main as cli
from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.model import resolve, tiny
from mem_gpt_cli.recipe import load_recipe
from mem_gpt_cli.report.whole_folder import whole_folder
from mem_gpt_cli.workload.text_model import TextModel, load

Run = Callable[..., tuple[int, str, str]]
TOKENS = torch.arange(24)[None] % 90
LLAMA = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "attention_bias": False,
}


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.run(["adapters", *arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with real, if random, weights in a folder of transformers'."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "base"
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**LLAMA)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two adapters of the Llama, saved by memgpt: of other ranks, targets and scales."""
    folder = tmp_path_factory.mktemp("adapters")
    attention = ["adapters.targets=[q_proj, v_proj]", "adapters.rank=4", "adapters.alpha=8"]
    mlp = ["adapters.targets=[v_proj, down_proj]", "adapters.rank=2", "adapters.alpha=6"]
    return (
        saved(str(base), folder / "attention", attention, seed=2),
        saved(str(base), folder / "mlp", mlp, seed=3),
    )


def recipe_of(model: str, *overrides: str) -> Any:
    return load_recipe(None, overrides=[f"model.name={model}", "device.threads=1", *overrides])


def saved(model: str, folder: Path, overrides: Sequence[str] = (), seed: int = 0) -> Path:
    """A folder with a fresh adapter, the second factors no longer 0."""
    made = load(recipe_of(model, "adapters.kind=lora", *overrides))
    randomise(made.model, seed)
    save_adapters(made.model, made.recipe, folder)
    return folder


def randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _, layer in adapted_layers(model):
        for part in layer.lora_B.values():
            with torch.no_grad():
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * 0.1)


def with_adapters(model: str | Path, *folders: Path, **sections: str) -> TextModel:
    names = json.dumps([str(folder) for folder in folders])
    more = [f"{key.replace('__', '.')}={value}" for key, value in sections.items()]
    return load(recipe_of(str(model), f"adapters.load={names}", *more))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(TOKENS).logits.float()
    return found


def by_peft(base: Path, *folders: Path) -> torch.Tensor:
    """What peft's own loading of the folders computes, all of them active."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(plain, folders[0], adapter_name="first")
    names = ["first"]
    for number, folder in enumerate(folders[1:]):
        names.append(f"other{number}")
        model.load_adapter(folder, adapter_name=names[-1])
    model.base_model.set_adapter(names)
    return logits(model.eval())


def test_peft_reads_ours_and_several_add_up(base: Path, adapters: tuple[Path, Path]) -> None:
    plain = logits(load(recipe_of(str(base))).model)
    ours = logits(with_adapters(base, *adapters).model)
    assert torch.equal(ours, by_peft(base, *adapters))
    one = logits(with_adapters(base, adapters[0]).model)
    assert torch.equal(one, by_peft(base, adapters[0]))
    assert not torch.allclose(ours, one, atol=1e-3)
    assert not torch.allclose(one, plain, atol=1e-3)


def test_loaded_factors_are_those_of_the_file_and_frozen(base: Path, adapters: tuple[Path, Path]) -> None:
    model = with_adapters(base, *adapters).model
    assert not any(parameter.requires_grad for parameter in model.parameters())
    layer = dict(adapted_layers(model))["model.layers.1.self_attn.v_proj"]
    assert list(layer.lora_A) == ["attention", "mlp"]
    assert layer.scaling == {"attention": 2.0, "mlp": 3.0}
    for name, folder in zip(layer.lora_A, adapters, strict=True):
        stored = load_file(folder / "adapter_model.safetensors")
        key = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
        assert torch.equal(layer.lora_B[name].weight, stored[key])


def test_a_fresh_adapter_is_trained_over_frozen_ones(base: Path, adapters: tuple[Path, Path]) -> None:
    names = json.dumps([str(adapters[0])])
    over = ["task=training", "adapters.kind=lora", "adapters.targets=[q_proj]", f"adapters.load={names}"]
    model = load(recipe_of(str(base), *over)).model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 6
    assert all(".q_proj.lora_" in name and ".default." in name for name in trained)
    assert torch.equal(logits(model), by_peft(base, adapters[0]))  # a fresh one adds 0


def test_ours_reads_what_peft_wrote(base: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=4,
        lora_alpha=5,
        target_modules=["q_proj", "up_proj", "down_proj"],
        use_rslora=True,
        rank_pattern={"down_proj": 2},
        alpha_pattern={"layers.1.mlp.down_proj": 9},
        layers_to_transform=[0, 1],
        layers_pattern="layers",
        lora_dropout=0.1,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(plain, config)
    randomise(model, 5)
    model.save_pretrained(tmp_path / "peft")
    adapter = read_adapter(tmp_path / "peft")
    assert adapter.record is None
    assert adapter.ranks == (2, 4)
    layers = {path.removeprefix("base_model.model."): layer for path, layer in adapted_layers(model)}
    assert {one.module: one.scale for one in adapter.factors} == {
        path: pytest.approx(layer.scaling["default"]) for path, layer in layers.items()
    }
    assert torch.equal(logits(with_adapters(base, tmp_path / "peft").model), logits(model.eval()))


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("memgpt-tiny", {"quantization__scheme": "nf4"}),
        ("memgpt-tiny", {"quantization__scheme": "int4"}),
        ("memgpt-tiny", {"model__dtype": "bf16"}),
        ("memgpt-tiny", {}),
        ("base", {"quantization__scheme": "int8"}),
        ("base", {"quantization__scheme": "int8", "quantization__backend": "torchao"}),
    ],
)
def test_merging_changes_what_the_shift_says(
    model: str, options: dict[str, str], base: Path, tmp_path: Path, run: Run
) -> None:
    name = str(base) if model == "base" else model
    adapter = saved(name, tmp_path / "adapter", seed=4)
    before = logits(with_adapters(name, adapter, **options).model)
    flags = [f"--set={key.replace('__', '.')}={value}" for key, value in options.items()]
    sizes = ["--set=quality.windows=2", "--set=quality.tokens=24", "--set=device.threads=1"]
    code, out, err = run(
        "merge", "--model", name, "--adapter", str(adapter), "--out", str(tmp_path / "merged"), "--json",
        *flags, *sizes,
    )  # fmt: skip
    assert code == 0, err
    answer = json.loads(out)
    dtype = options.get("model__dtype", "fp32")
    again = load(recipe_of(str(tmp_path / "merged"), f"model.dtype={dtype}"))
    assert not list(adapted_layers(again.model))
    moved = float((logits(again.model) - before).norm() / before.norm())
    shift = answer["shift"]
    assert shift["tokens"] == 48
    assert answer["quantization"] == options.get("quantization__scheme")
    exact = not options
    assert moved < 1e-5 if exact else 0 < moved < 0.5
    assert shift["relative_norm"] < 1e-5 if exact else 0 < shift["relative_norm"] < 0.5
    assert shift["kl_divergence"] < 1e-6 if exact else shift["kl_divergence"] > 0
    assert shift["top1_agreement"] == 1.0 if exact else shift["top1_agreement"] <= 1.0
    assert bool(answer["notes"]) == ("quantization__scheme" in options)
    assert answer["weights_bytes"] == (tmp_path / "merged" / "model.safetensors").stat().st_size


def test_merged_into_full_precision_is_a_model_of_transformers(
    base: Path, adapters: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    from transformers import AutoModelForCausalLM

    both = [f"--adapter={folder}" for folder in adapters]
    code, out, err = run("merge", "--model", str(base), *both, "--out", str(tmp_path / "m"))
    assert code == 0, err
    assert f"base with 2 adapters merged (9 matrices, fp32) is in {tmp_path / 'm'}" in out.replace(
        str(base), "base"
    )
    assert "likeliest token alike   100.00%" in out
    assert "tokens of random tokens" in out  # this model has no tokenizer
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    torch.testing.assert_close(logits(model), by_peft(base, *adapters), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('adapters.load=["elsewhere"]', "adapters.load: what is merged is named by --adapter"),
        ("adapters.kind=lora", "adapters.kind: merging trains nothing: leave the section out"),
        ("adapters.kind=qlora", "--quantization nf4 merges into quantized weights"),
        ("task=training", "task: merging trains nothing: give --model in place of a recipe"),
    ],
)
def test_merging_takes_no_adapters_of_the_recipe(
    setting: str, message: str, base: Path, adapters: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    into = [f"--adapter={adapters[0]}", "--out", str(tmp_path / "m")]
    code, out, err = run("merge", "--model", str(base), *into, "--set", setting)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith(f"memgpt: error: --set {setting}:1:")
    assert not list(tmp_path.iterdir())


def test_merging_leaves_nothing_half_written(
    base: Path, adapters: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    code, out, err = run(
        "merge", "--model", str(base), f"--adapter={adapters[0]}", "--out", str(tmp_path / "taken")
    )
    assert (code, out) == (2, "")
    assert err == f"memgpt: error: {tmp_path / 'taken'} is not empty: name another folder\n"
    broken = shutil.copytree(adapters[0], tmp_path / "broken")
    path = broken / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"][0, 0] = torch.nan
    save_file(tensors, path)
    code, out, err = run("merge", "--model", str(base), f"--adapter={broken}", "--out", str(tmp_path / "new"))
    assert code == 2
    assert "hold values at model.layers.0.self_attn.q_proj that are no numbers" in err
    assert {path.name for path in tmp_path.iterdir()} == {"taken", "broken"}


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    def interrupted() -> None:
        with whole_folder(tmp_path / "a") as partial:
            (partial / "file").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())
    with whole_folder(tmp_path / "a") as partial:
        (partial / "file").write_text("x")
        assert not (tmp_path / "a").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "file"]
    with pytest.raises(UsageError, match="is not empty"), whole_folder(tmp_path / "a"):
        pass


def test_list_and_show(base: Path, adapters: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    for folder in adapters:
        shutil.copytree(folder, tmp_path / "deep" / folder.name)
    (tmp_path / "deep" / "mlp" / "adapter_model.safetensors").write_bytes(b"\x08")
    code, out, _ = run("list", str(tmp_path), "--json")
    first, second = json.loads(out)
    assert code == 0
    assert first["base"] == str(base)
    assert first["ranks"] == [4]
    assert first["targets"] == ["q_proj", "v_proj"]
    assert first["parameters"] == 3 * 4 * (64 + 64 + 64 + 32)
    assert first["bytes"] == 4 * first["parameters"]
    assert second["problem"].endswith("it is cut short; fetch or save the adapter again")
    code, out, err = run("list", str(tmp_path))
    assert code == 0
    assert "q_proj, v_proj" in out
    assert "cut short" in err
    assert err.endswith(f"1 adapter under {tmp_path}\n")
    code, out, _ = run("show", str(adapters[1]), "--json", "--model", str(base))
    shown = json.loads(out)
    assert shown["belongs_to"] == str(base)
    assert [(one["target"], one["parameters"]) for one in shown["by_target"]] == [
        ("down_proj", 3 * 2 * (128 + 64)),
        ("v_proj", 3 * 2 * (64 + 32)),
    ]
    assert shown["by_target"][1]["scales"] == [3.0]
    code, out, _ = run("show", str(adapters[1]), "--model", str(base))
    assert "down_proj" in out
    assert f"belongs to {base}: its base's numbers as noted" in out.replace("\n", " ")


def test_an_adapter_of_another_model_is_refused(
    base: Path, adapters: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    folder = adapters[0]
    code, _, err = run("show", str(folder), "--model", "memgpt-tiny")
    assert code == 2
    assert f"{folder} was trained on {base} with model_type llama, and memgpt-tiny has gpt2" in err
    foreign = shutil.copytree(folder, tmp_path / "foreign")
    (foreign / "memgpt_adapter.json").unlink()
    code, _, err = run("show", str(foreign), "--model", "memgpt-tiny")
    assert code == 2
    assert "adapts model.layers.0.self_attn.q_proj, and memgpt-tiny has no such matrix (6 of 6" in err
    code, _, err = run("show", str(foreign), "--model", "smollm2-135m")
    assert code == 2
    assert "a matrix of 64 outputs and 64 inputs at model.layers.0.self_attn.q_proj" in err
    shallow = resolve(recipe_of(str(base), "model.config.num_hidden_layers=2").model)
    with pytest.raises(UsageError, match="with layers 3, and"):
        check_base(read_adapter(folder), shallow)


def test_other_weights_of_the_same_shape_are_refused(
    base: Path, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "narrow")
    with_adapters(tmp_path / "narrow", adapters[0], model__dtype="bf16")  # the same weights, rounded
    model.float()
    with torch.no_grad():
        model.model.norm.weight.add_(0.1)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match=r"was trained on other weights than those of .*other: "):
        with_adapters(tmp_path / "other", adapters[0])
    with_adapters(tmp_path / "other", adapters[0], model__weights="random")  # these are nobody's


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "holds an adapter of peft's type IA3: memgpt reads LoRA alone"),
        ({"use_dora": True}, "holds DoRA"),
        ({"bias": "lora_only"}, "holds biases of the base"),
        ({"modules_to_save": ["lm_head"]}, r"holds whole modules of its own \(modules_to_save\)"),
        ({"init_lora_weights": "pissa_niter_4"}, "was trained from pissa_niter_4, which changes the base"),
    ],
)
def test_adapters_that_are_no_sum_are_refused_by_name(
    change: dict[str, Any], message: str, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(adapters[0], tmp_path / "changed")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(UsageError, match=message):
        read_adapter(folder)


def test_no_adapter_is_one_sentence(tmp_path: Path, adapters: tuple[Path, Path], run: Run) -> None:
    for folder, words in {
        tmp_path / "nowhere": "does not exist: name the folder of a saved adapter",
        tmp_path: "holds no adapter_config.json: name the folder of a saved adapter",
    }.items():
        code, out, err = run("show", str(folder))
        assert (code, out, err) == (2, "", f"memgpt: error: {folder} {words}\n")
    pickled = shutil.copytree(adapters[0], tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(UsageError, match="which may run code when it is read"):
        read_adapter(pickled)


def test_exported_several_are_their_sum(
    base: Path, adapters: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    names = [str(folder) for folder in adapters]
    code, _, err = run("export", *names, "--out", str(tmp_path / "sum"))
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "sum").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert read_adapter(tmp_path / "sum").ranks == (2, 4, 6)
    both = by_peft(base, *adapters)
    torch.testing.assert_close(by_peft(base, tmp_path / "sum"), both, atol=1e-5, rtol=1e-5)
    ours = logits(with_adapters(base, tmp_path / "sum").model)
    torch.testing.assert_close(ours, both, atol=1e-5, rtol=1e-5)
    code, out, _ = run(
        "export", names[0], "--out", str(tmp_path / "one.safetensors"), "--format", "safetensors",
        "--dtype", "bf16", "--json",
    )  # fmt: skip
    assert json.loads(out)["parameters"] == read_adapter(adapters[0]).parameters
    stored = load_file(tmp_path / "one.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    code, _, err = run("export", names[0], "--out", str(tmp_path / "one.safetensors"))
    assert code == 2
    assert "is there already" in err
    code, _, err = run("export", names[0], "--out", str(tmp_path / "g"), "--format", "gguf")
    assert code == 2
    assert "'gguf' is not offered: choose peft or safetensors" in err


def test_what_the_formula_is_told_is_what_stands_on_the_model(
    base: Path, adapters: tuple[Path, Path]
) -> None:
    names = json.dumps([str(folder) for folder in adapters])
    recipe = recipe_of(str(base), f"adapters.load={names}")
    model = with_adapters(base, *adapters, model__dtype="bf16").model
    stands = [
        part.weight
        for _, layer in adapted_layers(model)
        for table in (layer.lora_A, layer.lora_B)
        for part in table.values()
    ]
    assert {weight.dtype for weight in stands} == {torch.float32}
    assert sum(sum(one.factors) for one in told(recipe)) == sum(weight.nbytes for weight in stands)


def test_the_lenses_agree_on_loaded_adapters(base: Path, adapters: tuple[Path, Path]) -> None:
    import mem_gpt_cli as memgpt

    names = json.dumps([str(folder) for folder in adapters])
    recipe = recipe_of(
        str(base), f"adapters.load={names}", "workload.batch=2", "workload.prompt_tokens=20",
        "workload.new_tokens=4",
    )  # fmt: skip
    predicted, traced = memgpt.estimate(recipe), memgpt.trace(recipe)
    measured = memgpt.profile(recipe, passes="memory")
    stored = sum(read_adapter(folder).nbytes for folder in adapters)
    for first, second, third in zip(predicted.phases, traced.phases, measured.phases, strict=True):
        assert second.components["adapters"] == third.components["adapters"] == stored
        assert first.components["adapters"] == stored
        assert second.peak_allocated_bytes == pytest.approx(third.peak_allocated_bytes, rel=1e-4, abs=4096)
        assert first.peak_allocated_bytes == pytest.approx(second.peak_allocated_bytes, rel=0.01)


def test_the_formula_refuses_adapters_of_another_model(
    adapters: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = f'adapters.load=["{adapters[0]}"]'
    assert cli.run(["estimate", "--model", "smollm2-135m", "--set", folder]) == 2
    assert "and smollm2-135m has 30: name its base, or another adapter" in capfd.readouterr().err


def test_generate_writes_with_adapters(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = saved("memgpt-tiny", tmp_path / "a", ["adapters.alpha=100"], seed=6)
    words = ["generate", "--model", "memgpt-tiny", "--prompt", "The people", "--new-tokens", "6"]
    texts = []
    for more in ([], ["--set", f'adapters.load=["{folder}"]']):
        assert cli.run([*words, *more]) == 0
        texts.append(capfd.readouterr().out)
    assert texts[0] != texts[1]
    assert cli.run([*words, "--set", f'adapters.load=["{tmp_path}"]']) == 2
    assert "holds no adapter_config.json" in capfd.readouterr().err


def test_weights_that_are_stored_otherwise_than_in_training_are_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = saved("memgpt-tiny", tmp_path / "a", ["adapters.kind=qlora"])
    words = f"trained over weights in nf4, and here over weights in full: {folder}"
    load_it = ["--set", f'adapters.load=["{folder}"]']
    generate = ["generate", "--model", "memgpt-tiny", "--prompt", "The people", "--new-tokens", "2"]
    assert cli.run([*generate, *load_it]) == 0
    assert capfd.readouterr().err.count(words) == 1
    assert list(over_other_weights([read_adapter(folder)], recipe_of("memgpt-tiny"))) == [words]
    nf4 = recipe_of("memgpt-tiny", "quantization.scheme=nf4")
    assert not list(over_other_weights([read_adapter(folder)], nf4))
    sizes = ["--set=quality.windows=1", "--set=quality.tokens=16"]
    into = ["--adapter", str(folder), "--out", str(tmp_path / "m")]
    assert cli.run(["adapters", "merge", "--model", "memgpt-tiny", *into, *sizes]) == 0
    assert capfd.readouterr().err.count(words) == 1


def test_a_model_under_adapters_is_not_saved_by_halves(
    base: Path, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    from mem_gpt_cli.workload.save import save

    names = json.dumps([str(adapters[0])])
    with pytest.raises(UsageError, match="run `memgpt adapters merge`"):
        save(recipe_of(str(base), f"adapters.load={names}"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_go_on_a_model_that_is_loaded(base: Path, adapters: tuple[Path, Path]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    load_adapters(model, adapters)
    assert torch.equal(logits(model), by_peft(base, *adapters))
    with pytest.raises(UsageError, match="GPT2LMHeadModel has no such matrix"):
        load_adapters(AutoModelForCausalLM.from_pretrained(tiny.folder()), adapters)
