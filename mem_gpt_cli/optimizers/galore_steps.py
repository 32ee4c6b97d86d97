"""A step of GaLore, written down as the tensors that it makes, in their order: see ``galore``."""

from __future__ import annotations

from collections.abc import Sequence

from mem_gpt_cli.optimizers import bitsandbytes_steps as quantized
from mem_gpt_cli.optimizers.settings import Books, Parameter, Settings

FP32 = 4
COUNTER = 4
STATUS = 4
TRANSPOSED_AT_ONCE = 60 * 60


def projected(shape: Sequence[int], rank: int, *, in_layer: bool) -> bool:
    """Whether the gradient of a parameter is projected: a matrix of a layer that is larger than the rank."""
    return in_layer and len(shape) == 2 and min(shape) > rank


def low_rank_shape(shape: Sequence[int], rank: int) -> tuple[int, int]:
    """The projected gradient of a matrix: its longer side stays."""
    rows, columns = shape
    return (rank, columns) if rows <= columns else (rows, rank)


def step(books: Books, parameters: Sequence[Parameter], settings: Settings, *, first: bool) -> None:
    """All state, then one parameter after the other: new directions, the projected gradient, its update."""
    if first:
        _keep_state(books, parameters, settings)
    for parameter in parameters:
        if projected(parameter.shape, settings.rank, in_layer=parameter.in_layer):
            _directions(books, parameter, settings)
            low_rank = low_rank_shape(parameter.shape, settings.rank)
            nbytes = low_rank[0] * low_rank[1] * parameter.item
            gradient = books.take(nbytes, "mm")
            update = books.take(nbytes, "zeros_like")
            _moments(books, low_rank[0] * low_rank[1], parameter.item, settings)
            del gradient, update
        else:
            _moments(books, parameter.numel, parameter.item, settings)


def _keep_state(books: Books, parameters: Sequence[Parameter], settings: Settings) -> None:
    """The directions of each matrix, and two moments of what is projected to them."""
    sizes: list[tuple[int, int]] = []
    for parameter in parameters:
        rank = settings.rank
        numel = parameter.numel
        if projected(parameter.shape, rank, in_layer=parameter.in_layer):
            books.keep(min(parameter.shape) * rank * parameter.item, "new_empty")
            rows, columns = low_rank_shape(parameter.shape, rank)
            numel = rows * columns
        if settings.bits == 8:
            quantized.keep_moments(books, numel, "adam")
        else:
            books.keep(numel * parameter.item, "zeros")
            books.keep(numel * parameter.item, "zeros")
        sizes.append((numel, parameter.item))
    if settings.bits == 8 and any(quantized.in_8_bits(numel) for numel, _ in sizes):
        books.keep(quantized.MAP_BYTES, "tensor")
        books.keep(quantized.MAP_BYTES, "tensor")


def _moments(books: Books, numel: int, item: int, settings: Settings) -> None:
    """The update by moments: torch's fused AdamW with a counter, or bitsandbytes' operator."""
    if settings.bits == 32:
        taken = books.take(COUNTER, "full")
    elif settings.cuda:
        return
    else:
        taken = books.take(quantized.update_bytes(numel, item), "optimizer_update")
    del taken


def _directions(books: Books, parameter: Parameter, settings: Settings) -> None:
    """The singular vectors of the gradient, in fp32, by LAPACK on CPU."""
    rows, columns = parameter.shape
    least = min(rows, columns)
    copy = books.take(0 if parameter.item == FP32 else FP32 * rows * columns, "to")
    results = books.take(FP32 * (rows * least + least + least * columns), "_linalg_svd")
    inner = books.take(
        STATUS + FP32 * rows * columns if settings.cuda else svd_bytes(rows, columns), "_linalg_svd"
    )
    del copy, results, inner


def svd_bytes(rows: int, columns: int) -> int:
    """What a singular value decomposition takes inside on CPU, as torch's allocator counts it.

    A status, a copy of the matrix, and a square of it that is transposed at once, if there are so many
    elements (ATen/native/Copy.cpp, ``copy_transpose_valid``).
    """
    transposed = TRANSPOSED_AT_ONCE if rows * columns >= TRANSPOSED_AT_ONCE else 0
    return STATUS + FP32 * (rows * columns + transposed)
