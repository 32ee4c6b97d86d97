"""The phases of both tasks, walked on paper: which moment of each has most bytes live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mem_gpt_cli.estimate.books import INPUTS, INT64, WIDTHS, Ledger, Moment
from mem_gpt_cli.estimate.decoder import Decoder
from mem_gpt_cli.estimate.generation import generate
from mem_gpt_cli.estimate.loading import load
from mem_gpt_cli.estimate.paged import serve
from mem_gpt_cli.estimate.training import train
from mem_gpt_cli.model.architecture import Architecture
from mem_gpt_cli.quantization import cost as quantization_cost
from mem_gpt_cli.quantization.plan import plan_of
from mem_gpt_cli.recipe.schema import Recipe

if TYPE_CHECKING:
    from mem_gpt_cli.estimate.cuda import CudaKernels
    from mem_gpt_cli.estimate.on_card import OnCard


class Walk(NamedTuple):
    """What a walk finds for each phase, by name: its highest moment, and the most that each slot held.

    ``card`` is what a GPU has besides; ``offloaded`` are bytes in the host's memory.
    """

    peaks: Mapping[str, Moment]
    highest: Mapping[str, Sequence[int]]
    card: OnCard | None = None
    offloaded: int = 0


def walk(
    architecture: Architecture,
    recipe: Recipe,
    ledger: Ledger | None = None,
    cuda: CudaKernels | None = None,
    *,
    packed: bool = False,
) -> Walk:
    """Walk the recipe's task through the architecture.

    Args:
        architecture: the model's numbers.
        recipe: the options.
        ledger: the books; those of a card keep more than is returned.
        cuda: the kernels of the card.
        packed: the weights come quantized from a folder, and are never in full.
    """
    ledger = ledger or Ledger()
    ledger.enter("load")
    weights = load(ledger, architecture, recipe, WIDTHS[recipe.model.dtype], cuda, packed=packed)
    decoder = Decoder(architecture, recipe, ledger, weights, cuda)
    if recipe.kv_cache.kind == "paged":
        serve(decoder)
        return Walk(ledger.peaks, ledger.highest)
    tape = decoder.tape(recording=False)
    tokens = tape.new(recipe.workload.batch * recipe.lengths.prompt, INT64, "tokens", INPUTS)
    if recipe.task == "training":
        train(decoder, tokens)
    else:
        generate(decoder, tokens)
    return Walk(ledger.peaks, ledger.highest, offloaded=ledger.offloaded)


def stored_weights(architecture: Architecture, recipe: Recipe) -> int:
    """Bytes of the model's weights and buffers as the recipe stores them."""
    return quantization_cost.weight_bytes(architecture, plan_of(recipe), WIDTHS[recipe.model.dtype])
