"""Where the modelling code of two families computes the same thing with different buffers.

Sizes come from the ``Architecture``; what is here is how transformers wrote the code (5.23), which no config
tells: the widths of intermediate results and the copies that are held.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Dialect(NamedTuple):
    """How a family's code is written.

    Attributes:
        followed: the walk follows this code; else it is near, but off by more than a few percent where
            attention's buffers outweigh the weights.
        sdpa: the code can call it; else only eager attention runs.
        softmax_fp32: eager attention takes its softmax in fp32 and casts back.
        rms: ``llama`` casts the normalised input back before the weight multiplies it, ``gemma`` multiplies
            in fp32 by ``1 + weight``.
        embedding_scale: the embeddings are multiplied by a number.
        norm_position: before each part, before and after it (``sandwich``), or after it alone.
        holds_attention_output: the block keeps a name on it to its end, and on what enters attention and MLP
            until their output is added to the residual stream.
        drops_in_attention: the attention's own code drops out its output, while its names are still held.
        scales_queries: the queries are scaled, not the scores.
        positions_by_sequence: learned positions are looked up for each sequence, not once for all.
        rotary_by_span: layers with a window and layers without have rotary tables of their own.
        inlines_mlp: the block's own code runs the MLP and binds its input's name anew, so that the input goes
            when the first product is made; a module's caller holds it to the end.
    """

    followed: bool = True
    sdpa: bool = True
    softmax_fp32: bool = True
    rms: Literal["llama", "gemma"] = "llama"
    embedding_scale: bool = False
    norm_position: Literal["pre", "sandwich", "post"] = "pre"
    holds_attention_output: bool = False
    drops_in_attention: bool = False
    scales_queries: bool = False
    positions_by_sequence: bool = False
    rotary_by_span: bool = False
    inlines_mlp: bool = False


_DEFAULT = Dialect()
_GEMMA3 = Dialect(rms="gemma", embedding_scale=True, norm_position="sandwich", rotary_by_span=True)
_DIALECTS = {
    "gpt2": Dialect(softmax_fp32=False, holds_attention_output=True, drops_in_attention=True),
    "gpt_bigcode": Dialect(holds_attention_output=True, drops_in_attention=True),
    "opt": Dialect(scales_queries=True, positions_by_sequence=True, inlines_mlp=True),
    "gemma": Dialect(rms="gemma", embedding_scale=True),
    "gemma2": Dialect(sdpa=False, rms="gemma", embedding_scale=True, norm_position="sandwich"),
    "bloom": Dialect(followed=False, sdpa=False),
    "codegen": Dialect(sdpa=False),
    "falcon": Dialect(followed=False),
    "gpt_neo": Dialect(followed=False, sdpa=False),
    "gptj": Dialect(sdpa=False),
    "gpt_oss": Dialect(sdpa=False),
    "mpt": Dialect(sdpa=False),
    "gemma3_text": _GEMMA3,
    "gemma3": _GEMMA3,
    "olmo2": Dialect(norm_position="post"),
    "olmo3": Dialect(norm_position="post", rotary_by_span=True),
}


def dialect_of(model_type: str) -> Dialect:
    """The dialect of a ``model_type``; one not listed is taken to be written like Llama."""
    return _DIALECTS.get(model_type, _DEFAULT)
