"""One sentence on why the peak is where it is."""

from __future__ import annotations

from mem_gpt_cli.estimate.books import SLOTS, Moment
from mem_gpt_cli.model.architecture import Architecture
from mem_gpt_cli.optimizers.notes import temporaries_of
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.model import Phase

_PLACES = {
    "load": "while the model is loaded",
    "prefill": "in the prefill",
    "decode": "in the last decode step",
    "forward": "in the forward pass",
    "backward": "in the backward pass",
    "optimizer_step": "in the optimizer's step",
}


def cause_of(phase: Phase, moment: Moment, architecture: Architecture, recipe: Recipe) -> str:
    """Where the peak is and what holds most of it, e.g. "the peak is in the backward pass: 50,257-wide logits
    in fp32 hold 41%"; beside the weights, what comes next is named too.
    """
    shares = sorted(((nbytes, slot) for slot, nbytes in enumerate(moment.live) if nbytes), reverse=True)
    total = max(1, phase.peak_allocated_bytes)
    named = [
        f"{_name(SLOTS[slot], architecture, recipe)} hold{_verb(SLOTS[slot])} {_percent(nbytes, total)}"
        for nbytes, slot in shares[:2]
    ]
    dominating = SLOTS[shares[0][1]][0] if shares else ""
    told = named if dominating == "weights" else named[:1]
    return f"the peak is {_PLACES[phase.name]}: {' and '.join(told)}"


def _percent(nbytes: int, total: int) -> str:
    share = 100 * nbytes / total
    return f"{share:.0f}%" if share >= 1 else "under 1%"


_SINGULAR = frozenset({"optimizer state", "residual stream", "attention mask", "feed-forward"})


def _verb(slot: tuple[str, str]) -> str:
    return "s" if slot[1] in _SINGULAR else ""


def _name(slot: tuple[str, str], architecture: Architecture, recipe: Recipe) -> str:
    """What a slot of the ledger is called, with the size that makes it large."""
    role = slot[1]
    training = recipe.task == "training"
    lengths = recipe.lengths
    width = "fp32" if training else recipe.model.dtype
    section = recipe.quantization
    unlike = {part.scheme for part in section.overrides.values()} - {None, section.scheme}
    scheme = "mixed widths" if unlike else section.scheme
    names = {
        "weights": f"the weights in {recipe.model.dtype if scheme == 'none' else scheme}",
        "logits": f"{architecture.vocab:,}-wide logits in {width}",
        "cached keys and values": f"cached keys and values of {lengths.seq - 1:,} tokens",
        "attention scores": f"attention scores over {lengths.seq:,} x {lengths.seq:,} positions",
        "attention": "queries, keys, values and what attention makes of them",
        "feed-forward": f"the feed-forward layers' {architecture.layers[0].mlp.intermediate:,}-wide buffer",
        "normalisation": "the normalised copies of the hidden states",
        "residual stream": "the residual stream",
        "attention mask": "the attention mask",
        "inputs": "token ids and positions",
        "gradients": "the gradients",
        "optimizer state": f"the optimizer state ({recipe.optimizer.name})",
        "optimizer temporaries": f"temporaries of the optimizer's step ({temporaries_of(recipe)})",
        "kernel buffers": "the kernels' own buffers",
        "weight casts": f"autocast's {recipe.workload.autocast} copies of the weights",
        "adapters": "the adapters",
    }
    return names[role]
