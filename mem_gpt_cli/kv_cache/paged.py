"""Paged attention: transformers' continuous batching, one step after the other in the caller's thread.

transformers runs its loop in a thread of its own. Whoever watches a run by a dispatch mode sees his own
thread alone, so the loop's body stands here: ``prepare_next_batch``, ``_generation_step``, ``update_batch``
of the batch processor, which are the same in transformers 5.17 and 5.23. No CUDA graphs, no second set of
inputs, no pages moved to the host; and one stream, that of the caller.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch

from mem_gpt_cli.errors import UnsupportedError
from mem_gpt_cli.kv_cache.page_count import PageCount
from mem_gpt_cli.kv_cache.paged_families import why_not_family
from mem_gpt_cli.kv_cache.paged_pool import Pool

if TYPE_CHECKING:
    from transformers import GenerationConfig

NO_END = -1
"""The end of sequence of a request that always makes all its tokens."""
Pick = Callable[[int, torch.Tensor, Sequence[int]], int]
"""The next token of a request: from its number, its logits, ``[1, vocabulary]``, and all tokens so far."""
OnToken = Callable[[int, int], None]
"""Called with the number of a request and its next token."""


class PagedGeneration:
    """A pool of pages on the model's device, and the requests that are served from it.

    Args:
        model: a causal language model of transformers whose attention is ``sdpa`` or ``eager``.
        pool: how large the pool and a step are.
        pick: how tokens are picked; ``None`` takes the likeliest.
        seed: torch's seed from here on, which transformers sets.

    Raises:
        UnsupportedError: for a model that continuous batching cannot run, with the reason.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        pool: Pool,
        pick: Pick | None = None,
        seed: int = 0,
    ) -> None:
        if (reason := why_not(model)) is not None:
            family = model.config.get_text_config().model_type  # type: ignore[operator, union-attr]
            raise UnsupportedError(f"kv_cache.kind: paged cannot run {family}: {reason}")
        self.pool = pool
        self.count = PageCount(pool.page_size)
        self.tokens: list[list[int]] = []
        paged: Any = model
        self._model = paged
        self._attention: str = self._model.config._attn_implementation
        if not _chooses_its_own_attention():
            self._model.set_attn_implementation(f"paged|{self._attention}")
        with _footprint_unchecked():
            self._manager = self._model.init_continuous_batching(
                generation_config=_greedy(),
                continuous_batching_config=_config(pool, seed),
            )
            self._processor: Any = self._manager._create_batch_processor()
        self._processor.inputs_and_outputs.compute_stream = None
        self._manager.batch_processor = self._processor
        if pick is not None:
            self._processor.model_runner._sample = self._picked_by(pick)

    def add(self, prompt: Sequence[int], new_tokens: int, end: int | Sequence[int] = NO_END) -> int:
        """Take a request in; returns its number. ``end`` are the tokens that it may stop at."""
        number = len(self.tokens)
        ends = end if isinstance(end, int) else list(end)
        self._manager.add_request(
            list(prompt), request_id=str(number), max_new_tokens=new_tokens, streaming=True, eos_token_id=ends
        )
        self.tokens.append([])
        return number

    @property
    def reading(self) -> bool:
        """Whether a prompt waits to be read, or is not read to its end."""
        scheduler = self._processor.scheduler
        return (
            not self._manager.input_queue.empty()
            or bool(scheduler.waiting_requests)
            or any(state.remaining_prefill_tokens for state in scheduler.active_requests.values())
        )

    @property
    def pending(self) -> bool:
        """Whether a request is not served to its end."""
        return not self._manager.input_queue.empty() or self._processor.has_pending_requests()

    def step(self, on_token: OnToken | None = None) -> None:
        """Compute one batch of what is pending.

        Raises:
            UnsupportedError: where transformers finds no way on, as when no request fits the pool.
        """
        self._make_room()
        try:
            if not self._processor.prepare_next_batch():
                return
        except RuntimeError as error:
            if "No requests can be scheduled" not in str(error):
                raise
            raise UnsupportedError(
                f"the pool of {self.pool.pages} pages holds none of the waiting requests: give more"
            ) from error
        self._look()
        self._manager._generation_step()
        self._processor.update_batch()
        self._look()
        self._take_tokens(on_token)

    def run(self, on_token: OnToken | None = None) -> list[list[int]]:
        """Serve all requests; returns the new tokens of each, in the order in which they were added."""
        while self.pending:
            self.step(on_token)
        return self.tokens

    def pool_tensors(self) -> Iterator[torch.Tensor]:
        """The tensors that hold the pages."""
        cache = self._processor.cache
        if hasattr(cache, "cache_tensor"):
            yield cache.cache_tensor
            return
        yield from (*cache.key_cache, *cache.value_cache)

    def input_tensors(self) -> Iterator[torch.Tensor]:
        """The tensors that a step's inputs are written into, its mask among them."""
        for value in vars(self._processor.inputs_and_outputs).values():
            if isinstance(value, torch.Tensor):
                yield value
            elif isinstance(value, dict):
                yield from (part for part in value.values() if isinstance(part, torch.Tensor))

    def close(self) -> None:
        """Give the pool back: to the device's allocator, and by it to the system."""
        self._processor = self._manager.batch_processor = None
        self._manager.destroy()
        self._manager = None
        if self._model.config._attn_implementation != self._attention:
            self._model.set_attn_implementation(self._attention)
        self._model = None
        give_back()

    def _picked_by(self, pick: Pick) -> Callable[[torch.Tensor, torch.Tensor], None]:
        """Stands for ``ModelRunner._sample``: ``scores`` are ``[1, requests, vocabulary]``."""

        def sample(scores: torch.Tensor, output_ids: torch.Tensor) -> None:
            batch = self._processor.inputs_and_outputs.requests_in_batch
            states = [future.state for future in batch if future.has_new_token]
            picked = [
                pick(int(state.request_id), scores[0, row : row + 1], self._said(state))
                for row, state in enumerate(states)
            ]
            output_ids[0, : len(picked)] = torch.tensor(picked, dtype=output_ids.dtype)

        return sample

    def _said(self, state: Any) -> list[int]:
        """A request's tokens so far; where its pages were taken away, its prompt has the new ones too."""
        return [*state.initial_tokens, *state.generated_tokens]

    def _make_room(self) -> None:
        """Forget the pages kept of requests that are over, where the next batch might want them.

        transformers keeps them for a later request with the same prefix, and gives them up for a request that
        waits only when its safety margin, a share of the whole pool, is touched.
        """
        cache = self._processor.cache
        if not hasattr(cache, "evict_cached_blocks"):
            return  # in 5.17 what is kept counts as free
        wanted = self.pool.batch_tokens // self.pool.page_size + self.pool.requests
        if cache.compute_free_capacity() * self.pool.pages < wanted:
            cache.evict_cached_blocks()

    def _look(self) -> None:
        scheduler = self._processor.scheduler
        stored = {name: state.position_offset for name, state in scheduler.active_requests.items()}
        tables = {
            name: pages for name, pages in _block_table(self._processor.cache).items() if name in stored
        }
        self.count.look(tables, stored)

    def _take_tokens(self, on_token: OnToken | None) -> None:
        queue = self._manager.output_router.output_queue
        while not queue.empty():
            output = queue.get_nowait()
            if output.error is not None:
                raise UnsupportedError(f"request {output.request_id} failed in transformers: {output.error}")
            number = int(output.request_id)
            held = self.tokens[number]
            fresh = output.generated_tokens[len(held) :]
            held.extend(fresh)
            for token in fresh if on_token is not None else ():
                on_token(number, token)  # type: ignore[misc]


def page_bytes(model: torch.nn.Module, page_size: int) -> int:
    """Bytes of a page of ``page_size`` tokens in all of the model's layers."""
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dtype: Any = model.dtype
    return 2 * int(config.num_hidden_layers * heads * width) * int(dtype.itemsize) * page_size


def why_not(model: torch.nn.Module) -> str | None:
    """Why continuous batching cannot run a model; ``None`` where it can."""
    if not hasattr(model, "init_continuous_batching"):
        return "it has no continuous batching in transformers"
    text: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    windowed = getattr(text, "sliding_window", None) is not None and not getattr(text, "layer_types", None)
    windowed |= bool(set(getattr(text, "layer_types", None) or ()) - {"full_attention"})
    return why_not_family(text.model_type, windowed)


def _greedy() -> GenerationConfig:
    """The likeliest token each time, to the end."""
    from transformers import GenerationConfig

    return GenerationConfig(do_sample=False, eos_token_id=NO_END)


def give_back() -> None:
    """Return what nothing refers to any more to the system, where the C library and the device can."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _config(pool: Pool, seed: int) -> Any:
    """transformers' settings for a pool, by the names that this version of it has."""
    from transformers import ContinuousBatchingConfig

    known = {field.name for field in fields(ContinuousBatchingConfig)}
    wanted: Mapping[str, Any] = {
        "page_size" if "page_size" in known else "block_size": pool.page_size,
        "num_blocks": pool.pages,
        "max_batch_tokens": pool.batch_tokens,
        "max_requests_per_batch": pool.requests,
        "max_blocks_per_request": 0,
        "max_memory_percent": 1.0,
        "safety_margin": 0.0 if pool.suffices else None,
        "use_cuda_graph": False,
        "use_async_batching": False,
        "cpu_offload_space": 0.0,
        "auto_switch_to_flash": False,
        "seed": seed,
    }
    return ContinuousBatchingConfig(**{name: value for name, value in wanted.items() if name in known})


def _chooses_its_own_attention() -> bool:
    """Whether transformers runs plain ``sdpa`` over pages, as 5.23 does; 5.17 wants ``paged|sdpa``."""
    from transformers import ContinuousBatchingConfig

    return any(field.name == "auto_switch_to_flash" for field in fields(ContinuousBatchingConfig))


_ENOUGH = 1 << 60


@contextmanager
def _footprint_unchecked() -> Iterator[None]:
    """The pool has the recipe's size, so what this machine has free is not asked, as a dry run must not."""
    from transformers.generation.continuous_batching import cache

    handler = cache.PagedAttentionMemoryHandler
    with mock.patch.object(handler, "get_available_memory", return_value=_ENOUGH):
        yield


def _block_table(cache: Any) -> Mapping[str, Sequence[int]]:
    """The pages of each request, in layers that all look at everything."""
    if hasattr(cache, "cache_allocators"):
        (allocator,) = cache.cache_allocators.values()
    else:
        (allocator,) = cache.group_cache_managers
    table: Mapping[str, Sequence[int]] = allocator.block_table
    return table
