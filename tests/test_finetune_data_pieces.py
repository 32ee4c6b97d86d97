"""A long text is encoded piece by piece: the tokens are those of the whole, whatever the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mem_gpt_cli.finetune import pieces
from mem_gpt_cli.finetune.data import load_data
from mem_gpt_cli.finetune.pieces import REACH, tokens_of
from mem_gpt_cli.model import tiny
from mem_gpt_cli.profile.process import ProcessPeak
from mem_gpt_cli.quality.text import sample_texts
from mem_gpt_cli.recipe import recipe_of

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WINDOW = 8 * REACH


def of_words(name: str) -> Any:
    """A tokenizer of a kind, trained on a little text."""
    made = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>"))
    alphabet: list[str] = []
    if name == "gpt2":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif name == "prefix space":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif name == "llama3":
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA_3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif name == "metaspace":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        made.decoder = decoders.Metaspace()
    elif name == "one word":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    text = sample_texts()[0][:20_000]
    special = ["<unk>", "<s>", "</s>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(text.split("\n") if name == "one word" else [text], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.fixture(scope="module")
def shipped() -> Any:
    return AutoTokenizer.from_pretrained(tiny.folder())


@pytest.fixture(scope="module")
def text() -> str:
    """Prose, and what borders of pieces could fall into."""
    prose = sample_texts()[1][:12_000]
    odd = [
        "\n" * 900, " " * 800, "a\n\n b \r\n\n\tc" * 300, "x" * 700, "1234567" * 120, "don't we'll " * 300,
        "été e\u0301te\u0301 ΑΣ\u0345 ﬁ 漢字かな " * 150, "<|endoftext|>" * 200, " <|endoftext|> mid",
        "🙂\u200d👩\u200d👧" * 60,
    ]  # fmt: skip
    return prose[:4_000].join(["", *odd, ""]) + prose


@pytest.mark.parametrize("name", ["gpt2", "llama3", "metaspace", "one word"])
def test_the_tokens_are_those_of_the_whole_text(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = of_words(name)
    found = {}
    original = pieces._in_pieces

    def noted(*arguments: Any) -> Any:
        found[name] = original(*arguments)
        return found[name]

    monkeypatch.setattr(pieces, "_in_pieces", noted)
    whole = tokenizer(text)["input_ids"]
    for window in (WINDOW, WINDOW + 1_111, 4 * WINDOW):
        assert tokens_of(text, tokenizer, window).tolist() == whole
        assert (found[name] is None) == (name == "one word")


def test_pieces_that_do_not_agree_are_given_up() -> None:
    """This tokenizer puts a space before whatever it is given, so that a piece is not what the whole is."""
    tokenizer = of_words("prefix space")
    text = "word\n" * 2 * WINDOW
    assert pieces._in_pieces(text, tokenizer, WINDOW) is None
    assert tokens_of(text, tokenizer, WINDOW).tolist() == tokenizer(text)["input_ids"]


def test_a_run_that_no_border_cuts_is_encoded_in_one_go() -> None:
    tokenizer = of_words("gpt2")
    text = "word " * 2_000 + "x" * 3 * WINDOW + " word" * 2_000
    assert tokens_of(text, tokenizer, WINDOW).tolist() == tokenizer(text)["input_ids"]


def test_a_byte_of_text_takes_few_bytes_of_memory(tmp_path: Path, shipped: Any) -> None:
    """Encoded as one, a byte of text took 150."""
    file = tmp_path / "long.txt"
    file.write_text("\n\n".join(sample_texts()) * 4)
    asked = recipe_of({"task": "training", "workload": {"seq": 128}, "finetune": {"data": str(file)}})
    peak = ProcessPeak()
    peak.reset()
    before = peak.read()
    if before is None:
        pytest.skip("this system does not let a process reset its peak")
    load_data(asked, shipped)
    grown = (peak.read() or 0) - before
    assert grown < 50 * file.stat().st_size


def test_the_shipped_tokenizer_takes_pieces(shipped: Any) -> None:
    text = sample_texts()[0]
    assert pieces._in_pieces(text, shipped, WINDOW) is not None
    assert tokens_of(text, shipped, WINDOW).tolist() == shipped(text)["input_ids"]
