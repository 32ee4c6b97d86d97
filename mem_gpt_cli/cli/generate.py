"""``memgpt generate``: text for prompts, by the model and with the options of a recipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mem_gpt_cli.cli import console
from mem_gpt_cli.cli.options import Request, takes_recipe
from mem_gpt_cli.cli.prompts import Asked, asked_prompts
from mem_gpt_cli.cli.startup import hush_libraries
from mem_gpt_cli.errors import MemgptError, UsageError
from mem_gpt_cli.report.sizes import render_bytes

if TYPE_CHECKING:
    from mem_gpt_cli.profile.watch import Levels
    from mem_gpt_cli.recipe.schema import Recipe
    from mem_gpt_cli.report.model import Phase
    from mem_gpt_cli.workload.generation import Completion, Prompt
    from mem_gpt_cli.workload.text_model import TextModel

SAMPLING_FLAGS = {
    "temperature": "sampling.temperature",
    "top-k": "sampling.top_k",
    "top-p": "sampling.top_p",
    "repetition-penalty": "sampling.repetition_penalty",
    "seed": "workload.seed",
}


@takes_recipe(flags=SAMPLING_FLAGS)
def generate(
    request: Request,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="What to go on from; - is stdin; may be repeated.", metavar="TEXT"),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            "--prompts",
            help='A file of prompts as JSON Lines, {"prompt": "..."} each; - is stdin.',
            metavar="FILE",
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Put each prompt into the model's chat template.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Append one JSON object a prompt to this file.", metavar="FILE"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="With --out: leave out the prompts that the file has answers to.")
    ] = False,
) -> None:
    """Generate text, with every option of a recipe: quantization, attention, cache.

    Prints the new text as it comes, or with --json one object a prompt; speed and memory go to stderr.
    """
    if request.csv:
        raise UsageError("--csv belongs to commands that answer with a row: use --out FILE.jsonl")
    if resume and out is None:
        raise UsageError("--resume goes on with a file of answers: add --out FILE")
    hush_libraries()
    recipe = request.recipe()
    if recipe.task == "training":
        raise UsageError("a training generates no text: add --task inference")
    asked = asked_prompts(prompt or (), prompts)
    if out is not None and resume:
        asked = _without_answered(asked, recipe, out)
    if asked:
        _run(Answers(request.json, out, len(asked)), recipe, asked, chat)


def _run(answers: Answers, recipe: Recipe, asked: Sequence[Asked], chat: bool) -> None:
    from mem_gpt_cli.profile.device import find_device
    from mem_gpt_cli.profile.watch import watch
    from mem_gpt_cli.workload.text_model import load

    device = find_device(recipe.device)
    with watch(device) as on_duty, _memory_may_run_out():
        on_duty.begin()
        before = on_duty.end()
        on_duty.begin()
        model = load(recipe, device.torch_device)
        read = [model.read([one.text], chat=chat, first=one.index)[0] for one in asked]
        _warn_of_length(model, read)
        begun = time.perf_counter()

        def sum_up() -> None:
            answers.end_line()
            _print_speed(answers, time.perf_counter() - begun)
            _print_memory(before, on_duty.end(), _predicted(model, read))

        try:
            for batch in model.batches(read):
                alone = len(batch) == 1
                for completion in model.complete(batch, answers.tell if alone else None):
                    answers.give(completion, asked, model.name)
        except KeyboardInterrupt:
            sum_up()
            raise
        sum_up()


@dataclass
class Answers:
    """Where the answers go, each as soon as it is there."""

    json: bool
    out: Path | None
    count: int
    given: list[Completion] = field(default_factory=list)
    _mid_line: bool = False

    def tell(self, prompt: Prompt, piece: str) -> None:
        """A piece of the only text that is under way."""
        if not self.json:
            if not self._mid_line:
                self._head(prompt)
            print(piece, end="", flush=True)
            self._mid_line = True

    def give(self, completion: Completion, asked: Sequence[Asked], model: str) -> None:
        """A whole answer."""
        from mem_gpt_cli.report.jsonl import append_object, line_of

        self.given.append(completion)
        id_ = next(one.id for one in asked if one.index == completion.prompt.index)
        if self.out is not None:
            append_object(self.out, _object(completion, id_, model))
        if self.json:
            print(line_of(_object(completion, id_, model)), flush=True)
            return
        if not self._mid_line:
            self._head(completion.prompt)
            print(completion.text, end="")
        self._mid_line = True
        self.end_line()

    def end_line(self) -> None:
        """End the line that a text stands in, also where the text was cut short."""
        if self._mid_line:
            print(flush=True)
            self._mid_line = False

    def _head(self, prompt: Prompt) -> None:
        if self.count > 1:
            sys.stdout.flush()
            first, *more = prompt.text.splitlines() or [""]
            short = first[:60] + ("..." if more or len(first) > 60 else "")
            console.people().print(f"[{prompt.index + 1}] {short}", markup=False, soft_wrap=True)


def _object(completion: Completion, id_: Any, model: str) -> dict[str, Any]:
    prompt = completion.prompt
    return {
        "schema_version": 1,
        "index": prompt.index,
        **({} if id_ is None else {"id": id_}),
        "model": model,
        "prompt": prompt.text,
        "text": completion.text,
        "prompt_tokens": len(prompt.tokens),
        "tokens": len(completion.tokens),
        "finish_reason": completion.finish_reason,
        "seconds": round(completion.seconds, 6),
        "tokens_per_s": round(completion.tokens_per_s, 3),
        "seed": prompt.seed,
    }


def _without_answered(asked: Sequence[Asked], recipe: Recipe, out: Path) -> list[Asked]:
    """The prompts that ``out`` has no answer to: of the same place, text and seed."""
    from mem_gpt_cli.report.jsonl import read_objects

    answered = {(line.get("index"), line.get("prompt"), line.get("seed")) for line in read_objects(out)}
    left = [one for one in asked if (one.index, one.text, recipe.workload.seed + one.index) not in answered]
    console.people().print(f"{len(asked) - len(left)} of {len(asked)} prompts are answered in {out}")
    return left


def _warn_of_length(model: TextModel, prompts: Sequence[Prompt]) -> None:
    """Positions that are computed know no end, but a model was trained up to one."""
    config: Any = model.model.config
    trained = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(prompt.tokens) for prompt in prompts) + model.recipe.lengths.new - 1
    if trained is not None and longest > trained:
        console.warn(
            f"prompt and new tokens are up to {longest:,} tokens, {model.name} was made for {trained:,}: "
            "expect worse text beyond"
        )


def _predicted(model: TextModel, prompts: Sequence[Prompt]) -> Phase | str:
    """The peak that the formula predicts of the largest batch, or why it predicts none."""
    from mem_gpt_cli.estimate import estimate
    from mem_gpt_cli.recipe.changing import for_prompts

    new = model.recipe.lengths.new
    try:
        reports = [
            estimate(for_prompts(model.recipe, [len(prompt.tokens) for prompt in batch], new))
            for batch in model.batches(prompts)
        ]
    except MemgptError as error:  # the texts are there, and stay
        return str(error)
    return max(reports, key=lambda report: report.allocated_bytes).peak


def _print_speed(answers: Answers, seconds: float) -> None:
    tokens = sum(len(completion.tokens) for completion in answers.given)
    speed = f", {tokens} tokens in {seconds:.1f} s: {tokens / seconds:.1f} tokens/s" if tokens else ""
    console.people().print(f"{len(answers.given)} of {answers.count} texts{speed}", soft_wrap=True)


def _print_memory(before: Levels, peak: Levels, predicted: Phase | str) -> None:
    parts = (*_measured(before, peak), _of_prediction(predicted))
    console.people().print(f"memory: {'; '.join(parts)}", markup=False, soft_wrap=True)


def _measured(before: Levels, peak: Levels) -> Iterator[str]:
    counts: Mapping[str, int | None] = {
        "torch's allocator": peak.allocated_bytes,
        "its reserve": peak.reserved_bytes,
        "the process": peak.process_bytes,
    }
    known = [f"{name} {render_bytes(count)}" for name, count in counts.items() if count is not None]
    yield f"measured at its peak: {', '.join(known)}" if known else "not measured on this machine"
    if before.process_bytes is not None and peak.process_bytes is not None:
        yield f"{render_bytes(before.process_bytes)} of the process were there before the model and its code"


def _of_prediction(predicted: Phase | str) -> str:
    if isinstance(predicted, str):
        return f"no prediction: {predicted}"
    peak = render_bytes(predicted.peak_allocated_bytes)
    return f"`memgpt estimate` predicts tensors of {peak}, in {predicted.name}"


@contextmanager
def _memory_may_run_out() -> Iterator[None]:
    from mem_gpt_cli.profile.exhaustion import exhausted, ran_out_of_memory

    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if ran_out_of_memory(error):
            raise exhausted(error, "the generation") from error
        raise
