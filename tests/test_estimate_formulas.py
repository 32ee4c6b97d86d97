"""The closed forms of docs/formulas.md hold for what the walk through a model counts."""

from __future__ import annotations

import pytest

from mem_gpt_cli.devices.catalogue import find_gpu
from mem_gpt_cli.estimate import decoder
from mem_gpt_cli.estimate.books import INT64, Ledger
from mem_gpt_cli.estimate.checkpointing import RANDOM_STATE
from mem_gpt_cli.estimate.cuda import CudaKernels
from mem_gpt_cli.estimate.decoder import Decoder
from mem_gpt_cli.estimate.phases import walk
from mem_gpt_cli.model import resolve
from mem_gpt_cli.recipe import load_recipe

BATCH, SEQ, HIDDEN, HEADS, INNER, KV_HEADS = 3, 96, 64, 8, 176, 2
HEAD_DIM = HIDDEN // HEADS
ROWS = BATCH * SEQ

GPT2 = (
    "model.name=gpt2",
    "model.config.vocab_size=80",
    f"model.config.n_embd={HIDDEN}",
    f"model.config.n_head={HEADS}",
)
LLAMA = (
    "model.name=llama-2-7b",
    "model.config.vocab_size=80",
    f"model.config.hidden_size={HIDDEN}",
    f"model.config.num_attention_heads={HEADS}",
    f"model.config.num_key_value_heads={KV_HEADS}",
    f"model.config.intermediate_size={INNER}",
)
DEPTH = {"gpt2": "n_layer", "llama-2-7b": "num_hidden_layers"}


def kept_by_one_layer(model: tuple[str, ...], *options: str) -> int:
    """Bytes that one more layer leaves behind for backward once the forward pass has gone through it."""
    fewer, more = (kept_by(model, depth, *options) for depth in (4, 5))
    return more - fewer


def kept_by(model: tuple[str, ...], depth: int, *options: str) -> int:
    name = model[0].removeprefix("model.name=")
    recipe = load_recipe(
        overrides=[
            *model,
            f"model.config.{DEPTH[name]}={depth}",
            "task=training",
            f"workload.batch={BATCH}",
            f"workload.seq={SEQ}",
            *options,
        ]
    )
    ledger = Ledger()
    ledger.enter("forward")
    cuda = CudaKernels(find_gpu("a100-80gb"), "fp32") if recipe.device.type == "cuda" else None
    model_of = Decoder(resolve(recipe.model).architecture, recipe, ledger, weights=[0], cuda=cuda)
    tape = model_of.tape(recording=True)
    hidden = model_of.forward(tape, tape.new(ROWS, INT64, "tokens"))
    kept = ledger.total
    del hidden
    return kept


def test_gpt2_keeps_112_bytes_of_each_hidden_element() -> None:
    """fp32, fused attention: the table in docs/formulas.md; statistics of norms and rows come on top."""
    statistics = 2 * 2 * 4 + HEADS * 4
    assert kept_by_one_layer(GPT2, "model.dropout=0") == ROWS * (112 * HIDDEN + statistics)


def test_gpt2_eager_keeps_its_scores_once() -> None:
    """Without dropout the softmax's output is all that eager attention keeps of the scores. Queries, keys and
    values are copied by head where there is more than one sequence, and take the place of what they are from.
    """
    kept = kept_by_one_layer(GPT2, "model.dropout=0", "attention.backend=eager")
    scores = 4 * BATCH * HEADS * SEQ * SEQ
    assert kept == ROWS * (112 * HIDDEN + 2 * 2 * 4) + scores


def test_dropout_on_cpu_keeps_noise_as_wide_as_what_it_drops() -> None:
    """ATen/native/Dropout.cpp: the noise of the scores, what is left of them, and two residuals' noise."""
    plain = kept_by_one_layer(GPT2, "model.dropout=0", "attention.backend=eager")
    dropped = kept_by_one_layer(GPT2, "model.dropout=0.1", "attention.backend=eager")
    scores = 4 * BATCH * HEADS * SEQ * SEQ
    assert dropped - plain == 2 * scores + 2 * 4 * ROWS * HIDDEN


def test_dropout_on_cuda_keeps_a_byte_an_element() -> None:
    """The fused kernel's mask is boolean."""
    options = ("attention.backend=eager", "device.name=cuda")
    plain = kept_by_one_layer(GPT2, "model.dropout=0", *options)
    dropped = kept_by_one_layer(GPT2, "model.dropout=0.1", *options)
    scores = BATCH * HEADS * SEQ * SEQ
    assert dropped - plain == pytest.approx((4 + 1) * scores + 2 * ROWS * HIDDEN)


def test_llama_keeps_eight_hidden_four_intermediate_and_its_keys_and_values() -> None:
    """fp32 and fused attention: see the table in docs/formulas.md."""
    keys_and_values = 2 * KV_HEADS * HEAD_DIM
    statistics = 2 * 4 + HEADS * 4
    expected = 4 * (8 * HIDDEN + 4 * INNER + keys_and_values) + statistics
    assert kept_by_one_layer(LLAMA) == ROWS * expected


def test_checkpointing_keeps_the_input_of_a_layer() -> None:
    """Chen et al., arXiv:1604.06174: one tensor a layer; what a layer makes is made again in backward.

    Beside it torch keeps the state of the CPU's random generator: 5,056 bytes.
    """
    assert kept_by_one_layer(LLAMA, "checkpointing.policy=full") == ROWS * HIDDEN * 4 + RANDOM_STATE


@pytest.mark.parametrize("model", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("options", ["", "attention.backend=eager", "kv_cache.kind=none"])
def test_leaving_out_equal_layers_changes_nothing(
    model: tuple[str, ...], options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In inference layers in the middle of a row of equal ones are booked without being walked."""
    depth = f"model.config.{DEPTH[model[0].removeprefix('model.name=')]}=9"
    recipe = load_recipe(overrides=[*model, depth, "workload.seq=64", *options.split()])
    architecture = resolve(recipe.model).architecture
    short = walk(architecture, recipe)
    monkeypatch.setattr(decoder, "_inner", lambda _: frozenset())
    whole = walk(architecture, recipe)
    assert {p: (m.total, m.live) for p, m in short.peaks.items()} == {
        p: (m.total, m.live) for p, m in whole.peaks.items()
    }
