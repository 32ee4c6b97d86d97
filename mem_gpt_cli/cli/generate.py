"""``memgpt generate``: text for prompts, by the model and with the options of a recipe."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mem_gpt_cli.cli import console
from mem_gpt_cli.cli.answer import hold_to_budget
from mem_gpt_cli.cli.options import Request, takes_recipe
from mem_gpt_cli.cli.prompts import Asked, asked_prompts
from mem_gpt_cli.cli.startup import hush_libraries
from mem_gpt_cli.cli.texts import Answers, without_answered
from mem_gpt_cli.errors import MemgptError, UsageError
from mem_gpt_cli.recipe.changing import text_digest
from mem_gpt_cli.report.sizes import render_bytes

if TYPE_CHECKING:
    from mem_gpt_cli.profile.watch import Levels
    from mem_gpt_cli.recipe.schema import Recipe
    from mem_gpt_cli.report.model import Phase
    from mem_gpt_cli.workload.generation import Prompt
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
    _refuse_made_up_lengths(request)
    hush_libraries()
    recipe = request.recipe()
    if recipe.task == "training":
        raise UsageError("a training generates no text: add --task inference")
    asked = asked_prompts(prompt or (), prompts)
    digest = text_digest(recipe, chat=chat)
    if out is not None and resume:
        asked = without_answered(asked, recipe, out, digest)
    if asked:
        answers = Answers(request.json, out, len(asked), digest)
        try:
            _run(answers, recipe, asked, chat)
        except KeyboardInterrupt:
            answers.say_what_is_kept()
            raise


def _refuse_made_up_lengths(request: Request) -> None:
    """In a recipe file they are there for the lenses; who gives them here means something else."""
    given = {*request.flags, *(text.partition("=")[0].strip() for text in request.overrides)}
    for name in ("seq", "prompt_tokens", "requests"):
        if any(key == f"workload.{name}" or key.startswith(f"workload.{name}.") for key in given):
            raise UsageError(
                f"workload.{name}: the prompts have lengths of their own: leave it out; --new-tokens is the "
                "most that each may get"
            )


def _run(answers: Answers, recipe: Recipe, asked: Sequence[Asked], chat: bool) -> None:
    from mem_gpt_cli.profile.device import find_device
    from mem_gpt_cli.profile.watch import watch
    from mem_gpt_cli.workload.reading import Reading
    from mem_gpt_cli.workload.text_model import load

    device = find_device(recipe.device)
    with watch(device) as on_duty, _memory_may_run_out():
        on_duty.begin()
        before = on_duty.end()
        on_duty.begin()
        reading = Reading.of(recipe)
        read = [reading.read([one.text], chat=chat, first=one.index)[0] for one in asked]
        predicted = _predicted(recipe, reading.sized(read))
        model = load(recipe, device.torch_device, reading)
        model.check_positions(read)
        _warn(model, read)
        begun = time.perf_counter()
        try:
            for batch in model.batches(read):
                alone = len(batch) == 1
                for completion in model.complete(batch, answers.tell if alone else None):
                    answers.give(completion, asked, model.name)
        finally:
            answers.end_line()
            _print_speed(answers, time.perf_counter() - begun)
            _print_memory(before, on_duty.end(), predicted)


def _warn(model: TextModel, prompts: Sequence[Prompt]) -> None:
    """What the lenses say of the model, and whether adapters or a text are others than it was made for."""
    from mem_gpt_cli.adapters.base import over_other_weights
    from mem_gpt_cli.adapters.folder import read_adapter
    from mem_gpt_cli.attention.backend import attention_note

    adapters = over_other_weights(map(read_adapter, model.recipe.adapters.load), model.recipe)
    for note in (*model.source.notes, *attention_note(model.model, model.recipe), *adapters):
        console.warn(note)
    # Positions that are computed know no end, but a model was trained up to one.
    config: Any = model.model.config
    trained = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(prompt.tokens) for prompt in prompts) + model.recipe.lengths.new - 1
    if trained is not None and longest > trained:
        console.warn(
            f"prompt and new tokens are up to {longest:,} tokens, {model.name} was made for {trained:,}: "
            "expect worse text beyond"
        )


def _predicted(recipe: Recipe, batches: Sequence[Recipe]) -> Phase | str:
    """The peak that the formula predicts of the largest batch, or why it predicts none.

    Raises:
        GateError: if it is more than the recipe's budget.
        MemgptError: for a budget where there is no prediction to hold to it.
    """
    from mem_gpt_cli.estimate import estimate

    # All batches are of one size but the last; of these, the longest prompt is what counts.
    largest = max(batches, key=lambda sized: (len(sized.prompts), *_weight(sized)))
    try:
        report = estimate(largest)
    except MemgptError as error:
        if recipe.budget.memory is not None:  # which nothing but a prediction can be held to
            raise
        return str(error)
    hold_to_budget(recipe, report)
    return report.peak


def _weight(sized: Recipe) -> tuple[int, bool]:
    return max(sized.prompts), len(set(sized.prompts)) > 1


def _print_speed(answers: Answers, seconds: float) -> None:
    tokens = sum(len(completion.tokens) for completion in answers.given)
    speed = f", {tokens} tokens in {seconds:.1f} s: {tokens / seconds:.1f} tokens/s" if tokens else ""
    console.people().print(f"{len(answers.given)} of {answers.count} texts{speed}", soft_wrap=True)


def _print_memory(before: Levels, peak: Levels, predicted: Phase | str) -> None:
    for number, part in enumerate((*_measured(before, peak), _of_prediction(predicted))):
        line = f"{' ' * 8 if number else 'memory: '}{part}"
        console.people().print(line, markup=False)


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
