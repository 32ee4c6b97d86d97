"""Measures what the options of a recipe cost in quality; each model is loaded, scored and let go in turn."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from mem_gpt_cli.attention.kv_heads import source_of
from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.model.gguf_file import coarse_grid
from mem_gpt_cli.model.positions import learned_positions
from mem_gpt_cli.model.source import ModelSource
from mem_gpt_cli.model.weights import wants_real_weights
from mem_gpt_cli.quality.scores import Scores, Shelf, Teacher, shelf
from mem_gpt_cli.quality.text import check_text, read_text, windows_of
from mem_gpt_cli.quantization.saved import as_saved
from mem_gpt_cli.recipe.changing import for_prompts
from mem_gpt_cli.recipe.schema import Adapters, Attention, KVCache, Quality, Quantization, Recipe
from mem_gpt_cli.report.model import Quality as Measured
from mem_gpt_cli.workload.build import build_on_meta
from mem_gpt_cli.workload.inference import Inference
from mem_gpt_cli.workload.reading import has_tokenizer, load_tokenizer
from mem_gpt_cli.workload.text_model import load_model
from mem_gpt_cli.workload.threads import intra_op_threads

LOGITS_BYTES = 2**28
"""What the logits of the windows that go through a model together may take."""
LOSSY_CACHES = ("quantized", "sliding")
"""Caches that do not give back what was put into them: the others hold the same values in other places."""

Tell = Callable[[str], None]


def _nobody(name: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Scoring:
    """What is scored: ``windows`` of one length, ``[windows, tokens]``; of each the second half counts."""

    windows: torch.Tensor
    device: torch.device

    @property
    def first(self) -> int:
        """The first token that is scored: all of them have half a window before them."""
        return int(self.windows.shape[1]) // 2

    @property
    def rows(self) -> int:
        """Tokens that are scored in all."""
        return len(self.windows) * (int(self.windows.shape[1]) - self.first)


def why_not(recipe: Recipe) -> str | None:
    """Why a model has no quality to measure: its weights are random, or nobody knows its words.

    Raises:
        UsageError: for a text that is not there, or windows longer than the model's positions.
    """
    assert recipe.quality is not None
    check_text(recipe.quality.text)
    source = source_of(recipe)
    if not wants_real_weights(source, recipe):
        return f"quality is not measured: the weights of {source.name} are random here"
    if not has_tokenizer(source):
        return f"quality is not measured: {source.name} has no tokenizer here"
    _refuse_too_long(source, build_on_meta(source, recipe), recipe.quality.tokens)
    return None


def notes(recipe: Recipe) -> tuple[str, ...]:
    """What a reader of the figures should be told of the weights and the cache."""
    found = []
    source = source_of(recipe)
    grid = coarse_grid(source.gguf_file) if source.gguf_file is not None else None
    if grid is not None:
        found.append(
            f"quality: {100 * grid.share:.0f}% of the stored weights lay on a grid of 4 bits or fewer before "
            f"any option ({', '.join(grid.formats)}): 4-bit schemes can look better here than they are on "
            "weights that were stored in full"
        )
    if source.saved_quantization is not None and recipe.quality and recipe.quality.against:
        found.append(
            f"quality: compared with nothing, because {source.name} was saved quantized: the full weights "
            "are not there"
        )
    if recipe.kv_cache.kind not in (*LOSSY_CACHES, "dynamic", "none"):
        found.append(
            f"quality: scored in one pass, because a {recipe.kv_cache.kind} cache holds the same values as "
            "any other, in another place"
        )
    return tuple(found)


def measure(recipe: Recipe, device: torch.device, tell: Tell = _nobody) -> Measured:
    """Score the recipe's model, and before it the same weights in fp32 without any option.

    Args:
        recipe: with a ``quality`` section, of a model that ``why_not`` lets pass.
        device: where to run.
        tell: told which of the two is being scored.

    Raises:
        UsageError: for a text that is too short.
    """
    recipe, asked = _asked(recipe)
    scoring = _scoring(recipe, asked, device)
    plain, own = Scores(), Scores()
    with intra_op_threads(recipe.device.threads), shelf() if asked.against else nullcontext() as kept:
        if kept is not None:
            tell("quality of the full model")
            _score(reference(recipe), scoring, plain, kept, writes=True)
        tell("quality")
        _score(recipe, scoring, own, kept, writes=False)
    return Measured(
        perplexity=own.perplexity,
        reference_perplexity=plain.perplexity if asked.against else None,
        kl_divergence=own.kl_divergence,
        top1_agreement=own.top1_agreement,
        tokens=own.tokens,
        text=asked.text,
    )


def reference(recipe: Recipe) -> Recipe:
    """The same weights without any option: fp32, exact attention, own key-value heads, whole cache."""
    eager = recipe.attention.backend == "eager"
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(update={"dtype": "fp32"}),
            "workload": recipe.workload.model_copy(update={"autocast": "none"}),
            "quantization": Quantization(),
            "attention": Attention(backend="eager" if eager else "sdpa"),
            "kv_cache": KVCache(),
            "adapters": Adapters(),
        }
    )


def _asked(recipe: Recipe) -> tuple[Recipe, Quality]:
    """The recipe as its weights are stored, and what is asked; codes that were saved have no full weights."""
    assert recipe.quality is not None
    source = source_of(recipe)
    against = recipe.quality.against and source.saved_quantization is None
    return as_saved(recipe, source), recipe.quality.model_copy(update={"against": against})


def _scoring(recipe: Recipe, asked: Quality, device: torch.device) -> Scoring:
    source = source_of(recipe)
    _refuse_too_long(source, build_on_meta(source, recipe), asked.tokens)
    tokenizer: Any = load_tokenizer(source)
    windows = windows_of(
        read_text(asked.text),
        asked.windows,
        asked.tokens,
        lambda text: tokenizer(text, verbose=False)["input_ids"],
    )
    return Scoring(torch.tensor(windows, device=device), device)


def _score(recipe: Recipe, scoring: Scoring, scores: Scores, kept: Shelf | None, *, writes: bool) -> None:
    """Build the model of the recipe, lead it through the windows, and let it go."""
    model = load_model(source_of(recipe), recipe, scoring.device)
    together = _together(model, int(scoring.windows.shape[1]))
    rows = 0
    for batch in scoring.windows.split(together):
        teacher = Teacher(
            tokens=batch,
            first=scoring.first,
            at_once=recipe.kv_cache.kind not in LOSSY_CACHES,
            scores=scores,
            shelf=kept,
            writes=writes,
            rows=rows,
            all_rows=scoring.rows,
        )
        lead(model, recipe, teacher)
        rows += len(batch) * teacher.per_row
    del model
    gc.collect()
    if scoring.device.type == "cuda":
        torch.cuda.empty_cache()


def lead(model: torch.nn.Module, recipe: Recipe, teacher: Teacher) -> None:
    """Lead a model through the text of ``teacher`` by the recipe's own inference.

    Where the cache is lossy, the second half of each window goes through it token by token, as generated
    text does. Where it is not, one pass over the window gives the same logits.
    """
    batch, length = teacher.tokens.shape
    if teacher.at_once:
        prompt, new, logits, cache = length - 1, 1, "all", KVCache()
    else:
        prompt, new, logits, cache = teacher.first, length - teacher.first, "last", recipe.kv_cache
    workload = recipe.workload.model_copy(update={"logits": logits})
    led = recipe.model_copy(update={"workload": workload, "kv_cache": cache})
    inference = Inference(for_prompts(led, [prompt] * batch, new), teacher)
    inference.prepare(model, teacher)
    inference.run(model, teacher.tokens[:, :prompt], teacher)


def _together(model: torch.nn.Module, tokens: int) -> int:
    """Windows whose logits fit into ``LOGITS_BYTES``."""
    config: Any = model.config
    return max(1, LOGITS_BYTES // (4 * tokens * int(config.get_text_config().vocab_size)))


def _refuse_too_long(source: ModelSource, model: torch.nn.Module, tokens: int) -> None:
    positions = learned_positions(source, model)
    if positions is not None and tokens - 1 > positions:
        raise UsageError(
            f"quality.tokens: {tokens} is more than the {positions} positions that {source.name} has "
            f"learned: use {positions} or less"
        )
