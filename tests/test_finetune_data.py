"""The data of a fine-tune: what is read, what is learnt of it, how it is laid out, and in which order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mem_gpt_cli.errors import UsageError, UsageErrors
from mem_gpt_cli.finetune.data import load_data, split
from mem_gpt_cli.finetune.documents import Chat, Completion, Message, Text, document_of, read_documents
from mem_gpt_cli.finetune.rows import Order, packed, padded
from mem_gpt_cli.finetune.tokens import Encoded, encode
from mem_gpt_cli.loss.targets import IGNORED
from mem_gpt_cli.model import tiny
from mem_gpt_cli.recipe import recipe_of

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HELLO = (Message("user", "Who is there?"), Message("assistant", "The people."))


@pytest.fixture
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny.folder())


def learnt_text(tokenizer: Any, encoded: Encoded) -> str:
    ids = [token for token, learnt in zip(encoded.ids, encoded.learnt, strict=True) if learnt]
    return str(tokenizer.decode(ids))


def test_lines_of_each_kind_become_documents_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    lines = [
        {"text": "The Congress", "source": "kept out"},
        {"prompt": "Who?", "completion": " The people."},
        {"messages": [message._asdict() for message in HELLO]},
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8-sig")
    assert read_documents(str(file), "finetune.data") == [
        Text("The Congress", f"{file}:1"),
        Completion("Who?", " The people.", f"{file}:2"),
        Chat(HELLO, f"{file}:3"),
    ]


def test_a_text_is_split_at_its_marks_and_a_folder_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("one\n<|endoftext|>\n\n<|endoftext|>\ntwo\nlines\n")
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\n')
    (tmp_path / "c.md").write_text("no data")
    (tmp_path / "d.TXT").write_text("<|endoftext|>\nloud\n")
    (tmp_path / "e.JSONL").write_text('{"text": "last"}\n')
    found = read_documents(str(tmp_path), "finetune.data")
    assert [document.text for document in found if isinstance(document, Text)] == [
        "first",
        "one",
        "two\nlines",
        "loud",
        "last",
    ]
    assert [document.where for document in found[1:4]] == [
        f"{tmp_path / 'b.txt'}:1",
        f"{tmp_path / 'b.txt'}:5",
        f"{tmp_path / 'd.TXT'}:2",
    ]
    assert len(read_documents("sample", "finetune.data")) == 6


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{text: 1}", "is no JSON"),
        ('["text"]', "is a list, not an object"),
        ("12", "is a number, not an object"),
        ("{}", "has no text"),
        ('{"prompt": "a"}', "has no completion"),
        ('{"completion": "a"}', "has no 'prompt'"),
        ('{"text": "a", "messages": []}', "has both 'text' and 'messages'"),
        ('{"prompt": "a", "text": "b"}', "has both 'prompt' and 'text': name what follows"),
        ('{"prompt": "a", "messages": []}', "has both 'prompt' and 'messages': name what follows"),
        ('{"text": 3}', "text is a number: write a text"),
        ('{"text": ""}', "text is empty"),
        ('{"prompt": "a", "completion": ""}', "completion is empty"),
        ('{"text": "\\ud800"}', "half a character"),
        ('{"messages": "hello"}', "is no list of messages"),
        ('{"messages": []}', "is no list of messages"),
        ('{"messages": ["hello"]}', "message 1 is a text, not an object"),
        ('{"messages": [{"content": "a"}]}', "message 1: has no 'role'"),
        ('{"messages": [{"role": "user", "content": null}]}', "message 1: content is null"),
        ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "content is a list"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "nobody of role 'assistant' says anything"),
        ("[" * 100000, "nested too deeply"),
    ],
)
def test_a_malformed_line_is_one_sentence_with_its_place(line: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        document_of(line, "data.jsonl:7")
    sentence = str(caught.value)
    assert sentence.startswith("data.jsonl:7: ")
    assert reason in sentence
    assert "\n" not in sentence


def test_all_malformed_lines_are_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "fine"}\n' + "{}\n" * 23, encoding="utf-8")
    with pytest.raises(UsageErrors) as caught:
        read_documents(str(file), "finetune.data")
    assert len(caught.value.errors) == 21
    assert str(caught.value.errors[0]).startswith(f"{file}:2: ")
    assert str(caught.value.errors[-1]) == "and 3 more malformed lines"


def test_what_is_no_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "folder").mkdir()
    for name, reason in {
        "missing": "does not exist",
        "empty.txt": "is empty",
        "list.json": "is JSON",
        "latin.txt": "is not UTF-8",
        "folder": "holds no .txt and no .jsonl",
    }.items():
        with pytest.raises(UsageError, match=reason):
            read_documents(str(tmp_path / name), "finetune.data")


def test_a_text_is_learnt_whole_and_ends_with_the_end_of_text(tokenizer: Any) -> None:
    encoded = encode(Text("The Congress", "x"), tokenizer)
    assert encoded.ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(encoded.ids[:-1]) == "The Congress"
    assert all(encoded.learnt)


def test_a_prompt_is_read_and_its_completion_learnt(tokenizer: Any) -> None:
    encoded = encode(Completion("The Congress of", " the United States.", "x"), tokenizer)
    assert learnt_text(tokenizer, encoded) == f" the United States.{tokenizer.eos_token}"
    assert tokenizer.decode(encoded.ids) == f"The Congress of the United States.{tokenizer.eos_token}"


def test_of_a_chat_the_assistants_words_are_learnt_by_whatever_template(tokenizer: Any) -> None:
    chat = Chat((*HELLO, Message("user", "All?"), Message("assistant", "Yes.")), "x")
    plain = encode(chat, tokenizer)
    assert learnt_text(tokenizer, plain) == f" The people.\n Yes.\n{tokenizer.eos_token}"
    assert tokenizer.decode(plain.ids).startswith("user: Who is there?\nassistant: The people.\nuser: All?")
    tokenizer.chat_template = CHATML
    by_template = encode(chat, tokenizer)
    assert learnt_text(tokenizer, by_template) == (
        f"The people.<|im_end|>\nYes.<|im_end|>\n{tokenizer.eos_token}"
    )
    rendered = tokenizer.apply_chat_template([m._asdict() for m in chat.messages], tokenize=False)
    assert tokenizer.decode(by_template.ids[:-1]) == rendered


def test_a_chat_that_the_template_does_not_take_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UsageError, match=r"^d:1: the tokenizer's chat template refuses .*alternate"):
        encode(Chat(HELLO, "d:1"), tokenizer)
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(UsageError, match=r"^d:1: .*does not add turn 2"):
        encode(Chat(HELLO, "d:1"), tokenizer)


def test_packed_rows_hold_every_token_once_and_end_in_padding() -> None:
    documents = [Encoded([1, 2, 3, 0], [True] * 4), Encoded([4, 5, 0], [False, True, True])]
    rows = packed(documents, seq=4, padding=9)
    assert rows.tokens.tolist() == [[1, 2, 3, 0], [4, 5, 0, 9]]
    assert rows.labels.tolist() == [[1, 2, 3, 0], [IGNORED, 5, 0, IGNORED]]
    assert rows.lengths.tolist() == [4, 3]
    assert rows.learnt(torch.tensor([0, 1])) == 5
    assert packed([Encoded([1, 2], [False, False])], 2, 9).dropped == 1


def test_padded_rows_hold_one_document_each() -> None:
    documents = [
        Encoded([1, 2], [True] * 2),
        Encoded([3, 4, 5, 6], [True] * 4),
        Encoded([7, 8, 9, 10], [False, True, True, True]),
        Encoded([7, 8, 9, 10], [False, False, False, True]),
    ]
    rows = padded(documents, seq=3, padding=0)
    assert rows.tokens.tolist() == [[1, 2, 0], [3, 4, 5], [7, 8, 9]]
    assert rows.labels.tolist() == [[1, 2, IGNORED], [3, 4, 5], [IGNORED, 8, 9]]
    assert (rows.dropped, rows.cut) == (2, 2)  # "6" alone predicts nothing; of the last nothing is left


def test_the_end_of_the_data_is_held_out_and_nothing_is_lost() -> None:
    texts = [Text("line\n" * 20, "a"), Text("word " * 20, "b")]
    learnt, held_out = split(texts, 10)
    together = "".join(d.text for d in (*learnt, *held_out) if isinstance(d, Text))
    assert together == "".join(text.text for text in texts)
    assert 15 <= sum(len(d.text) for d in held_out if isinstance(d, Text)) <= 25
    chats = [Chat(HELLO, str(number)) for number in range(10)]
    assert split(chats, 20) == (chats[:8], chats[8:])
    assert split(chats, 0.1) == (chats[:9], chats[9:])
    assert split(chats[:1], 50) == (chats[:1], [])


def test_the_order_is_a_shuffle_of_all_rows_again_and_again_wherever_one_begins() -> None:
    order = Order(7, seed=3)
    places = [int(row) for start in range(0, 21, 3) for row in order.take(start, 3)]
    for epoch in range(3):
        assert sorted(places[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert places[:7] != places[7:14]
    assert Order(7, seed=3).take(10, 5).tolist() == places[10:15]
    assert Order(7, seed=4).take(0, 7).tolist() != places[:7]


def test_data_is_laid_out_as_the_recipe_says(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "We meet here."}\n' * 40)
    keys: dict[str, Any] = {"task": "training", "workload": {"seq": 16}}
    asked = {"data": str(file), "held_out_percent": 25, "evaluate_tokens": 32, "packing": False}
    found = load_data(recipe_of({**keys, "finetune": asked}), tokenizer)
    assert len(found.training) == 30
    assert found.held_out is not None
    assert len(found.held_out) == 2
    packs = load_data(recipe_of({**keys, "finetune": asked | {"packing": True}}), tokenizer)
    assert len(packs.training) < 30
    assert int(packs.training.lengths.sum()) == int(found.training.lengths.sum())
    assert found.digests() != packs.digests()
    alone = load_data(recipe_of({**keys, "finetune": asked | {"held_out": str(file)}}), tokenizer)
    assert len(alone.training) == 40
