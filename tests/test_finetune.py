"""``memgpt finetune``: the real command on memgpt-tiny."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned import SIZES, Run

from mem_gpt_cli.cli import main as cli
from mem_gpt_cli.finetune.data import batches, load_data
from mem_gpt_cli.finetune.evaluate import evaluate
from mem_gpt_cli.finetune.row import FINETUNE_COLUMNS
from mem_gpt_cli.finetune.rows import Order, padded
from mem_gpt_cli.finetune.tokens import Encoded
from mem_gpt_cli.loss.targets import IGNORED
from mem_gpt_cli.model import tiny
from mem_gpt_cli.recipe import Recipe, recipe_of
from mem_gpt_cli.workload import Unobserved
from mem_gpt_cli.workload.training import Batch, Training

CPU = torch.device("cpu")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(["finetune", *SIZES, *arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny.folder())


@pytest.fixture
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny.folder(), dtype=torch.float32)


def recipe(**sections: Any) -> Recipe:
    return recipe_of({"task": "training", **sections})


def test_a_run_is_the_plain_loop_with_those_batches_and_says_what_it_took(
    run: Run, tokenizer: Any, model: Any, tmp_path: Path
) -> None:
    """The same weights, to the bit, as from a loop of transformers and torch alone."""
    from transformers import AutoModelForCausalLM, get_scheduler

    out = tmp_path / "run"
    code, printed, _ = run("--out", str(out), "--lr", "1e-3", "--json", "--csv", str(tmp_path / "runs.csv"))
    assert code == 0
    account = json.loads(printed)
    asked = recipe(
        workload={"batch": 2, "seq": 32}, finetune={"data": "sample", "steps": 3, "evaluate_tokens": 256}
    )
    data = load_data(asked, tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, foreach=False)
    schedule = get_scheduler("linear", optimizer, 0, 3)
    order, losses = Order(len(data.training), 0), []
    assert data.held_out is not None
    before = evaluate(model, asked, data.held_out, CPU).perplexity
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model.train()
    for step in range(3):
        rows = order.take(2 * step, 2)
        tokens, labels = data.training.tokens[rows].long(), data.training.labels[rows].long()
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    torch.set_num_threads(threads)
    trained = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32)
    for name, parameter in trained.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in log] == losses
    assert [line["lr"] for line in log] == pytest.approx([1e-3, 2e-3 / 3, 1e-3 / 3])
    assert account["loss"] == {"first": losses[0], "last": losses[-1]}
    assert account["perplexity"]["before"] == pytest.approx(before, rel=1e-5)
    assert account["perplexity"]["after"] == pytest.approx(
        evaluate(model, asked, data.held_out, CPU).perplexity, rel=1e-5
    )
    assert account["memory"]["predicted_by"] == "trace"
    assert account["memory"]["measured_bytes"] == pytest.approx(
        account["memory"]["predicted_bytes"], rel=1e-3
    )
    assert json.loads((out / "result.json").read_text()) == account
    (row,) = csv.DictReader((tmp_path / "runs.csv").open())
    assert tuple(row) == FINETUNE_COLUMNS
    assert row["method"] == "full"
    assert float(row["perplexity_after"]) == account["perplexity"]["after"]


def test_lora_trains_the_factors_alone_and_leaves_them_in_pefts_format(run: Run, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "run"
    code, printed, err = run("--out", str(out), "--adapters", "lora", "--lr", "1e-3")
    assert code == 0, err
    assert re.search(r"^\[3/3\] .*, process grown by .*B, tensors predicted .*B$", err, re.MULTILINE)
    assert f"the adapter is in {out / 'adapter'}" in printed
    assert "held-out tokens" in printed
    factors = load_file(out / "adapter" / "adapter_model.safetensors")
    account = json.loads((out / "result.json").read_text())
    assert sum(tensor.numel() for tensor in factors.values()) == account["parameters_trained"] < 500_000
    assert any(tensor.abs().max() > 0 for name, tensor in factors.items() if "lora_B" in name)


def test_the_shares_of_unlike_batches_make_the_mean_over_all_labels(model: Any) -> None:
    """A step over two unlike micro-batches has the gradients of one over all rows."""
    encoded = [
        Encoded(list(range(5, 5 + length)), [at >= first for at in range(length)])
        for length, first in ((16, 2), (16, 12), (9, 1), (16, 8))
    ]
    rows = padded(encoded, 16, 0)
    whole, parts = torch.arange(4), torch.arange(4).split(2)
    one_go = recipe(workload={"batch": 4, "seq": 16}, optimizer={"name": "sgd"})
    found = []
    for chosen in ([whole], parts):
        training = Training(one_go)
        training.prepare(model, Unobserved())
        gradients: list[torch.Tensor] = []
        training.before_update = lambda kept=gradients: kept.extend(
            p.grad.clone() for p in model.parameters()
        )
        training.optimizer.step = lambda: None  # type: ignore[method-assign,assignment]
        data = list(batches(rows, chosen, 1 / rows.learnt(whole), one_go, CPU))
        loss = training.step(model, data, Unobserved())
        found.append((float(loss.detach()), gradients))
    (loss, gradients), (other, others) = found
    assert loss == pytest.approx(other, rel=1e-5)
    for one, two in zip(gradients, others, strict=True):
        assert torch.allclose(one, two, atol=1e-5, rtol=1e-3)


UNLIKE = [Encoded(list(range(9, 20)), [True] * 11), Encoded(list(range(40, 56)), [True] * 16)]


def test_padding_at_the_end_changes_nothing_of_what_is_learnt(model: Any) -> None:
    """Padded rows, which go without a mask, have the loss and the gradients of rows with one."""
    rows = padded(UNLIKE, 16, 0)
    (batch,) = batches(rows, [torch.arange(2)], 1.0, recipe(workload={"batch": 2, "seq": 16}), CPU)
    assert batch.mask is None
    found = []
    for given in ({}, {"attention_mask": (torch.arange(16) < rows.lengths[:, None]).long()}):
        model.zero_grad()
        loss = model(input_ids=batch.tokens, labels=batch.labels, **given).loss
        loss.backward()
        found.append((float(loss), [p.grad.clone() for p in model.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for one, two in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_lsh_is_told_what_is_padding() -> None:
    asked = recipe(workload={"batch": 2, "seq": 16}, attention={"backend": "lsh"})
    (batch,) = batches(padded(UNLIKE, 16, 0), [torch.arange(2)], 1.0, asked, CPU)
    assert batch.mask is not None
    assert batch.mask.sum(1).tolist() == [11, 16]


def test_perplexity_is_that_of_the_labels(model: Any) -> None:
    encoded = [Encoded(list(range(9, 25)), [at > 5 for at in range(16)]), Encoded([3, 4, 5], [True] * 3)]
    rows = padded(encoded, 16, 0)
    found = evaluate(model, recipe(workload={"batch": 1, "seq": 16}), rows, CPU)
    losses = []
    for row, label in zip(rows.tokens.long(), rows.labels.long(), strict=True):
        log_p = model(input_ids=row[None]).logits[0].log_softmax(-1)
        losses += [-float(log_p[at - 1, label[at]]) for at in range(1, 16) if int(label[at]) != IGNORED]
    assert found.tokens == len(losses) == 12
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)


def test_a_folder_is_of_one_run(run: Run, tmp_path: Path) -> None:
    assert run()[2] == (
        "memgpt: error: a fine-tune needs a folder for its result: add --out FOLDER, or --dry-run\n"
    )
    (tmp_path / "notes.txt").write_text("mine")
    code, _, err = run("--out", str(tmp_path))
    assert code == 2
    assert "holds 'notes.txt', and no run" in err


def test_memory_that_runs_out_is_one_sentence_with_phase_and_prediction(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")

    monkeypatch.setattr("mem_gpt_cli.workload.training.language_modelling_loss", no_memory)
    monkeypatch.setattr("mem_gpt_cli.finetune.job.try_to_predict", lambda recipe: _predicted(recipe))
    code, _, err = run("--out", str(tmp_path / "run"))
    assert code == 3
    last = err.splitlines()[-1]
    assert last.startswith("memgpt: error: out of memory in forward: ")
    assert last.endswith("were predicted")


def _predicted(recipe: Recipe) -> Any:
    from mem_gpt_cli.estimate import estimate
    from mem_gpt_cli.finetune.prediction import Prediction

    return Prediction(estimate(recipe), None, "by formula")


def test_a_loss_that_is_no_number_ends_the_run(run: Run, tmp_path: Path) -> None:
    code, _, err = run("--out", str(tmp_path / "run"), "--lr", "1e30")
    assert code == 3
    assert "the loss is nan at step" in err
    assert "lower optimizer.lr" in err


def test_batches_that_are_handed_over_count_as_much_as_they_say(model: Any) -> None:
    tokens = torch.arange(32).view(2, 16)
    asked = recipe(workload={"batch": 2, "seq": 16, "accumulate": 2}, optimizer={"name": "sgd"})
    training = Training(asked)
    training.prepare(model, Unobserved())
    with torch.no_grad():
        losses = [float(model(input_ids=row[None], labels=row[None]).loss) for row in tokens]
    data = [Batch(row[None], row[None], share=share) for row, share in zip(tokens, (0.25, 0.75), strict=True)]
    loss = training.step(model, data, Unobserved())
    assert float(loss) == pytest.approx(0.25 * losses[0] + 0.75 * losses[1], rel=1e-5)
