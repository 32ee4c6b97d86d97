"""Run each case on the rehearsed card and print what its operator allocated: a JSON list a line.

``[operator, args, kwargs, buffers]``: tensors in ``args`` are ``["T", shape, strides, dtype]``; ``buffers``
are the bytes of each buffer, results aside, at the moment when the operator holds the most.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

F32, BF16, F16, I64, I32, BOOL = (
    torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool,
)  # fmt: skip
FLOATS = (F32, BF16, F16)
Case = tuple[Any, ...]


def empty(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def cases() -> Iterator[Case]:
    yield from reductions()
    yield from random_sums()
    for dtype in FLOATS:
        yield from normalisations(dtype)
        yield from lookups(dtype)
        yield from nothing(dtype)
    yield from sorts()
    yield (
        "_grouped_mm",
        [empty(2048, 512, dtype=BF16), empty(8, 1024, 512, dtype=BF16).mT, empty(8, dtype=I32)],
    )
    yield "_grouped_mm", [empty(2048, 512, dtype=BF16).t(), empty(2048, 64, dtype=BF16), empty(64, dtype=I32)]
    yield "_foreach_norm.Scalar", [[empty(768, 768), empty(50257, 768), empty(768)], 2]


def reductions() -> Iterator[Case]:
    shapes: list[tuple[tuple[int, ...], list[int]]] = [
        ((1024, 768), [0]), ((512, 2304), [0]), ((4096, 3072), [0]), ((128, 1600), [0]), ((1024, 6400), [0]),
        ((2, 512, 4096), [0, 1]), ((8, 1024, 4096), [0, 1]), ((1, 128, 2048), [0, 1]), ((1024, 4096), [1]),
        ((4, 512, 4096), [2]), ((2048, 50257), [1]), ((2048, 50257), [0]), ((7, 13, 5), [0, 2]),
        ((1600, 1600), [0]), ((16, 1), [0]), ((100000,), [0]), ((33, 32000), [0, 1]),
        ((2, 12, 512, 512), [1]), ((2, 4, 3, 512, 64), [2]), ((2, 512, 8, 4, 64), [3]),
    ]  # fmt: skip
    for dtype, (shape, dims) in itertools.product((*FLOATS, I64, I32, BOOL), shapes):
        yield "sum.dim_IntList", [empty(*shape, dtype=dtype), dims, True]
        if dtype in FLOATS:
            yield "mean.dim", [empty(*shape, dtype=dtype), dims, True]
            yield "amax", [empty(*shape, dtype=dtype), dims]
    for dtype, shape in itertools.product(
        (*FLOATS, I64), [(1024, 768), (1000003,), (8, 50257), (4, 1, 128256)]
    ):
        for name in ("sum", "max", "argmax", "any", "all"):
            yield name, [empty(*shape, dtype=dtype)]
        yield "argmax", [empty(*shape, dtype=dtype), -1]
        yield "max.dim", [empty(*shape, dtype=dtype), -1]
        if dtype in FLOATS:
            yield "linalg_vector_norm", [empty(*shape, dtype=dtype)]


def random_sums() -> Iterator[Case]:
    draw = random.Random(20)
    sizes = (1, 2, 3, 5, 8, 12, 17, 64, 100, 128, 256, 513, 1024)
    for _ in range(100):
        shape = [draw.choice(sizes) for _ in range(draw.randint(1, 4))]
        axes = list(range(len(shape)))
        order = draw.sample(axes, len(axes)) if draw.random() < 0.5 else axes
        source = empty(*shape, dtype=draw.choice(FLOATS)).permute(order)
        if source.numel() < 2**27:
            yield (
                "sum.dim_IntList",
                [source, draw.sample(axes, draw.randint(1, len(axes))), draw.random() < 0.5],
            )


def normalisations(dtype: torch.dtype) -> Iterator[Case]:
    for shape in ((1024, 50257), (2, 12, 128, 128), (1024, 8)):
        output = empty(*shape, dtype=dtype)
        yield "_softmax_backward_data", [output, output, -1, dtype]
        yield "_log_softmax_backward_data", [output, output, -1, dtype]
    yield "_safe_softmax", [empty(2, 12, 128, 128, dtype=dtype), -1]
    for rows, width in (
        (128, 768),
        (8192, 1600),
        (66000, 1024),
        (70000, 768),
        (131072, 1600),
        (131072, 4096),
    ):
        x, weight, mean = empty(rows, width, dtype=dtype), empty(width, dtype=dtype), empty(rows, 1)
        yield "native_layer_norm", [x, [width], weight, weight, 1e-5]
        wanted = [True, True, True]
        yield "native_layer_norm_backward", [x, x, [width], mean, mean, weight, weight, wanted]


def lookups(dtype: torch.dtype) -> Iterator[Case]:
    for tokens, width, words in (
        (1024, 768, 50257), (3072, 768, 50257), (3073, 768, 50257), (8192, 1600, 50257), (8192, 4096, 32000),
        (4096, 768, 1024), (16384, 768, 1024),
    ):  # fmt: skip
        gradient = empty(tokens, width, dtype=dtype)
        yield "embedding_dense_backward", [gradient, empty(tokens, dtype=I64), words, -1, False]
    for rows, chosen in ((1024, 2048), (4096, 4096), (16384, 16384), (200, 5000)):
        table, index, values = (
            empty(rows, 64, dtype=dtype),
            empty(chosen, dtype=I64),
            empty(chosen, 64, dtype=dtype),
        )
        yield "index_put", [table, [index], values, True]
        yield "index_put_", [table, [index], values, True]
        yield "index_put_", [table, [index], values, False]
        yield "index.Tensor", [table, [index]]
    yield "index.Tensor", [empty(64, 64, 8, dtype=dtype), [empty(64, 1, dtype=I64), empty(1, 7, dtype=I64)]]


def sorts() -> Iterator[Case]:
    for count in (64, 2048, 4096, 4097, 8192, 16384):
        yield "sort", [empty(count, dtype=I64)]
        yield "sort.stable", [empty(count, dtype=I64)], {"stable": True}
        yield "sort", [empty(count)]
    yield "sort", [empty(1024, 64)]
    yield "sort", [empty(1, 50257)]


def nothing(dtype: torch.dtype) -> Iterator[Case]:
    """Operators of a training step or a generation that take nothing, so that no rule is missed."""
    x, y, small = empty(2048, 512, dtype=dtype), empty(2048, 512), empty(512, dtype=dtype)
    mask, index = empty(2048, 512, dtype=BOOL), empty(2048, 4, dtype=I64)
    target = empty(2048, dtype=I64)
    yield "_softmax", [x, -1, False]
    yield "_log_softmax", [x, -1, False]
    yield "nll_loss_forward", [x, target, None, 1, -100]
    yield "nll_loss_backward", [empty(dtype=dtype), x, target, None, 1, -100, empty(dtype=dtype)]
    yield "embedding", [x, target]
    yield "native_dropout", [x, 0.1, True]
    yield "native_dropout_backward", [x, mask, 1.1]
    yield "add.Tensor", [x, y]
    yield "mul.Tensor", [y, small]
    yield "copy_", [y, x]
    yield "gelu", [x]
    yield "gelu_backward", [x, x]
    yield "silu_backward", [x, x]
    yield "tanh_backward", [x, x]
    yield "pow.Tensor_Scalar", [x, 3.0]
    yield "where.self", [mask, x, x]
    yield "masked_fill.Scalar", [x, mask, 0.0]
    yield "cat", [[x, x], 0]
    yield "cat", [[x] * 40, 0]
    yield "index_select", [x, 0, target]
    yield "index_add_", [torch.empty_like(x), 0, target, x]
    yield "gather", [x, 1, index]
    yield "scatter.src", [x, 1, index, empty(2048, 4, dtype=dtype)]
    yield "scatter_add", [x, 1, index, empty(2048, 4, dtype=dtype)]
    yield "topk", [empty(1024, 64, dtype=dtype), 6]
    yield "triu", [x]
    yield "normal_", [x]
    yield "uniform_", [x]
    other = [torch.empty_like(x), torch.empty_like(small)]
    yield "_foreach_lerp_.Scalar", [other, [x, small], 0.1]
    yield "_foreach_addcdiv_.ScalarList", [other, [x, small], [x, small], [0.1, 0.1]]


def spoken(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, torch.Tensor):
        return ["T", list(value.shape), list(value.stride()), str(value.dtype)[6:]]
    if isinstance(value, list):
        return [spoken(item) for item in value]
    return str(value) if isinstance(value, torch.dtype) else value


def run(operator: str, args: list[Any], kwargs: dict[str, Any]) -> list[int]:
    packet, _, overload = operator.partition(".")
    function = getattr(getattr(torch.ops.aten, packet), overload or "default")
    torch.cuda.memory._record_memory_history("all", context=None, max_entries=10_000)
    result = function(*args, **kwargs)
    trace = torch.cuda.memory._snapshot()["device_traces"][0]
    torch.cuda.memory._record_memory_history(None)
    results = {leaf.data_ptr() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)}
    return most(trace, results)


def most(trace: list[dict[str, Any]], results: set[int]) -> list[int]:
    """The buffers that are there, other than results, when all together are the most bytes."""
    live: dict[int, int] = {}
    top: list[int] = []
    height = 0
    for entry in trace:
        if entry["action"] == "alloc":
            live[entry["addr"]] = entry["size"]
        elif entry["action"] == "free_completed":
            live.pop(entry["addr"], None)
        if sum(live.values()) > height:
            height = sum(live.values())
            top = [size for address, size in live.items() if address not in results]
    return top


def main() -> None:
    for operator, args, *rest in cases():
        kwargs = rest[0] if rest else {}
        buffers = run(operator, args, kwargs)
        print(json.dumps([operator, spoken(args), kwargs, buffers]))
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
