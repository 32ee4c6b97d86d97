"""The process in which cells run, from inside; ``worker`` is the same from outside.

It reads one request a line on stdin, ``{"recipe": {...}, "lenses": [...]}``, and writes what happens as JSON
lines to the file descriptor in its first argument, because libraries print to stdout what they like:

    {"event": "begin", "reserved_bytes": 0}                         what the GPU's allocator holds already
    {"event": "phase", "phase": "prefill"}                          a phase of the real run begins
    {"event": "report", "lens": "trace", "seconds": 0.7, ...}       a lens has answered; "report" is its JSON
    {"event": "refused", "lens": "estimate", "error": "..."}        a lens cannot answer for this recipe
    {"event": "failed", "lens": "profile", "status": "oom", ...}    a lens broke
    {"event": "pruned", "error": "..."}                             too large by prediction: not run
    {"event": "end"}                                                the request is done

The end of stdin ends the process at once, also in the middle of a run: nobody is left to read the answer.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from time import perf_counter
from typing import Any, NoReturn

from mem_gpt_cli.bench.fresh import given_back
from mem_gpt_cli.bench.limits import too_large
from mem_gpt_cli.bench.outcome import LENSES, Status, best_prediction
from mem_gpt_cli.errors import MemgptError, RecipeError, UnsupportedError
from mem_gpt_cli.profile.exhaustion import ran_out_of_memory
from mem_gpt_cli.recipe.schema import Recipe
from mem_gpt_cli.report.json import to_dict
from mem_gpt_cli.report.model import Lens, MemoryReport

Tell = Callable[[str, dict[str, Any]], None]


def main() -> NoReturn:
    """Answer requests until stdin ends."""
    requests: SimpleQueue[str] = SimpleQueue()
    Thread(target=_receive, args=(requests,), daemon=True).start()
    with os.fdopen(int(sys.argv[1]), "w", buffering=1) as out:

        def tell(event: str, facts: dict[str, Any]) -> None:
            print(json.dumps({"event": event, **facts}), file=out)

        while True:
            request = json.loads(requests.get())
            recipe = Recipe.model_validate_json(json.dumps(request["recipe"]))
            held = given_back(recipe.device)
            tell("begin", {"reserved_bytes": held.reserved if held else None})
            run_cell(recipe, request["lenses"], tell)
            given_back(recipe.device)  # also now: others may be waiting for the memory
            tell("end", {})


def _receive(requests: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def run_cell(recipe: Recipe, lenses: Sequence[Lens], tell: Tell) -> None:
    """Ask each lens, the predictions first; measure only what is predicted to fit."""
    found: dict[Lens, MemoryReport] = {}
    for lens in LENSES:
        if lens not in lenses:
            continue
        if lens == "profile" and (reason := too_large(recipe, best_prediction(found))):
            tell("pruned", {"error": reason})
            return
        try:
            ask = _lens(lens, tell)
            start = perf_counter()
            found[lens] = ask(recipe)
            seconds = perf_counter() - start
        except (UnsupportedError, RecipeError) as error:
            tell("refused", {"lens": lens, "error": f"{lens}: {error}"})
        except Exception as error:
            if not isinstance(error, MemgptError):
                traceback.print_exc()
            tell("failed", {"lens": lens, "status": _status(error), "error": f"{lens}: {_sentence(error)}"})
        else:
            tell("report", {"lens": lens, "seconds": seconds, "report": to_dict(found[lens])})


def _lens(lens: Lens, tell: Tell) -> Callable[[Recipe], MemoryReport]:
    """A lens, imported: what an import takes is in no duration."""
    if lens == "estimate":
        from mem_gpt_cli.estimate import estimate

        return estimate
    if lens == "trace":
        from mem_gpt_cli.trace import trace

        return trace
    from mem_gpt_cli.profile.lens import profile

    def tell_phase(phase: str, step: int, steps: int, live_bytes: int | None) -> None:  # noqa: ARG001
        tell("phase", {"phase": phase, "step": step, "steps": steps})

    return lambda recipe: profile(recipe, progress=tell_phase)


def _status(error: Exception) -> Status:
    return "oom" if ran_out_of_memory(error) else "error"


def _sentence(error: Exception) -> str:
    if isinstance(error, MemgptError):
        return str(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


if __name__ == "__main__":
    main()
