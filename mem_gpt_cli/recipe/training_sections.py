"""Sections of a recipe that belong to training alone."""

# No `from __future__ import annotations`: pydantic would compile each annotation again, at every start.

from typing import Annotated, Literal

from pydantic import Field

from mem_gpt_cli.recipe.section import Name, Positive, Section


class Checkpointing(Section):
    """Which activations are recomputed in backward, or kept elsewhere, instead of on the device."""

    policy: Literal["none", "full", "every_n", "selective", "offload"] = Field(
        default="none",
        description="full keeps the input of each layer alone; selective also the results of some "
        "operations; offload keeps everything, in the host's memory.",
    )
    every: Positive | None = Field(
        default=None, description="every_n: of that many layers one is recomputed; null: 2."
    )
    keep: Annotated[list[Literal["attention", "products"]], Field(min_length=1)] | None = Field(
        default=None,
        description="selective: operations whose results are kept: attention, products (of matrices); "
        "null: both.",
    )


class Adapters(Section):
    """Small trainable matrices beside frozen weights (peft)."""

    kind: Literal["none", "lora", "qlora"] = Field(
        default="none", description="lora (arXiv:2106.09685); qlora is lora over quantized weights."
    )
    rank: Positive | None = Field(default=None, description="Rank of the two factors; null: 8.")
    alpha: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="The product is scaled by alpha / rank; null: twice the rank."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="Dropout before the adapters; null: 0."
    )
    targets: Annotated[list[Name], Field(min_length=1)] | None = Field(
        default=None,
        description="Ends of the names of the matrices that get one, e.g. [q_proj, v_proj]; null: all of "
        "the layers.",
    )
    load: list[Name] = Field(
        default_factory=list, description="Folders of saved adapters to put on the model, all in force."
    )


class Optimizer(Section):
    """The optimizer of a training step."""

    name: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "lion_8bit", "adafactor", "sgd", "galore"] = (
        Field(default="adamw", description="Update rule.")
    )
    implementation: Literal["auto", "loop", "foreach", "fused"] = Field(
        default="auto", description="auto is torch's own choice: a loop on CPU, foreach on CUDA."
    )
    lr: Annotated[float, Field(gt=0)] = Field(default=1e-4, description="Learning rate.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=0.01, description="Decoupled weight decay; sgd: an L2 penalty, added to the gradients."
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="sgd: how much of the last update stays; null: 0, without a buffer."
    )
    rank: Positive | None = Field(
        default=None, description="galore: rank that gradients are projected to; null: 128."
    )
    update_every: Positive | None = Field(
        default=None, description="galore: steps between new projections; null: 200."
    )
    bits: Literal[8, 32] | None = Field(
        default=None, description="galore: width of the moments of its AdamW; null: 32."
    )


class Loss(Section):
    """How the loss is computed from the last hidden states."""

    kind: Literal["full", "chunked", "fused"] = Field(
        default="full",
        description="full holds all logits at once; chunked some rows of them, computed again in backward; "
        "fused is torch's linear_cross_entropy.",
    )
    chunk: Positive | None = Field(default=None, description="chunked: rows at once; null: 512.")


class Finetune(Section):
    """What ``memgpt finetune`` trains on, for how long, and what it writes down; no lens depends on it."""

    data: Name | None = Field(
        default=None,
        description="A text file, a .jsonl of texts or chats, a folder of either, or sample (what ships).",
    )
    held_out: Name | None = Field(
        default=None, description="Data that is only evaluated; null: the last part of data."
    )
    held_out_percent: Annotated[float, Field(gt=0, lt=100)] = Field(
        default=5.0, description="How much of data is held out, where held_out names none."
    )
    steps: Positive | None = Field(default=None, description="Optimizer steps; null: one pass over the data.")
    packing: bool = Field(
        default=True,
        description="Fill each sequence with documents, one after the other; else one each, padded.",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="linear", description="How the learning rate falls after its warm-up."
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Steps in which the learning rate rises from 0."
    )
    evaluate_tokens: Positive = Field(
        default=16_384, description="Held-out tokens that perplexity is measured on, before and after."
    )
    checkpoint_every: Positive | None = Field(
        default=None, description="Steps between checkpoints; null: only at the end."
    )
    keep_checkpoints: Positive = Field(default=2, description="Checkpoints that are kept, the newest.")
