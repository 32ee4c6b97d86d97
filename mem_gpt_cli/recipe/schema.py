"""The YAML that a user writes, as types: one class a section, one field a key.

Values that a lens does not offer yet are part of the vocabulary, so that they are refused by name
(see ``availability``) and never ignored.
"""

# No `from __future__ import annotations`: pydantic would compile each annotation again, at every start.

import random
import re
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    model_validator,
)

from mem_gpt_cli.recipe.document import KeyPath, Node
from mem_gpt_cli.recipe.quantities import parse_bytes

Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
Positive = Annotated[int, Field(gt=0, le=10**9)]
Name = Annotated[str, Field(min_length=1)]
DType = Literal["fp32", "fp16", "bf16"]


class Section(BaseModel):
    """A part of a recipe: frozen, closed to unknown keys, and strict: the text "4" is no number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


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


class Checkpointing(Section):
    """Which activations are recomputed in backward instead of kept."""

    policy: Literal["none", "full", "every_n", "selective", "offload"] = Field(
        default="none", description="full keeps the input of each layer alone."
    )


class Adapters(Section):
    """Small trainable matrices beside frozen weights."""

    kind: Literal["none", "lora", "qlora"] = Field(default="none", description="Adapter method.")


class Optimizer(Section):
    """The optimizer of a training step."""

    name: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "lion_8bit", "adafactor", "sgd", "galore"] = (
        Field(default="adamw", description="Update rule.")
    )
    implementation: Literal["auto", "loop", "foreach", "fused"] = Field(
        default="auto", description="auto is torch's own choice: a loop on CPU, foreach on CUDA."
    )
    lr: Annotated[float, Field(gt=0)] = Field(default=1e-4, description="Learning rate.")
    weight_decay: Annotated[float, Field(ge=0)] = Field(default=0.01, description="Decoupled weight decay.")


class Loss(Section):
    """How the loss is computed from the logits."""

    kind: Literal["full", "chunked", "fused"] = Field(
        default="full", description="full holds all logits at once."
    )


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


class Claim(Section):
    """What is said of an option, to be printed beside what was measured; all against the cell's baseline."""

    name: Name = Field(description="Whose claim, or of what: a few words.")
    of: dict[str, Any] = Field(
        description="The cells that it speaks of: dotted keys of their recipes and the values there."
    )
    memory_saved_percent: Annotated[float, Field(gt=0, lt=100)] | None = Field(
        default=None, description="Least part of the baseline's peak that is saved."
    )
    speed_ratio: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Least tokens a second, as a multiple of the baseline's."
    )
    quality_lost_percent: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="Most by which perplexity rises."
    )


class Sweep(Section):
    """Many recipes from one: every entry of ``cells`` crossed with the product of ``axes``, less ``exclude``.

    The order is that of the text: the first entry of ``cells`` with all of the product, then the second; in
    the product the first axis changes slowest. ``baseline`` says which cell the others are compared with.
    Cells that agree in every swept key that ``baseline`` does not name form a group, and each group has
    exactly one cell where all of ``baseline`` holds. A key that a cell does not give has the recipe's own
    value there.
    """

    axes: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="Dotted key to the values it takes, e.g. {workload.seq: [128, 256]}.",
    )
    cells: list[dict[str, Any]] = Field(
        default_factory=list,
        description="Settings that belong together, as dotted keys; every entry is crossed with the axes.",
    )
    exclude: list[dict[str, Any]] = Field(
        default_factory=list, description="Cells to leave out: an entry matches where all of its keys do."
    )
    baseline: dict[str, Any] = Field(
        default_factory=dict,
        description="Values of the cell that relative columns compare with: one in each group of cells that "
        "agree in all other swept keys.",
    )
    claims: list[Claim] = Field(
        default_factory=list,
        description="Claims to hold against what is measured; each cell has one at most. Needs a baseline.",
    )


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
