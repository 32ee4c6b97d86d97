"""Which tokens continuous batching computes in which step, by sizes alone (no torch).

The order is that of transformers' ``FIFOScheduler`` over a pool that holds all requests: each request that
decodes comes first with one token, then prompts in their order, as much of them as a step has room for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mem_gpt_cli.recipe.paging import Paging


@dataclass(frozen=True)
class Step:
    """One batch: ``queries`` tokens of ``requests`` requests, which look at ``keys`` tokens in all.

    ``past`` of them were kept by earlier steps; ``chosen`` requests get a new token, ``pages`` are in use.
    ``reading``: a prompt waited or was not read to its end when the step began. ``blocks`` are the queries
    and keys of each request.
    """

    queries: int
    past: int
    requests: int
    chosen: int
    reading: bool
    pages: int
    blocks: tuple[tuple[int, int], ...] = field(repr=False)

    @property
    def keys(self) -> int:
        """Tokens that are read back: those kept and those of this step."""
        return self.past + self.queries


@dataclass
class _Request:
    prompt: int
    done: int = 0
    made: int = 0


def requests_at_once(paging: Paging) -> int:
    """Requests that a step can have: each brings one token at least."""
    return min(len(paging.prompts), paging.batch_tokens)


def pages_needed(paging: Paging) -> int:
    """The most pages that the requests have in use at once: those that end early leave theirs to others."""
    return max(step.pages for step in schedule(paging))


def schedule(paging: Paging) -> Iterator[Step]:
    """The steps of a run whose pool suffices, in their order."""
    waiting = [_Request(prompt) for prompt in paging.prompts]
    active: list[_Request] = []
    while active or waiting:
        reading = bool(waiting) or any(request.done < request.prompt for request in active)
        room, blocks, chosen, past = paging.batch_tokens, [], 0, 0
        for request in _in_order(active, waiting, requests_at_once(paging)):
            tokens = min(max(1, request.prompt - request.done), room)
            past += request.done
            request.done += tokens
            blocks.append((tokens, request.done))
            room -= tokens
            if request.done >= request.prompt:
                request.made += 1
                chosen += 1
            if not room:
                break
        pages = sum(paging.pages(request.done) for request in active)
        yield Step(paging.batch_tokens - room, past, len(blocks), chosen, reading, pages, tuple(blocks))
        active = [request for request in active if request.made < paging.new]


def _in_order(active: list[_Request], waiting: list[_Request], most: int) -> Iterator[_Request]:
    """Requests that decode, those that are being read, then those that wait, which become active."""
    ordered = sorted(active, key=lambda request: request.done < request.prompt)
    yield from ordered[:most]
    for _ in range(most - len(ordered)):
        if not waiting:
            return
        active.append(waiting.pop(0))
        yield active[-1]
