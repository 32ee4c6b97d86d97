"""``memgpt generate``: the real command on memgpt-tiny."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mem_gpt_cli as memgpt
from mem_gpt_cli.cli import main as cli
from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.model import smollm2, tiny
from mem_gpt_cli.report.jsonl import append_object, read_objects

PROMPT = "The people of the United States"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str, new: int = 8) -> tuple[int, str, str]:
        sizes = ("--new-tokens", str(new)) if new else ()
        code = cli.run(["generate", *arguments, *sizes, "--set", "device.threads=1"])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def by_transformers() -> Callable[[str, int], str]:
    """transformers' own greedy generation, the prompt cut off."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny.folder(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny.folder())

    def generate(prompt: str, new: int) -> str:
        inputs = tokenizer(prompt, return_tensors="pt")
        made = model.generate(**inputs, max_new_tokens=new, do_sample=False)[0]
        return str(tokenizer.decode(made[inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    return generate


def test_the_text_is_transformers_own_and_stdout_holds_nothing_else(
    run: Run, by_transformers: Callable[[str, int], str]
) -> None:
    code, out, err = run("--prompt", PROMPT, new=12)
    assert code == 0
    assert out == by_transformers(PROMPT, 12) + "\n"
    speed, *memory = err.splitlines()
    assert speed.startswith("1 of 1 texts, 12 tokens in ")
    assert speed.endswith(" tokens/s")
    assert memory[0].startswith("memory: measured at its peak: the process ")
    assert memory[-1].startswith("        `memgpt estimate` predicts tensors of 17.")
    assert all(len(line) <= 80 for line in memory)


@pytest.mark.parametrize(
    "options",
    [
        ["--kv-cache", "none"],
        ["--kv-cache", "static"],
        ["--kv-cache", "paged"],
        ["--attention", "eager"],
        ["--attention", "flash", "--set", "model.dropout=0.0"],
        ["--batch", "3"],
    ],
    ids=" ".join,
)
def test_exact_options_change_no_token(
    options: list[str], run: Run, by_transformers: Callable[[str, int], str]
) -> None:
    prompts = [PROMPT, "My fellow citizens,", "Of the Treasury of the United States, the Secretary reports"]
    asked = [word for prompt in prompts for word in ("--prompt", prompt)]
    code, out, err = run(*asked, "--json", *options)
    assert code == 0, err
    answers = {answer["prompt"]: answer["text"] for answer in lines(out)}
    assert answers == {prompt: by_transformers(prompt, 8) for prompt in prompts}


@pytest.mark.parametrize(
    "options",
    [
        ["--quantization", "int8"],
        ["--quantization", "int4"],
        ["--quantization", "nf4"],
        ["--kv-cache", "quantized"],
        ["--kv-cache", "sliding", "--set", "kv_cache.window=4"],
        ["--attention", "lsh"],
        ["--dtype", "bf16"],
    ],
    ids=" ".join,
)
def test_inexact_options_work_too(options: list[str], run: Run) -> None:
    code, out, err = run("--prompt", PROMPT, "--json", *options)
    assert code == 0, err
    (answer,) = lines(out)
    assert answer["tokens"] == 8
    assert answer["text"]


def test_what_is_streamed_is_the_text() -> None:
    model = memgpt.load({"model.name": "memgpt-tiny", "device.threads": 1})
    pieces: list[str] = []
    (completion,) = model.complete(model.read([PROMPT]), lambda _, piece: pieces.append(piece))
    assert len(pieces) > 10
    assert "".join(pieces) == completion.text
    assert PROMPT + completion.text == model.generate(PROMPT)


def test_a_seed_makes_the_same_text_again_and_another_seed_another(run: Run) -> None:
    def text(seed: int, *more: str) -> str:
        options = ("--temperature", "0.9", "--top-k", "50", "--top-p", "0.95", "--seed", str(seed))
        code, out, _ = run("--prompt", PROMPT, *options, *more, new=16)
        assert code == 0
        return out

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) == 4
    assert text(1) == text(1, "--kv-cache", "none")


def test_company_does_not_change_what_is_sampled(run: Run) -> None:
    prompts = ("--prompt", "My fellow citizens,", "--prompt", PROMPT, "--temperature", "1", "--json")
    apart = lines(run(*prompts, "--batch", "1")[1])
    together = lines(run(*prompts, "--batch", "2")[1])
    assert [(a["text"], a["seed"]) for a in apart] == [(a["text"], a["seed"]) for a in together]
    assert [answer["seed"] for answer in apart] == [0, 1]


@pytest.mark.parametrize("option", [["--top-k", "1"], ["--top-p", "0.000001"]])
def test_limits_down_to_one_token_are_greedy(option: list[str], run: Run) -> None:
    greedy = run("--prompt", PROMPT)[1]
    assert run("--prompt", PROMPT, "--temperature", "5", *option)[1] == greedy
    assert run("--prompt", PROMPT, "--temperature", "5")[1] != greedy


def test_a_repetition_penalty_ends_repetitions(run: Run) -> None:
    def different(*options: str) -> int:
        return len(set(run("--prompt", PROMPT, *options, new=32)[1].split()))

    assert different("--repetition-penalty", "1.5") > different() + 5


def test_a_text_ends_at_its_end() -> None:
    model = memgpt.load({"model.name": "memgpt-tiny", "device.threads": 1, "workload.new_tokens": 8})
    prompts = model.read([PROMPT])
    (whole,) = model.complete(prompts)
    assert whole.finish_reason == "length"
    config: Any = model.model.generation_config
    config.eos_token_id = [whole.tokens[3]]
    (cut,) = model.complete(prompts)
    assert cut.finish_reason == "stop"
    assert cut.tokens == whole.tokens[: whole.tokens.index(whole.tokens[3]) + 1]


def test_a_row_that_ended_leaves_the_others_alone() -> None:
    recipe = {"model.name": "memgpt-tiny", "device.threads": 1, "workload.batch": 2}
    model = memgpt.load({**recipe, "sampling.temperature": 1.0})
    prompts = model.read([PROMPT, "My fellow citizens,"])
    alone = {completion.prompt.index: completion for completion in model.complete(prompts)}
    ends = set(alone[0].tokens[:6]) - set(alone[1].tokens)
    assert ends
    config: Any = model.model.generation_config
    config.eos_token_id = sorted(ends)
    again = list(model.complete(prompts))
    assert [completion.prompt.index for completion in again] == [0, 1]
    assert again[0].finish_reason == "stop"
    assert again[1].tokens == alone[1].tokens


def test_prompts_come_from_a_file_and_answers_go_to_one(run: Run, tmp_path: Path) -> None:
    asked, out = tmp_path / "asked.jsonl", tmp_path / "new" / "out.jsonl"
    asked.write_text('{"prompt": "My fellow", "id": "a7", "note": 3}\n\n"Grüße"\n', encoding="utf-8")
    code, shown, err = run("--prompts", str(asked), "--out", str(out))
    assert code == 0, err
    first, second = read_objects(out)
    assert (first["id"], first["prompt"], first["index"]) == ("a7", "My fellow", 0)
    assert (second["prompt"], second["index"]) == ("Grüße", 1)
    assert "id" not in second
    assert first["finish_reason"] in ("stop", "length")
    assert first["tokens_per_s"] == pytest.approx(first["tokens"] / first["seconds"], rel=1e-2)
    assert shown == f"{first['text']}\n{second['text']}\n"
    assert "[0] My fellow" in err


def test_resume_leaves_out_what_is_answered_and_mends_a_torn_line(run: Run, tmp_path: Path) -> None:
    asked, out = tmp_path / "asked.jsonl", tmp_path / "out.jsonl"
    asked.write_text('"My fellow"\n"The people"\n"The Congress"\n', encoding="utf-8")
    assert run("--prompts", str(asked), "--out", str(out))[0] == 0
    whole = out.read_bytes()
    first, second, _ = whole.splitlines(keepends=True)
    out.write_bytes(first + second[:20])
    code, shown, err = run("--prompts", str(asked), "--out", str(out), "--resume", "--json")
    assert code == 0
    assert "1 of 3 prompts are answered" in err
    assert [answer["prompt"] for answer in lines(shown)] == ["The people", "The Congress"]
    timeless = [(line["index"], line["text"], line["seed"]) for line in map(json.loads, whole.splitlines())]
    assert [(line["index"], line["text"], line["seed"]) for line in read_objects(out)] == timeless
    assert run("--prompts", str(asked), "--out", str(out), "--resume", "--json")[1] == ""
    other = run("--prompts", str(asked), "--out", str(out), "--resume", "--json", "--seed", "9")[1]
    assert len(lines(other)) == 3


def test_stdin_is_a_prompt_or_a_file_of_them(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run("--prompt", PROMPT)[1]
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT + "\n"))
    assert run("--prompt", "-")[1] == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps({"prompt": PROMPT}) + "\n"))
    assert run("--prompts", "-")[1] == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompt"),
        ("\n\n", "holds no prompt"),
        ('"a"\n{"prompt": "b"\n', ":2: is no JSON"),
        ('{"text": "b"}\n', ":1: holds no prompt"),
        ('{"prompt": 7}\n', ":1: holds no prompt"),
        ('"a"\n\n{"prompt": ""}\n', ":3: the prompt is empty"),
    ],
)
def test_bad_lines_are_named(content: str, message: str, run: Run, tmp_path: Path) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text(content, encoding="utf-8")
    code, out, err = run("--prompts", str(asked))
    assert (code, out) == (2, "")
    assert err.startswith(f"memgpt: error: {asked}")
    assert message in err
    assert len(err.splitlines()) == 1


def test_all_bad_lines_are_named_at_once(run: Run, tmp_path: Path) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt" "a"}\n"b"\n7\n""\n', encoding="utf-8")
    code, out, err = run("--prompts", str(asked))
    assert (code, out) == (2, "")
    first, second, third = err.splitlines()
    assert first == f"memgpt: error: {asked}:1: is no JSON: Expecting ':' delimiter in column 11"
    assert f"{asked}:3: holds no prompt" in second
    assert f"{asked}:4: the prompt is empty" in third


def test_a_pool_is_checked_against_the_prompts_not_the_made_up_workload(run: Run) -> None:
    paged = ("--kv-cache", "paged", "--set", "kv_cache.pages=4")
    code, out, err = run("--prompt", PROMPT, *paged)
    assert code == 0, err
    assert out == run("--prompt", PROMPT)[1]
    code, out, err = run("--prompt", "word " * 80, *paged)
    assert (code, out) == (2, "")
    assert "the longest request keeps" in err
    assert "a pool of 4 can never finish it" in err


def test_a_budget_is_held_before_anything_runs(run: Run) -> None:
    code, out, err = run("--prompt", PROMPT, "--budget", "1MiB")
    assert (code, out) == (3, "")
    assert err.startswith("memgpt: error: it does not fit: ")
    assert " MiB more than the budget of 1.00 MiB" in err
    assert len(err.splitlines()) == 1
    assert run("--prompt", PROMPT, "--budget", "1GiB")[0] == 0


def test_resume_takes_no_answer_of_another_model_or_other_options(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    asking = ("--prompt", PROMPT, "--out", str(out), "--resume", "--json")
    first = lines(run(*asking)[1])
    assert len(first) == 1
    assert run(*asking, "--batch", "2", "--kv-cache", "dynamic")[1] == ""  # makes the same text
    for options in (["--quantization", "int8"], ["--temperature", "1"], ["--kv-cache", "none"]):
        code, shown, err = run(*asking, *options)
        assert (code, len(lines(shown))) == (0, 1), err
        assert "0 of 1 prompts are answered" in err
        assert "made by another model or with other options" in err
        assert run(*asking, *options)[1] == ""
    made_by = [line["made_by"] for line in read_objects(out)]
    assert len(set(made_by)) == len(made_by) == 4


def test_what_lenses_say_of_pooled_heads_is_said_here(run: Run) -> None:
    code, _, err = run("--prompt", PROMPT, "--set", "attention.kv_heads=1", new=2)
    assert code == 0, err
    assert "warning: " in err
    assert "uptrain" in err


def test_a_package_that_does_not_load_is_named(tmp_path: Path) -> None:
    """One after the other, in a process that has imported neither of them before."""
    packages = {"torchao": "int4", "bitsandbytes": "nf4"}
    for package in packages:
        (tmp_path / package / package).mkdir(parents=True)
        init = tmp_path / package / package / "__init__.py"
        init.write_text('raise ImportError("libnone.so is missing")\n')
    code = f"""
import sys
from mem_gpt_cli.cli.main import run
codes = []
for package, scheme in {packages}.items():
    sys.path.insert(0, {str(tmp_path)!r} + "/" + package)
    codes.append(run(["generate", "--prompt", "x", "--quantization", scheme]))
    del sys.path[0]
print(codes)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    assert ended.stdout == "[4, 4]\n"
    for package, said in zip(packages, ended.stderr.splitlines(), strict=True):
        assert said.startswith(f"memgpt: error: {package} ")
        assert "libnone.so is missing" in said


def test_save_says_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "saved"
    options = ["save", "--model", "memgpt-tiny", "--out", str(folder)]
    assert cli.run([*options, "--batch", "2"]) == 2
    assert "No such option: --batch" in capfd.readouterr().err
    command = [sys.executable, "-m", "mem_gpt_cli", *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"memgpt-tiny is in {folder}, ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "nothing to go on from: give --prompt TEXT"),
        (["--prompt", ""], 2, "--prompt is empty"),
        (["--prompt", "a", "--prompts", "b"], 2, "both given"),
        (["--prompts", "nowhere.jsonl"], 2, "cannot read nowhere.jsonl: no such file"),
        (["--prompt", "a", "--csv", "x.csv"], 2, "use --out"),
        (["--prompt", "a", "--resume"], 2, "add --out FILE"),
        (["--prompt", "a", "--seq", "64"], 2, "workload.seq: the prompts have lengths of their own"),
        (["--prompt", "a", "--set", "workload.prompt_tokens=4"], 2, "workload.prompt_tokens: the prompts"),
        (["--prompt", "a", "--task", "training"], 2, "a training generates no text"),
        (["--prompt", "a", "--chat"], 2, "has no chat template"),
        (
            ["--prompt", "a", "--temperature", "warm"],
            2,
            "--temperature warm: sampling.temperature: must be",
        ),
        (["--prompt", "a", "--temperature", "-1"], 2, "must be at least 0, not -1"),
        (["--prompt", "a", "--top-k", "3"], 2, "changes nothing at temperature 0"),
        (["--prompt", "a", "--top-p", "2", "--temperature", "1"], 2, "must be at most 1"),
        (["--prompt", "a", "--model", "gpt2", "--set", "model.config.n_layer=1"], 4, "gpt2 has no tokenizer"),
        (["--prompt", "word " * 1100], 2, "the 1024 positions that memgpt-tiny has learned"),
        (
            ["--prompt", "a", "--kv-cache", "static", "--set", "kv_cache.max_tokens=4"],
            2,
            "kv_cache.max_tokens",
        ),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    arguments: list[str], code: int, message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended, out, err = run(*arguments, new=0)
    assert (ended, out) == (code, "")
    assert message in err
    assert err.startswith("memgpt: error: ")
    assert "Traceback" not in err


def test_an_interrupt_ends_with_130_and_what_was_made_stays(tmp_path: Path) -> None:
    asked, out = tmp_path / "asked.jsonl", tmp_path / "out.jsonl"
    asked.write_text('"My fellow"\n' * 400, encoding="utf-8")
    command = [sys.executable, "-m", "mem_gpt_cli", "generate", "--prompts", str(asked), "--out", str(out)]
    with subprocess.Popen(
        [*command, "--new-tokens", "8", "--set", "device.threads=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        ends = time.monotonic() + 120
        while len(read_objects(out)) < 2 and time.monotonic() < ends:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "of 400 texts" in err
    assert f"they are in {out}: the same command with --resume goes on" in " ".join(err.split())
    made = read_objects(out)
    assert 2 <= len(made) < 400
    assert [line["index"] for line in made] == list(range(len(made)))


def test_lines_that_are_no_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    append_object(path, {"a": "one\ntwo", "ü": 1})
    assert read_objects(path) == [{"a": "one\ntwo", "ü": 1}]
    path.write_text("[1]\n", encoding="utf-8")
    with pytest.raises(UsageError, match=":1: is no JSON object"):
        read_objects(path)


@pytest.mark.smollm2
@pytest.mark.skipif(smollm2.installed_file() is None, reason="the weights are not installed: make smollm2")
def test_an_instruct_model_answers_a_question(run: Run) -> None:
    question = "What is the capital of France? Answer in one word."
    code, out, err = run("--model", "smollm2-135m", "--chat", "--prompt", question, "--json", new=24)
    assert code == 0, err
    (answer,) = lines(out)
    assert "Paris" in answer["text"]
    assert answer["finish_reason"] == "stop"
    assert "<|" not in answer["text"]
