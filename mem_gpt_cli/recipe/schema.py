"""The YAML that a user writes, as types: one class a section, one field a key.

Values that a lens does not offer yet are part of the vocabulary, so that they are refused by name
(see ``availability``) and never ignored.
"""

# No `from __future__ import annotations`: pydantic would compile each annotation again, at every start.

import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, PrivateAttr, model_validator

from mem_gpt_cli.recipe.document import KeyPath, Node
from mem_gpt_cli.recipe.section import Bytes, Name, Positive, Section
from mem_gpt_cli.recipe.sections import (
    Attention,
    KVCache,
    Model,
    Quality,
    Quantization,
    QuantizationOverride,
    Requests,
    Sampling,
    Workload,
)
from mem_gpt_cli.recipe.sweep_section import Claim, Sweep
from mem_gpt_cli.recipe.training_sections import Adapters, Checkpointing, Finetune, Loss, Optimizer

__all__ = [
    "DEFAULT_NEW_TOKENS",
    "DEFAULT_SEQ",
    "Adapters",
    "Attention",
    "Budget",
    "Checkpointing",
    "Claim",
    "ContradictionError",
    "Device",
    "Finetune",
    "KVCache",
    "Lengths",
    "Loss",
    "Model",
    "Optimizer",
    "Quality",
    "Quantization",
    "QuantizationOverride",
    "Recipe",
    "Requests",
    "Sampling",
    "Section",
    "Sweep",
    "Workload",
]


def _device_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w .+-]*(:\d{1,3})?", name) or (":" in name and name[:5] != "cuda:"):
        raise ValueError(f"{name!r} is no device: write cpu, cuda, cuda:N, or a GPU's name such as h100")
    return name.lower()


class Device(Section):
    """Where it runs; the short form ``device: cpu`` is allowed."""

    name: Annotated[Name, AfterValidator(_device_name)] = Field(
        default="cpu", description="cpu, cuda, cuda:N, or a GPU's name, e.g. h100."
    )
    threads: Positive | None = Field(
        default=None,
        description="Intra-op threads on CPU (kernels' inner buffers depend on them); null: torch's own.",
    )
    allocator: str | None = Field(
        default=None,
        description="Settings of CUDA's allocator, as PYTORCH_CUDA_ALLOC_CONF takes them; null: its own.",
    )

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def type(self) -> Literal["cpu", "cuda"]:
        """The kind of device that ``name`` stands for; whether such a GPU is known is no matter here."""
        return "cpu" if self.name == "cpu" else "cuda"


class Budget(Section):
    """The memory that there is."""

    memory: Bytes | None = Field(default=None, description="Bytes, or a text such as 24GiB or 80GB.")


class ContradictionError(ValueError):
    """Keys that cannot hold together; ``paths`` are those keys, the one to point at first."""

    def __init__(self, message: str, *paths: KeyPath) -> None:
        super().__init__(message)
        self.paths = paths


DEFAULT_SEQ = 512
DEFAULT_NEW_TOKENS = 32
_SEQ, _PROMPT, _NEW, _REQUESTS = (
    ("workload", name) for name in ("seq", "prompt_tokens", "new_tokens", "requests")
)


class Lengths(NamedTuple):
    """``seq`` tokens in all, of which ``prompt`` are given and ``new`` are generated (0 in training)."""

    seq: int
    prompt: int
    new: int

    @classmethod
    def of(cls, task: str, workload: Workload) -> "Lengths":
        """Fill in the lengths that a workload leaves open.

        Raises:
            ContradictionError: where the given lengths contradict each other.
        """
        seq, prompt, new = workload.seq, workload.prompt_tokens, workload.new_tokens
        if task == "training":
            if prompt or new:
                raise ContradictionError(
                    "belongs to inference: give workload.seq for training", _PROMPT if prompt else _NEW
                )
            return cls(seq=seq or DEFAULT_SEQ, prompt=seq or DEFAULT_SEQ, new=0)
        if seq is None:
            prompt, new = prompt or DEFAULT_SEQ - DEFAULT_NEW_TOKENS, new or DEFAULT_NEW_TOKENS
            return cls(seq=prompt + new, prompt=prompt, new=new)
        if prompt is None:
            new = new or min(DEFAULT_NEW_TOKENS, max(1, seq // 2))
            prompt = seq - new
        elif new is None:
            new = seq - prompt
        if prompt < 1 or new < 1 or prompt + new != seq:
            raise ContradictionError(
                f"{seq} is the total of prompt and new tokens, but they are {prompt} and {new}: "
                "leave one of the three out",
                _SEQ,
            )
        return cls(seq=seq, prompt=prompt, new=new)


class Recipe(Section):
    """What to run and with which options."""

    description: str = Field(default="", description="One line for `memgpt recipes list`.")
    model: Model = Field(default_factory=Model)
    task: Literal["inference", "training"] = Field(default="inference", description="What the workload does.")
    workload: Workload = Field(default_factory=Workload)
    quantization: Quantization = Field(default_factory=Quantization)
    attention: Attention = Field(default_factory=Attention)
    kv_cache: KVCache = Field(default_factory=KVCache)
    sampling: Sampling = Field(default_factory=Sampling)
    quality: Quality | None = Field(
        default=None, description="What the options cost in quality; null: not measured."
    )
    checkpointing: Checkpointing = Field(default_factory=Checkpointing)
    adapters: Adapters = Field(default_factory=Adapters)
    optimizer: Optimizer = Field(default_factory=Optimizer)
    loss: Loss = Field(default_factory=Loss)
    finetune: Finetune = Field(default_factory=Finetune)
    device: Device = Field(default_factory=Device)
    budget: Budget = Field(default_factory=Budget)
    sweep: Sweep | None = Field(default=None, description="Many recipes from this one; see `memgpt bench`.")

    _text: Node = PrivateAttr(default_factory=lambda: Node({}))

    @property
    def text(self) -> Node:
        """The text that the recipe was read from, for positions in errors; empty for one made in Python."""
        return self._text

    def read_from(self, text: Node) -> "Recipe":
        """This recipe, remembering the text it was read from."""
        self._text = text
        return self

    def __eq__(self, other: object) -> bool:
        """Whether both say the same; the texts they were read from may differ."""
        return isinstance(other, Recipe) and self.__dict__ == other.__dict__

    @model_validator(mode="after")
    def _requests_are_the_batch(self) -> "Recipe":
        work = self.workload
        if work.requests is None:
            return self
        if self.task == "training":
            raise ContradictionError("belongs to inference: training has sequences of one length", _REQUESTS)
        prompts = work.requests.prompts(work.seed)
        for name, value in (("batch", len(prompts)), ("prompt_tokens", max(prompts))):
            if name in work.model_fields_set and getattr(work, name) not in (None, value):
                raise ContradictionError(
                    f"{getattr(work, name)}, but the requests make it {value}: leave it out",
                    ("workload", name),
                )
            work.__dict__[name] = value  # before anyone has seen it, so that it stays frozen to all
        return self

    @model_validator(mode="after")
    def _qlora_has_quantized_weights(self) -> "Recipe":
        if self.adapters.kind != "qlora" or self.quantization.scheme != "none":
            return self
        if "scheme" in self.quantization.model_fields_set:
            raise ContradictionError(
                "none, but qlora is lora over quantized weights: choose a scheme, leave it out for nf4, or "
                "write adapters.kind: lora",
                ("quantization", "scheme"),
            )
        self.quantization.__dict__["scheme"] = "nf4"  # before anyone has seen it, as above
        return self

    @property
    def prompts(self) -> list[int]:
        """Tokens of each sequence's prompt (inference) or of each sequence (training)."""
        if self.workload.requests is not None:
            return self.workload.requests.prompts(self.workload.seed)
        return [self.lengths.prompt] * self.workload.batch

    @model_validator(mode="after")
    def _lengths_agree(self) -> "Recipe":
        self.lengths  # noqa: B018  (raises where the three lengths contradict each other)
        return self

    @property
    def lengths(self) -> Lengths:
        """Prompt and new tokens (inference) or the training length, defaults filled in.

        Raises:
            ContradictionError: where ``seq`` is not the sum of ``prompt_tokens`` and ``new_tokens``.
        """
        return Lengths.of(self.task, self.workload)
