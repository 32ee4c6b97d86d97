"""The whole decoder: embeddings, layers (run again in backward where they are checkpointed), head, loss."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from mem_gpt_cli.adapters.cost import adapted, saved
from mem_gpt_cli.attention.cost import LSH_NOT_TAKEN
from mem_gpt_cli.attention.plan import Lsh
from mem_gpt_cli.checkpointing.plan import Plan
from mem_gpt_cli.errors import UnsupportedError
from mem_gpt_cli.estimate import ops
from mem_gpt_cli.estimate.adapters import Adapters, beside
from mem_gpt_cli.estimate.adapters import by_layer as ranks_by_layer
from mem_gpt_cli.estimate.blocks import block
from mem_gpt_cli.estimate.books import FP32, INPUTS, INT64, LOGITS, WIDTHS, Ledger, Storage
from mem_gpt_cli.estimate.checkpointing import checkpointed, offloaded
from mem_gpt_cli.estimate.dialect import Dialect, dialect_of
from mem_gpt_cli.estimate.forward_pass import CacheLayer, Pass
from mem_gpt_cli.estimate.norms import norm
from mem_gpt_cli.estimate.parameters import Vectors, by_layer, methods_of
from mem_gpt_cli.estimate.tape import Node, Parameter, Tape, Tensor
from mem_gpt_cli.kv_cache.cost import static_tokens
from mem_gpt_cli.model.architecture import Architecture
from mem_gpt_cli.quantization.plan import plan_of
from mem_gpt_cli.recipe.schema import Recipe

if TYPE_CHECKING:
    from mem_gpt_cli.estimate.cuda import CudaKernels
    from mem_gpt_cli.estimate.paged_attention import Pages


class Decoder:
    """A model with its weights on the books of one ledger.

    Args:
        architecture: the model's numbers.
        recipe: the options; ``workload.batch`` sequences are run at once.
        ledger: where the bytes are booked.
        weights: all weights and buffers, on the books already.
        cuda: the kernels of a GPU.
    """

    def __init__(
        self,
        architecture: Architecture,
        recipe: Recipe,
        ledger: Ledger,
        weights: Sequence[Storage],
        cuda: CudaKernels | None = None,
    ) -> None:
        self.architecture = architecture
        self.recipe = recipe
        self.ledger = ledger
        self.item = WIDTHS[recipe.model.dtype]
        self.training = recipe.task == "training"
        self.dialect = dialect_of(architecture.model_type)
        self.padded = len(set(recipe.prompts)) > 1
        self.room = static_tokens(recipe) if recipe.kv_cache.kind == "static" else None
        self.cuda = cuda
        self.weights = weights
        self.methods = methods_of(architecture, plan_of(recipe))
        fresh, loaded = adapted(architecture, recipe), saved(recipe)
        self.frozen = bool(fresh or loaded)
        self.adapters = Adapters(
            ledger, fresh, loaded, dropout=recipe.adapters.dropout or 0.0, training=self.training
        )
        stored = by_layer(self.methods, architecture)
        ranks = ranks_by_layer((*fresh, *loaded), len(architecture.layers))
        self.inner = _inner(tuple(zip(architecture.layers, stored, ranks, strict=True)))
        self.parameters: dict[str, Parameter] = {}
        self._vectors = Vectors.of(architecture) if cuda else Vectors()

    def weight(self, name: str, numel: int) -> Parameter:
        """The matrix of that name, whose gradient stays with it; its bytes are on the books already."""
        if name not in self.parameters:
            method = self.methods.get(name)
            trainable = self.training and not self.frozen
            self.parameters[name] = Parameter(
                numel, self.item, self.weights[0], trainable, method, frozen=self.frozen
            )
        return self.parameters[name]

    def bias(self, name: str, width: int) -> Parameter | None:
        """The bias of the matrix of that name, where it is walked: on a card, if the family has one."""
        if name.rpartition(".")[2] not in self._vectors.biased:
            return None
        return self.weight(f"{name}.bias", width)

    def norm_weights(self, name: str, width: int) -> Sequence[Parameter]:
        """Weight and bias of the layer norm of that name, as far as it has them; only a card walks them."""
        return [self.weight(f"{name}.{index}", width) for index in range(self._vectors.norms)]

    def trained(self) -> frozenset[Node]:
        """What keeps the gradients of the weights that the pass has used."""
        every = (*self.parameters.values(), *self.adapters.parameters.values())
        return frozenset(p.node for p in every if p.node is not None)

    def take_gradients(self) -> list[Tensor]:
        """Every gradient that the pass has made; they live as long as the answer does."""
        taken = [node.grads[0] for node in self.trained()]
        for node in self.trained():
            node.grads[0], node.uses = None, 0
        return [gradient for gradient in taken if gradient is not None]

    def tape(self, *, recording: bool) -> Tape:
        """A fresh tape in the recipe's precision."""
        return Tape(
            self.ledger,
            recording=recording,
            autocast=WIDTHS[self.recipe.workload.autocast],
            cuda=self.cuda,
            dtype=self.recipe.model.dtype,
            training=self.training,
        )

    def forward(
        self,
        tape: Tape,
        tokens: Tensor,
        *,
        cache: dict[int, CacheLayer] | None = None,
        past: int = 0,
        pages: Pages | None = None,
    ) -> Tensor:
        """The last hidden states, normalised: ``[batch, tokens, hidden]``."""
        arch, batch = self.architecture, 1 if pages else self.recipe.workload.batch
        run = Pass(
            tape=tape,
            architecture=arch,
            dialect=self.dialect,
            backend=self.recipe.attention.backend if self.dialect.sdpa else "eager",
            lsh=_lsh(self.recipe, self.dialect),
            threads=self.recipe.device.threads or os.cpu_count() or 1,
            device=self.recipe.device.type,
            experts=self.recipe.model.experts,
            item=self.item,
            batch=batch,
            tokens=tokens.numel // batch,
            past=past,
            training=self.training,
            weight=self.weight,
            adapters=self.adapters,
            bias=self.bias,
            norm_weights=self.norm_weights,
            cache=cache,
            cache_kind=self.recipe.kv_cache.kind,
            room=self.room,
            padded=self.padded and not pages,
            pages=pages,
        )
        embedded, x = self._embed(run, tokens)
        run.prepare()
        x = ops.dropout(tape, x, run.dropout(arch.embedding_dropout))
        plan = Plan.of(self.recipe.checkpointing)
        repeats = not (tape.recording or tape.autocast or self.training or tape.cuda)
        for index, layer in enumerate(arch.layers):
            if repeats and index in self.inner:
                _repeat_cache(run, index)
            elif plan.recomputes(index):
                x = checkpointed(run, layer, index, x, plan.keep)
            elif plan.offloads:
                x = offloaded(run, layer, index, x)
            else:
                x = block(run, layer, index, x)
        x = norm(run, arch.layers[-1], x, "norm")
        del embedded
        return x

    def _embed(self, run: Pass, tokens: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        """The embeddings that the forward frame keeps to its end, and the first hidden states."""
        tape, arch = run.tape, self.architecture
        ledger = self.ledger
        ledger.module = "embedding"
        embedded = ops.embedding(
            tape, self.weight("embedding", arch.vocab * arch.hidden), tokens, arch.hidden
        )
        if self.dialect.embedding_scale:
            embedded = ops.pointwise(tape, "mul", embedded)
        by_sequence = self.dialect.positions_by_sequence
        if run.pages:
            ids = [tokens]  # positions are static inputs too
        elif run.padded:
            ids = [_positions(run)]
        else:
            ids = [tape.new(run.rows if by_sequence else run.tokens, INT64, "arange", INPUTS)]
        if not arch.learned_positions:
            ledger.module = ""
            return (embedded, *ids), embedded
        if by_sequence and not run.padded:  # they are the sums of a mask of ones, which is held as well
            ids.append(tape.new(run.batch * (run.past + run.tokens), FP32, "ones", INPUTS))
        table = self.weight("positions", (arch.max_positions or 0) * arch.hidden)
        positions = ops.embedding(tape, table, ids[0], arch.hidden)
        x = ops.add(tape, embedded, positions)
        ledger.module = ""
        return (embedded, positions, *ids), x

    def output_matrix(self) -> Parameter:
        """The matrix that makes logits of hidden states: the embedding's, where the two are tied."""
        arch = self.architecture
        return self.weight("embedding" if arch.tied_embeddings else "head", arch.vocab * arch.hidden)

    def head(self, tape: Tape, x: Tensor) -> Tensor:
        """The logits of hidden states: ``[.., vocab]``."""
        arch = self.architecture
        outer, tape.slot = tape.slot, LOGITS
        self.ledger.module = "lm_head"
        bias = self.bias("lm_head", arch.vocab)
        matrix, added = self.output_matrix(), self.adapters.of("head", arch.hidden, arch.vocab)
        if added:
            logits = beside(
                tape, x, ops.linear(tape, x, matrix, arch.vocab, bias=bias), added, matrix.method, arch.vocab
            )
        else:
            logits = ops.linear(tape, x, matrix, arch.vocab, bias=bias)
        if arch.final_logit_softcap:
            logits = ops.pointwise(tape, "div", logits)
            logits = ops.pointwise(tape, "tanh", logits, keeps_output=True)
            logits = ops.pointwise(tape, "mul", logits)
        tape.slot, self.ledger.module = outer, ""
        return logits


def _positions(run: Pass) -> Tensor:
    """Positions of unlike prompts: a view of the whole sequences' (``kv_cache.padding.positions``)."""
    numel = run.batch * (run.past + run.tokens)
    counted = run.tape.new(numel, INT64, "cumsum", INPUTS)
    counted = run.tape.new(numel, INT64, "sub", INPUTS)
    whole = run.tape.new(numel, INT64, "masked_fill", INPUTS)
    del counted
    return Tensor(run.rows, INT64, whole.storage)


def _lsh(recipe: Recipe, dialect: Dialect) -> Lsh | None:
    """How the recipe hashes; raises ``UnsupportedError`` for code that takes no other attention."""
    if recipe.attention.backend != "lsh":
        return None
    if not dialect.sdpa:
        raise UnsupportedError(LSH_NOT_TAKEN)
    return Lsh.of(recipe.attention)


def _inner(layers: Sequence[object]) -> frozenset[int]:
    """The layers in a row of equal ones, less its first two and its last, whose walk can be left out.

    From the second on, each differs from the one before by what its cache adds or gives back. So every moment
    within it rises or falls evenly along the row, and the highest of its kind is at one end. That holds where
    a layer leaves nothing but its cache: no graph for backward, no weights that autocast has cast.
    """
    same = [layer == after for layer, after in pairwise(layers)]
    return frozenset(i for i in range(2, len(layers) - 1) if same[i - 2] and same[i - 1] and same[i])


def _repeat_cache(run: Pass, index: int) -> None:
    """Book what a layer leaves that is as the one before: a cache of its own."""
    if run.cache is not None:
        run.cache.pop(index, None)  # what it held until now goes first, as it would in the walk
        run.cache[index] = run.cache[index - 1].copy(run.tape)
