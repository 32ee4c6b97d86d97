"""How ``memgpt generate`` answers: texts on stdout, or objects; the same objects in a file, to go on from."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mem_gpt_cli.cli import console
from mem_gpt_cli.cli.prompts import Asked

if TYPE_CHECKING:
    from mem_gpt_cli.recipe.schema import Recipe
    from mem_gpt_cli.workload.generation import Completion, Prompt


@dataclass
class Answers:
    """Where the answers go, each as soon as it is there; ``digest`` stands for what makes them."""

    json: bool
    out: Path | None
    count: int
    digest: str
    given: list[Completion] = field(default_factory=list)
    _mid_line: bool = False

    def tell(self, prompt: Prompt, piece: str) -> None:
        """A piece of the only text that is under way."""
        if not self.json:
            if not self._mid_line:
                self._head(prompt)
            print(piece, end="", flush=True)
            self._mid_line = True

    def give(self, completion: Completion, asked: Sequence[Asked], model: str) -> None:
        """A whole answer."""
        from mem_gpt_cli.report.jsonl import append_object, line_of

        id_ = next(one.id for one in asked if one.index == completion.prompt.index)
        if self.out is not None:
            append_object(self.out, self._object(completion, id_, model))
        self.given.append(completion)
        if self.json:
            print(line_of(self._object(completion, id_, model)), flush=True)
            return
        if not self._mid_line:
            self._head(completion.prompt)
            print(completion.text, end="")
        self._mid_line = True
        self.end_line()

    def end_line(self) -> None:
        """End the line that a text stands in, also where the text was cut short."""
        if self._mid_line:
            print(flush=True)
            self._mid_line = False

    def say_what_is_kept(self) -> None:
        """After an interrupt: what is there, and how to go on."""
        done = f"{len(self.given)} of {self.count} texts are done"
        if self.out is None:
            kept = "what is not printed is lost; with --out FILE --resume goes on"
        elif self.given:
            kept = f"they are in {self.out}: the same command with --resume goes on"
        else:
            kept = f"nothing was added to {self.out}"
        console.people().print(f"interrupted: {done}, {kept}", markup=False, soft_wrap=True)

    def _head(self, prompt: Prompt) -> None:
        if self.count > 1:
            sys.stdout.flush()
            first, *more = prompt.text.splitlines() or [""]
            short = first[:60] + ("..." if more or len(first) > 60 else "")
            console.people().print(f"[{prompt.index}] {short}", markup=False, soft_wrap=True)

    def _object(self, completion: Completion, id_: Any, model: str) -> dict[str, Any]:
        prompt = completion.prompt
        return {
            "schema_version": 1,
            "index": prompt.index,
            **({} if id_ is None else {"id": id_}),
            "model": model,
            "prompt": prompt.text,
            "text": completion.text,
            "prompt_tokens": len(prompt.tokens),
            "tokens": len(completion.tokens),
            "finish_reason": completion.finish_reason,
            "seconds": round(completion.seconds, 6),
            "tokens_per_s": round(completion.tokens_per_s, 3),
            "seed": prompt.seed,
            "made_by": self.digest,
        }


def without_answered(asked: Sequence[Asked], recipe: Recipe, out: Path, digest: str) -> list[Asked]:
    """The prompts that ``out`` has no answer to: of the same place, text and seed, made by the same."""
    from mem_gpt_cli.report.jsonl import read_objects

    found = read_objects(out)
    answered = {
        (line.get("index"), line.get("prompt"), line.get("seed"))
        for line in found
        if line.get("made_by") == digest
    }
    left = [
        one
        for one in asked
        if (one.index, one.text, (recipe.workload.seed + one.index) % 2**63) not in answered
    ]
    others = sum(line.get("made_by") != digest for line in found)
    more = f" ({others} answers there were made by another model or with other options)" if others else ""
    console.people().print(
        f"{len(asked) - len(left)} of {len(asked)} prompts are answered in {out}{more}",
        markup=False,
        soft_wrap=True,
    )
    return left
