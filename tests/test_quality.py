"""Quality: perplexity, KL divergence and top-1 agreement, against a plain computation of the same."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mem_gpt_cli as memgpt
from mem_gpt_cli.cli import main as cli
from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.model import smollm2, tiny
from mem_gpt_cli.model.gguf_file import coarse_grid
from mem_gpt_cli.quality.measure import measure, reference, why_not
from mem_gpt_cli.quality.scores import Scores, shelf
from mem_gpt_cli.quality.text import read_text, windows_of
from mem_gpt_cli.recipe import load_recipe
from mem_gpt_cli.report.csv import QUALITY_COLUMNS, REPORT_COLUMNS, report_row
from mem_gpt_cli.report.json import from_dict, to_dict
from mem_gpt_cli.report.model import Quality

CPU = torch.device("cpu")
WINDOWS, TOKENS = 3, 48


@cache
def quality_of(**keys: Any) -> Quality:
    base = {"quality.windows": WINDOWS, "quality.tokens": TOKENS, "device.threads": 1}
    flags = {key.replace("__", "."): value for key, value in keys.items()}
    return measure(load_recipe(flags={**base, **flags}), CPU)


@pytest.fixture(scope="module")
def plain_perplexity() -> float:
    """Of the second half of each window, by transformers and nothing else."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny.folder())
    model = AutoModelForCausalLM.from_pretrained(tiny.folder(), dtype=torch.float32).eval()
    text = read_text("sample")
    losses = []
    for number in range(WINDOWS):
        start = len(text) * number // WINDOWS
        while start and not text[start - 1].isspace():
            start += 1
        tokens = tokenizer(text[start : start + 20 * TOKENS], return_tensors="pt")["input_ids"][:, :TOKENS]
        with torch.no_grad():
            logits = model(tokens).logits[0].double()
        wanted = torch.arange(TOKENS // 2, TOKENS)
        losses.append(torch.nn.functional.cross_entropy(logits[wanted - 1], tokens[0, wanted]))
    return float(torch.stack(losses).mean().exp())


def test_perplexity_is_that_of_a_plain_computation_and_differs_in_nothing(plain_perplexity: float) -> None:
    found = quality_of()
    assert found.perplexity == pytest.approx(plain_perplexity, rel=1e-5)
    assert found.tokens == WINDOWS * TOKENS // 2
    assert found.text == "sample"
    assert found.kl_divergence == 0.0
    assert found.top1_agreement == 1.0
    assert found.perplexity == found.reference_perplexity
    assert found.perplexity_change == 0.0


@pytest.mark.parametrize(
    "keys",
    [
        {"attention__backend": "flash", "model__dropout": 0.0},
        {"attention__backend": "eager"},
        {"kv_cache__kind": "none"},
        {"kv_cache__kind": "static"},
        {"kv_cache__kind": "paged"},
        {"attention__backend": "lsh", "attention__buckets": 1},
    ],
    ids=str,
)
def test_exact_options_cost_nothing(keys: dict[str, Any], plain_perplexity: float) -> None:
    found = quality_of(**keys)
    assert found.perplexity == pytest.approx(plain_perplexity, rel=1e-4)
    assert found.kl_divergence == pytest.approx(0, abs=1e-7)
    assert found.top1_agreement == 1.0


def test_fewer_bits_cost_more() -> None:
    kl = {
        bits: quality_of(quantization__scheme=scheme).kl_divergence
        for bits, scheme in ((8, "int8"), (4, "nf4"))
    }
    assert kl[8] is not None
    assert kl[4] is not None
    assert 0 < kl[8] < kl[4] < 1


def test_what_the_cache_loses_counts() -> None:
    quantized = quality_of(kv_cache__kind="quantized")
    window = quality_of(kv_cache__kind="sliding", kv_cache__window=8)
    assert quantized.kl_divergence is not None
    assert window.kl_divergence is not None
    assert 1e-6 < quantized.kl_divergence < 0.1
    assert window.kl_divergence > quantized.kl_divergence
    assert window.perplexity > quantized.perplexity


def test_a_window_as_long_as_the_text_loses_nothing(plain_perplexity: float) -> None:
    """The same positions, but token by token through the cache."""
    found = quality_of(kv_cache__kind="sliding", kv_cache__window=2 * TOKENS)
    assert found.perplexity == pytest.approx(plain_perplexity, rel=1e-4)


def test_the_reference_has_no_option_and_full_width() -> None:
    recipe = load_recipe(
        flags={
            "model.dtype": "bf16",
            "workload.autocast": "bf16",
            "quantization.scheme": "nf4",
            "attention.backend": "lsh",
            "kv_cache.kind": "quantized",
        }
    )
    plain = reference(recipe)
    assert (plain.model.dtype, plain.workload.autocast) == ("fp32", "none")
    assert plain.quantization.scheme == "none"
    assert (plain.attention.backend, plain.attention.kv_heads) == ("sdpa", None)
    assert plain.kv_cache.kind == "dynamic"
    assert plain.model.name == recipe.model.name


def test_against_false_compares_with_nothing() -> None:
    found = quality_of(quality__against=False, quantization__scheme="int8")
    assert found.perplexity > 1
    assert (found.reference_perplexity, found.kl_divergence, found.top1_agreement) == (None, None, None)
    assert found.perplexity_change is None


def test_scores_are_those_of_their_definitions() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, other = torch.randn(2, 5, 11, generator=draw, dtype=torch.float64)
    targets = torch.tensor([1, 3, 3, 7, 10])
    scores = Scores()
    log_p, log_q = logits.log_softmax(-1), other.log_softmax(-1)
    scores.add(log_p[:2], targets[:2])
    scores.add(log_p[2:], targets[2:])
    assert scores.perplexity == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, targets).exp()), rel=1e-9
    )
    scores.compare(log_p, log_q)
    expected = torch.nn.functional.kl_div(log_p, log_q, log_target=True, reduction="batchmean")
    assert scores.kl_divergence == pytest.approx(float(expected), rel=1e-9)
    assert scores.top1_agreement == float((log_p.argmax(1) == log_q.argmax(1)).double().mean())


def test_a_shelf_gives_back_what_it_holds_and_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with shelf() as kept:
        rows = torch.arange(12.0).reshape(4, 3)
        kept.put(2, rows[2:], 4)
        kept.put(0, rows[:2], 4)
        assert torch.equal(kept.take(1, 3), rows[1:])
        assert len(list(tmp_path.rglob("*"))) == 2
    assert list(tmp_path.rglob("*")) == []


def test_windows_are_spread_over_the_text_and_begin_with_words() -> None:
    words = [f"w{number:04}" for number in range(1000)]
    found = windows_of(" ".join(words), 4, 10, lambda text: [int(word[1:]) for word in text.split()])
    assert [window[0] for window in found] == [0, 250, 500, 750]
    assert all(np.diff(window).tolist() == [1] * 9 for window in found)


def test_a_text_may_be_a_file_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second ü", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first", encoding="utf-8")
    (tmp_path / "c.md").write_text("no", encoding="utf-8")
    assert read_text(str(tmp_path)) == "first\n\nsecond ü"
    assert read_text(str(tmp_path / "b.txt")) == "second ü"
    assert len(read_text("sample")) > 200_000


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"quality.text": "nowhere.txt"}, "nowhere.txt does not exist"),
        ({"quality.text": "."}, "holds no .txt file"),
        ({"quality.windows": 100_000}, "too short for 100000 windows of 256 tokens"),
        ({"quality.tokens": 1026, "quality.windows": 1}, "more than the 1024 positions"),
    ],
)
def test_a_text_that_cannot_be_scored_is_refused(
    keys: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(flags={"quality.windows": 8, **keys})
    with pytest.raises(UsageError, match=message):
        measure(recipe, CPU)
    if "too short" not in message:  # which only the tokenizer knows
        with pytest.raises(UsageError, match=message):
            why_not(recipe)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model.name": "gpt2"}, "the weights of gpt2 are random here"),
        ({"model.weights": "random"}, "the weights of memgpt-tiny are random here"),
    ],
)
def test_random_weights_have_no_quality(keys: dict[str, Any], message: str) -> None:
    assert why_not(load_recipe(flags={"quality.windows": 1})) is None
    said = why_not(load_recipe(flags={"quality.windows": 1, **keys}))
    assert said is not None
    assert message in said


@pytest.fixture(scope="module")
def profiled() -> Any:
    return memgpt.profile(
        {
            "quality": {"windows": WINDOWS, "tokens": TOKENS},
            "quantization": {"scheme": "nf4"},
            "workload": {"prompt_tokens": 8, "new_tokens": 2},
            "device": {"threads": 1},
        },
        passes="memory",
    )


def test_profile_reports_it_beside_memory(profiled: Any) -> None:
    assert profiled.quality == quality_of(quantization__scheme="nf4")
    assert profiled.provenance["quality"] == "measured"
    assert from_dict(json.loads(json.dumps(to_dict(profiled)))).quality == profiled.quality
    data = to_dict(profiled)["quality"]
    assert data["perplexity_change"] == pytest.approx(
        data["perplexity"] / data["reference_perplexity"] - 1, abs=1e-12
    )


def test_the_rows_of_csv_and_bench_end_with_it(profiled: Any) -> None:
    from mem_gpt_cli.bench.columns import COLUMNS

    row = report_row(profiled)
    assert REPORT_COLUMNS[-4:] == QUALITY_COLUMNS
    assert set(QUALITY_COLUMNS) <= set(COLUMNS)
    assert row["kl_divergence"] == profiled.quality.kl_divergence
    assert row["perplexity_change"] == profiled.quality.perplexity_change
    without = report_row(memgpt.estimate({"quality": {"windows": 1}}))
    assert [without[name] for name in QUALITY_COLUMNS] == [None] * 4


def test_memory_is_measured_as_without_it(profiled: Any) -> None:
    plain = memgpt.profile(
        {
            "quantization": {"scheme": "nf4"},
            "workload": {"prompt_tokens": 8, "new_tokens": 2},
            "device": {"threads": 1},
        },
        passes="memory",
    )
    assert plain.quality is None
    assert "quality" not in plain.provenance
    assert [phase.peak_allocated_bytes for phase in plain.phases] == [
        phase.peak_allocated_bytes for phase in profiled.phases
    ]


def test_the_command_shows_it(capfd: pytest.CaptureFixture[str]) -> None:
    sizes = ["--prompt-tokens", "8", "--new-tokens", "2", "--set", "device.threads=1"]
    quality = ["--set", f"quality.windows={WINDOWS}", "--set", f"quality.tokens={TOKENS}"]
    assert cli.run(["profile", *sizes, *quality]) == 0
    shown = capfd.readouterr().out
    assert "perplexity" in shown
    assert "KL divergence" in shown
    assert "100.0%" in shown
    small = "model.config={n_layer: 1, n_embd: 32, n_head: 2, vocab_size: 301}"
    assert cli.run(["profile", "--model", "gpt2", "--set", small, *sizes, *quality]) == 0
    captured = capfd.readouterr()
    assert "quality is not measured: the weights of gpt2 are random here" in captured.err
    assert "perplexity" not in captured.out


def test_a_coarse_grid_is_read_off_the_types_of_the_tensors(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    full = np.zeros((4, 32), dtype=np.float32)
    writer.add_tensor("full", full)
    for name, kind in (("nibbles", "Q4_0"), ("bytes", "Q8_0")):
        kind = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(full, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    grid = coarse_grid(path)
    assert grid is not None
    assert grid.share == pytest.approx(1 / 3)
    assert grid.formats == ("Q4_0",)


@pytest.mark.smollm2
@pytest.mark.skipif(smollm2.installed_file() is None, reason="the weights are not installed: make smollm2")
def test_smollm2s_own_grid_is_told() -> None:
    from mem_gpt_cli.quality.measure import notes

    (note,) = notes(load_recipe(flags={"model.name": "smollm2-135m", "quality.windows": 1}))
    assert "79% of the stored weights lay on a grid of 4 bits or fewer before any option (Q4_1)" in note
