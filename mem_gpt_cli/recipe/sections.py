"""Sections of a recipe: the model, how much work, and what is done to weights, attention and cache."""

# No `from __future__ import annotations`: pydantic would compile each annotation again, at every start.

import random
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mem_gpt_cli.recipe.section import DType, Name, Positive, Section


class Model(Section):
    """Which model: a catalogue name, a config.json, a folder (safetensors or GGUF), or a hub id."""

    name: Name = Field(
        default="memgpt-tiny", description="Catalogue name, path or hub id; see `memgpt models`."
    )
    dtype: DType = Field(default="fp32", description="Width that the weights are held in.")
    weights: Literal["auto", "random"] = Field(
        default="auto",
        description="auto: the real weights where they are local, else random ones; memory is the same.",
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="Replaces every dropout probability of the config; null keeps them."
    )
    experts: Literal["auto", "eager", "grouped", "batched"] = Field(
        default="auto", description="How a mixture of experts is computed; auto is what transformers picks."
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="Config keys to replace, e.g. {n_layer: 4}: a scaled-down shape."
    )


class Requests(Section):
    """Prompt lengths of unlike requests: given one by one, or ``count`` of them drawn between two ends.

    The short form ``requests: [16, 200, 1024]`` is allowed. Where two or more are drawn, both ends occur.
    """

    lengths: Annotated[list[Positive], Field(min_length=1)] | None = Field(
        default=None, description="Tokens of each prompt; null: they are drawn."
    )
    count: Positive | None = Field(default=None, description="Prompts to draw.")
    shortest: Positive | None = Field(default=None, description="Tokens of the shortest drawn prompt.")
    longest: Positive | None = Field(default=None, description="Tokens of the longest drawn prompt.")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"lengths": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _one_way(self) -> "Requests":
        ends = (self.count, self.shortest, self.longest)
        if (self.lengths is None) == (ends == (None, None, None)) or (self.lengths is None and None in ends):
            raise ValueError("write the lengths as a list, or all of count, shortest and longest")
        if self.shortest and self.longest and self.shortest > self.longest:
            raise ValueError(f"shortest is {self.shortest}, more than longest, {self.longest}")
        return self

    def prompts(self, seed: int) -> list[int]:
        """Tokens of each prompt, in the order of the requests; ``seed`` draws those that are not given."""
        if self.lengths is not None:
            return list(self.lengths)
        count, shortest, longest = self.count or 0, self.shortest or 0, self.longest or 0
        draw = random.Random(seed)
        ends = [shortest, longest][-count:]
        drawn = [*ends, *(draw.randint(shortest, longest) for _ in range(count - len(ends)))]
        draw.shuffle(drawn)
        return drawn


class Workload(Section):
    """How much work: the sizes that memory grows with."""

    batch: Positive = Field(default=1, description="Sequences at once.")
    seq: Positive | None = Field(
        default=None,
        description="Training length in tokens; in inference the total of prompt and new tokens.",
    )
    prompt_tokens: Positive | None = Field(default=None, description="Prompt length in tokens (inference).")
    new_tokens: Positive | None = Field(default=None, description="Tokens to generate (inference).")
    steps: Positive = Field(default=2, description="Training steps; the true peak comes in the second.")
    accumulate: Positive = Field(
        default=1, description="Micro-batches of `batch` sequences whose gradients make one training step."
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Gradients are scaled down to this norm before a training step; null: not."
    )
    autocast: Literal["none", "bf16", "fp16"] = Field(
        default="none", description="Mixed precision by torch.autocast."
    )
    logits: Literal["last", "all"] = Field(
        default="last",
        description="Positions of the prompt whose logits a prefill computes; generation needs the last.",
    )
    hold_outputs: bool = Field(
        default=False,
        description="Keep the model's outputs (logits) alive through backward and step, as many loops do.",
    )
    requests: Requests | None = Field(
        default=None,
        description="Requests of unlike prompt lengths (inference); they are the batch. Every cache but a "
        "paged one pads them to the longest.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=0, description="Seed of random weights, data, drawn requests, sampling and dropout."
    )


Scheme = Literal["none", "int8", "int4", "nf4", "fp4"]
Backend = Literal["auto", "bitsandbytes", "torchao", "native"]
MappingType = Literal["symmetric", "asymmetric"]


class QuantizationOverride(Section):
    """How some modules are quantized, where that is not as the rest; what is left out is as the rest."""

    scheme: Scheme | None = Field(default=None, description="Weight quantization; none keeps them in full.")
    backend: Backend | None = Field(default=None, description="Whose code quantizes.")
    mapping: MappingType | None = Field(default=None, description="Whether a zero point is stored.")
    group_size: Positive | None = Field(default=None, description="Weights that share a scale.")
    double_quant: bool | None = Field(default=None, description="Whether the scales are quantized too.")


class Quantization(Section):
    """How the weights are stored: width, layout, and what is stored otherwise."""

    scheme: Scheme = Field(default="none", description="Weight quantization of the layers' matrices.")
    backend: Backend = Field(
        default="auto",
        description="Whose code quantizes: auto is bitsandbytes for nf4, fp4 and int8, native for int4 and "
        "for int8 with groups or zero points.",
    )
    mapping: MappingType | None = Field(
        default=None,
        description="Integers: symmetric (the default) or with a zero point (native and torchao only).",
    )
    group_size: Positive | None = Field(
        default=None,
        description="Weights that share a scale; null: 64 for nf4, fp4 and int4 (torchao's: 128), a row "
        "for int8.",
    )
    double_quant: bool | None = Field(
        default=None, description="nf4 and fp4: quantize the scales too; null: yes."
    )
    overrides: dict[str, QuantizationOverride] = Field(
        default_factory=dict,
        description="Module patterns (*.mlp.*, lm_head), or the words embeddings and head, to what is "
        "otherwise there; of several that match the last counts.",
    )


class Attention(Section):
    """Which attention code runs."""

    backend: Literal["sdpa", "eager", "flash", "lsh"] = Field(
        default="sdpa", description="Attention implementation."
    )
    kv_heads: Positive | None = Field(
        default=None,
        description="Convert the model to that many key-value heads, by mean-pooling; null keeps its own.",
    )
    rounds: Positive | None = Field(default=None, description="lsh: rounds of hashing; null: 2.")
    buckets: Positive | None = Field(
        default=None, description="lsh: buckets a round; 1 is full attention; null: two a chunk."
    )
    chunk: Positive | None = Field(
        default=None, description="lsh: tokens that attend to each other and to the chunk before; null: 64."
    )


class KVCache(Section):
    """What is kept of the keys and values of earlier tokens."""

    kind: Literal["none", "dynamic", "static", "quantized", "offloaded", "sliding", "paged"] = Field(
        default="dynamic", description="none recomputes the whole sequence for each new token."
    )
    max_tokens: Positive | None = Field(
        default=None, description="static: tokens that there is room for; null: those of the workload."
    )
    format: Literal["fp8", "int4", "int2"] | None = Field(
        default=None, description="quantized: how keys and values are stored; null: fp8."
    )
    window: Positive | None = Field(
        default=None, description="sliding: tokens that are kept; null: the model's own window."
    )
    page_size: Positive | None = Field(default=None, description="paged: tokens a page; null: 16.")
    pages: Positive | None = Field(
        default=None,
        description="paged: pages of the pool; null: what budget.memory leaves, else what the requests need.",
    )
    batch_tokens: Positive | None = Field(
        default=None, description="paged: tokens computed at once at most; null: 256."
    )


class Quality(Section):
    """What the options cost in quality: measured beside memory and speed by ``profile``."""

    text: Name = Field(
        default="sample", description="A text file, a folder of them, or sample: the one that ships."
    )
    windows: Positive = Field(default=8, description="Stretches of the text that are scored.")
    tokens: Annotated[int, Field(gt=1, le=10**9)] = Field(default=256, description="Tokens a stretch.")
    against: bool = Field(
        default=True,
        description="Compare with the model as it is without the options: KL divergence, top-1 agreement.",
    )


class Sampling(Section):
    """How ``generate`` picks a token."""

    temperature: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="0 takes the likeliest token; 1 the model's own distribution."
    )
    top_k: Positive | None = Field(default=None, description="Only the k likeliest tokens.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Only the likeliest tokens that together have this probability."
    )
    repetition_penalty: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="Above 1 makes what was said before less likely."
    )
