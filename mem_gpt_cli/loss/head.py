"""A causal language model in two halves: up to its last hidden states, and its own way on to the logits."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import torch


class Halves:
    """A causal language model of transformers, run up to its last hidden states and on from there.

    The second half is the model's own ``forward`` with its decoder answering what it is given. So scaled and
    capped logits, adapters on the output matrix, quantized ones: all are as the whole model has them.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.decoder: torch.nn.Module = model.get_decoder()  # type: ignore[operator]

    def decode(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> Any:
        """The decoder's outputs for ``[batch, seq]`` tokens; ``mask`` is 0 on padding."""
        return self.decoder(input_ids=tokens, attention_mask=mask, use_cache=False)

    def logits(self, decoded: Any, hidden: torch.Tensor) -> torch.Tensor:
        """The logits of some hidden states, ``[batch, rows, vocab]``.

        Args:
            decoded: outputs of ``decode``, for what the model reads of them besides.
            hidden: ``[batch, rows, hidden]``, in place of theirs.
        """
        answer = copy.copy(decoded)
        answer.last_hidden_state = hidden

        def answered(*_: Any, **__: Any) -> Any:
            return answer

        with mock.patch.object(self.decoder, "forward", answered):
            logits: torch.Tensor = self.model(inputs_embeds=hidden, use_cache=False).logits
        return logits
