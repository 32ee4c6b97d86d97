"""The command as a user meets it: how it starts, how it fails, what it prints where."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from mem_gpt_cli import errors
from mem_gpt_cli._version import __version__
from mem_gpt_cli.cli import main as cli
from mem_gpt_cli.cli.options import FLAGS, Request, takes_recipe
from mem_gpt_cli.report.json import from_dict

MEMGPT = [sys.executable, "-m", "mem_gpt_cli.cli.main"]
Captured = pytest.CaptureFixture[str]


def environment(**more: str) -> dict[str, str]:
    shaping = ("COLUMNS", "LINES", "TERM", "NO_COLOR", "FORCE_COLOR", cli.DEBUG)
    return {key: value for key, value in os.environ.items() if key not in shaping} | more


def memgpt(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own, its output in pipes."""
    return subprocess.run(
        [*MEMGPT, *arguments], capture_output=True, text=True, timeout=120, env=environment(**more)
    )


def on_a_terminal(*arguments: str, **more: str) -> str:
    """The command's stdout on a pseudo-terminal of 80 columns."""
    mine, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 80))
    child = subprocess.Popen(
        [*MEMGPT, *arguments], stdout=its, stderr=subprocess.DEVNULL, env=environment(**more)
    )
    os.close(its)
    read = b""
    try:
        while piece := os.read(mine, 65536):
            read += piece
    except OSError:  # the other end is closed: Linux says so with EIO
        pass
    os.close(mine)
    assert child.wait(60) == 0
    return read.decode().replace("\r\n", "\n")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> Callable[..., Any]:
    """The command in this process, which pays for torch once: its output, 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: str) -> Any:
        assert cli.run(arguments) == 0
        return capsys.readouterr()

    return run


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Make `memgpt estimate` end with this exception."""

    def command() -> None:
        raise error

    single = typer.Typer()
    single.command("estimate")(command)
    monkeypatch.setattr(cli, "_load", lambda _: typer.main.get_command(single))


def test_version(capsys: Captured) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"memgpt {__version__}\n"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (errors.UsageError("no such model"), 2, ["memgpt: error: no such model"]),
        (errors.UnsupportedError("cannot trace it"), 2, ["memgpt: error: cannot trace it"]),
        (errors.GateError("does not fit"), 3, ["memgpt: error: does not fit"]),
        (errors.EnvironmentUnavailableError("no GPU"), 4, ["memgpt: error: no GPU"]),
        (
            errors.MissingExtraError("plotly", "plot", "A plot"),
            4,
            [
                "memgpt: error: A plot needs the package 'plotly', which is not installed: "
                "install it with `pip install 'mem-gpt-cli[plot]'`"
            ],
        ),
        (errors.IncompleteSweepError("3 of 9 cells"), 5, ["memgpt: error: 3 of 9 cells"]),
        (
            errors.RecipeErrors(
                [errors.RecipeError("a: one", errors.Position("r.yaml", 2, 3)), errors.RecipeError("b: two")]
            ),
            2,
            ["memgpt: error: r.yaml:2:3: a: one", "memgpt: error: b: two"],
        ),
        (KeyboardInterrupt(), 130, []),
        (typer.Exit(7), 7, []),
    ],
)
def test_each_failure_ends_with_its_code_and_its_sentences(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, error: BaseException, code: int, said: list[str]
) -> None:
    raising(monkeypatch, error)
    assert cli.run(["estimate"]) == code
    captured = capsys.readouterr()
    assert captured.err.splitlines() == said
    assert captured.out == ""


@pytest.mark.parametrize("asked", [False, True])
def test_a_bug_is_called_one_and_shows_its_traceback_only_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, asked: bool
) -> None:
    monkeypatch.setenv(cli.DEBUG, "0")  # noted by monkeypatch, which sets back what --debug does
    raising(monkeypatch, KeyError("lost\nkey"))
    assert cli.run(["--debug", "estimate"] if asked else ["estimate"]) == 1
    said = capsys.readouterr().err
    assert "memgpt: error: this is a bug in memgpt: KeyError: 'lost\\nkey'" in said
    assert ("Traceback" in said) is asked
    assert ("run again with MEMGPT_DEBUG=1" in said) is not asked


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["estimate", "--modl", "gpt2"], "--model"),
        (["estimat"], "Did you mean 'estimate'"),
        (["estimate", "--dtype", "fp31"], "did you mean 'fp32'"),
        (["estimate", "--batch", "two"], "whole number"),
        (["estimate", "--batch", "-3"], "greater than 0"),
        (["estimate", "--set", "workload.batc=1"], "workload.batch"),
        (["estimate", "a.yaml", "--recipe", "b.yaml"], "two recipes"),
        (["estimate", "no-such-recipe"], "neither a file nor a shipped recipe"),
        (["estimate", "--model", "gtp2"], "did you mean gpt2"),
        (["estimate", "--full-depth"], "--trace"),
        (["estimate", "--plot", "x.png"], "--curve"),
        (["estimate", "--curve", "seq", "--trace"], "closed form"),
        (["estimate", "--curve", "seq", "--budget", "1MiB"], "--budget"),
        (["estimate", "--curve", "seq", "--plot", "x.txt"], ".png"),
        (["estimate", "--budget", "24G"], "24GiB"),
    ],
)
def test_a_wrong_request_is_one_sentence_with_the_way_out(
    capsys: Captured, arguments: list[str], said: str
) -> None:
    assert cli.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert captured.err.startswith("memgpt: error: ")
    assert len(captured.err.splitlines()) == 1


def test_nothing_asked_shows_the_help() -> None:
    done = memgpt()
    assert done.returncode == 2
    assert "estimate" in done.stdout + done.stderr
    assert "memgpt: error" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["estimate", "--model", "gpt2"], ["estimate", "--json"]])
def test_a_reader_that_hangs_up_is_no_error(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*MEMGPT, *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        env=environment(),
    )
    os.close(writing)
    assert done.returncode == 141
    assert done.stderr == ""


def test_flags_are_weaker_than_set_and_stronger_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: {name: gpt2, dtype: fp16}\nworkload: {batch: 2, seq: 64}\n")
    seen: list[Request] = []

    @takes_recipe
    def command(request: Request) -> None:
        seen.append(request)

    single = typer.Typer()
    single.command()(command)
    run = typer.main.get_command(single)
    run.main([str(path), "--batch", "3", "--seq", "32", "--set", "workload.seq=48"], standalone_mode=False)
    recipe = seen[0].recipe()
    assert (recipe.model.dtype, recipe.workload.batch, recipe.workload.seq) == ("fp16", 3, 48)
    assert seen[0].flags == {"workload.batch": 3, "workload.seq": 32}
    run.main(["--recipe", str(path), "--json"], standalone_mode=False)
    assert seen[1].source == str(path)
    assert seen[1].json


def test_every_flag_reaches_the_key_that_it_stands_for() -> None:
    values = {
        "dtype": "bf16",
        "task": "training",
        "quantization": "nf4",
        "attention": "eager",
        "kv-cache": "none",
    }
    values |= {"checkpointing": "full", "adapters": "lora", "optimizer": "sgd", "loss": "chunked"}
    values |= {"model": "gpt2", "device": "cuda:1", "budget": "2GiB", "batch": "3", "seq": "7"}
    given = {FLAGS[flag]: value for flag, value in values.items()}
    assert len(given) == len(FLAGS) - 2, "the two lengths of inference do not go with a training"
    seen: list[Request] = []
    single = typer.Typer()
    single.command()(takes_recipe(lambda request: seen.append(request)))
    arguments = [part for flag, value in values.items() for part in (f"--{flag}", value)]
    typer.main.get_command(single).main(arguments, standalone_mode=False)
    data = seen[0].recipe().model_dump(mode="json")
    for key, value in given.items():
        found = data
        for part in key.split("."):
            found = found[part]
        assert str(found) == {"2GiB": str(2**31)}.get(value, value), key


def test_json_prints_one_report_and_nothing_else(here: Callable[..., Any]) -> None:
    done = here("estimate", "--model", "gpt2", "--seq", "2048", "--json")
    report = from_dict(json.loads(done.out))
    assert report.model.parameters == 124_439_808
    assert report.lens == "estimate"
    assert "warning" in done.err, "GPT-2's positions end at 1,024"
    assert "1,024" in report.warnings[0]


def test_csv_appends_a_row_a_run(here: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for batch in ("1", "2"):
        here("estimate", "--model", "gpt2", "--batch", batch, "--csv", str(path))
    header, *rows = path.read_text().splitlines()
    assert header.startswith("schema_version,lens,status,model,")
    assert [row.split(",")[:4] for row in rows] == [["1", "estimate", "ok", "gpt2"]] * 2


def test_a_budget_below_the_peak_shows_the_table_and_fails_the_gate(here: Callable[..., Any]) -> None:
    done = memgpt("estimate", "--model", "gpt2", "--budget", "100MiB")
    assert done.returncode == 3
    assert "allocated" in done.stdout
    assert "does not fit" in done.stderr
    assert "100 MiB" in done.stderr
    here("estimate", "--model", "gpt2", "--budget", "100GiB")


def test_a_trace_stands_beside_the_formula_and_json_is_the_traces(here: Callable[..., Any]) -> None:
    shown = here("estimate", "tiny-generate", "--trace").out
    headings = next(line for line in shown.splitlines() if line.split()[:2] == ["(formula)", "(trace)"])
    assert "(trace - formula)" in headings
    assert "…" not in shown
    report = from_dict(json.loads(here("estimate", "tiny-generate", "--trace", "--json").out))
    assert report.lens == "trace"


def test_a_curve_has_a_point_a_doubling_in_the_table_and_in_json(
    here: Callable[..., Any], tmp_path: Path
) -> None:
    picture = tmp_path / "curve.svg"
    arguments = ("estimate", "--model", "gpt2", "--attention", "eager", "--curve", "seq")
    shown = here(*arguments, "--plot", str(picture))
    assert "quadratically" in next(line for line in shown.out.splitlines() if "attention scores" in line)
    assert picture.read_text().startswith("<?xml")
    points = json.loads(here(*arguments, "--json").out)["points"]
    assert [point["value"] for point in points] == [128 * 2**power for power in range(7)]
    assert all(from_dict(point["report"]).lens == "estimate" for point in points)


def test_profile_sets_measured_beside_predicted(here: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    small = ("tiny-generate", "--set", "workload.prompt_tokens=8", "--set", "workload.new_tokens=3")
    shown = here("profile", *small, "--csv", str(path))
    lines = shown.out.splitlines()
    assert any(line.split()[:3] == ["(formula)", "(trace)", "measured"] for line in lines)
    assert any(re.match(r"decode +[0-9.]+ m?s ", line) for line in lines)
    assert "…" not in shown.out
    assert "\x1b" not in shown.err, "no live bar where stderr is no terminal"
    assert path.read_text().splitlines()[1].startswith("1,profile,ok,memgpt-tiny,")
    report = from_dict(json.loads(here("profile", *small, "--json").out))
    assert report.lens == "profile"
    assert report.speed is not None


GPT2_XL = ("estimate", "--model", "gpt2-xl", "--seq", "1024", "--task", "training")


def test_a_terminal_of_80_columns_gets_whole_numbers_in_color() -> None:
    shown = on_a_terminal(*GPT2_XL, TERM="xterm-256color")
    assert "\x1b[" in shown
    assert "…" not in shown


@pytest.mark.parametrize("look", [{"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}])
def test_a_plain_terminal_gets_80_columns_without_color(look: dict[str, str]) -> None:
    shown = on_a_terminal(*GPT2_XL, **look)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", shown)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert "…" not in plain
    assert max(len(line) for line in plain.splitlines()) <= 80


def test_a_pipe_is_wide_and_columns_wins() -> None:
    wide = memgpt("recipes", "list").stdout
    narrow = memgpt("recipes", "list", COLUMNS="60").stdout
    assert max(map(len, wide.splitlines())) > 80
    assert max(map(len, narrow.splitlines())) <= 60
    assert "\x1b" not in wide
