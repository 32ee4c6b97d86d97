"""Where transformers asks whether it is being traced, the dry run answers as the real run would.

transformers takes a fake tensor for a sign of compilation, and then leaves its ordinary path: a causal mask
is materialised, flash attention is lost. Each patch here undoes one such departure, for the time of a trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch


def _not_fake(_: Any) -> bool:
    return False


def _single_sequence(_: torch.Tensor) -> None:
    """``find_packed_sequence_indices`` looks at position ids for several packed sequences: there is one."""
    return


@contextmanager
def like_the_real_run() -> Iterator[None]:
    """Patch the questions that transformers asks about tracing and about data that a trace lacks."""
    from transformers import masking_utils
    from transformers.utils import import_utils

    with (
        mock.patch.object(import_utils, "is_fake_tensor", _not_fake),
        mock.patch.object(masking_utils, "find_packed_sequence_indices", _single_sequence),
    ):
        yield
