"""A step of torch's own optimizers, written down as the tensors that it makes, in their order.

A name in a loop of Python holds its tensor until the next round gives it another: hence what "before" is.
"""

from __future__ import annotations

from collections.abc import Sequence

from mem_gpt_cli.optimizers.settings import Books, Parameter, Settings

STEP_COUNTER = 4


def adamw(books: Books, parameters: Sequence[Parameter], settings: Settings, *, first: bool) -> None:
    """Two moments of each parameter (arXiv:1412.6980), in its dtype, and a counter.

    On CUDA the counter is in the host's memory unless the step is fused. ``loop`` takes the root of a second
    moment and its quotient, while ``denom`` still is that of the parameter before; ``foreach`` the roots of
    all at once; ``fused`` nothing. Source: torch/optim/adam.py (``_init_group``, ``_single_tensor_adam``,
    ``_multi_tensor_adam``).
    """
    if first:
        for parameter in parameters:
            if settings.implementation == "fused" or not settings.cuda:
                books.keep(STEP_COUNTER, "zeros")
            books.keep(parameter.nbytes, "zeros_like")
            books.keep(parameter.nbytes, "zeros_like")
    if settings.implementation == "foreach":
        roots = [books.take(parameter.nbytes, "_foreach_sqrt") for parameter in parameters]
        del roots
    elif settings.implementation == "loop":
        denominator: object = None
        for parameter in parameters:
            root = books.take(parameter.nbytes, "sqrt")
            quotient = books.take(parameter.nbytes, "div")
            del root
            denominator = quotient
            del quotient
        del denominator


def sgd(books: Books, parameters: Sequence[Parameter], settings: Settings, *, first: bool) -> None:
    """Nothing is kept, or with momentum the last update. Decay adds the weights to a copy of the gradient.

    Source: torch/optim/sgd.py (``_single_tensor_sgd``, ``_multi_tensor_sgd``, ``_fused_sgd``).
    """
    keeps = first and settings.momentum
    if settings.implementation == "fused":
        for parameter in parameters:
            if keeps:
                books.keep(parameter.nbytes, "empty_like")
        return
    copies: list[object] = []
    if settings.implementation == "foreach":
        if settings.decays:
            copies = [books.take(parameter.nbytes, "_foreach_add") for parameter in parameters]
        for parameter in parameters:
            if keeps:
                books.keep(parameter.nbytes, "clone")
        del copies
        return
    for parameter in parameters:
        copy = books.take(parameter.nbytes if settings.decays else 0, "add")
        if keeps:
            books.keep(parameter.nbytes, "clone")
        del copy


def adafactor(books: Books, parameters: Sequence[Parameter], settings: Settings, *, first: bool) -> None:
    """The means of a matrix' squared gradients by row and by column (arXiv:1804.04235), and a counter.

    A vector's are kept as they are. The step multiplies row by column, while ``update`` still is that of the
    parameter before. Source: torch/optim/_adafactor.py (``_init_group``, ``_single_tensor_adafactor``).
    """
    if first:
        for parameter in parameters:
            if not settings.cuda:
                books.keep(STEP_COUNTER, "tensor")
            if len(parameter.shape) > 1:
                books.keep(_means(parameter, -1), "new_zeros")
                books.keep(_means(parameter, -2), "new_zeros")
            else:
                books.keep(parameter.nbytes, "zeros_like")
    update = row = column = squares = None
    for parameter in parameters:
        if len(parameter.shape) > 1:
            row = books.take(_means(parameter, -1), "linalg_vector_norm")
            column = books.take(_means(parameter, -2), "linalg_vector_norm")
        else:
            squares = books.take(parameter.nbytes, "mul")
        estimate = books.take(parameter.nbytes, "mm" if len(parameter.shape) > 1 else "clone")
        update = estimate
        del estimate
    del update, row, column, squares


def _means(parameter: Parameter, dim: int) -> int:
    """Bytes of the means of a matrix along one of its dimensions."""
    return parameter.nbytes // max(1, parameter.shape[dim])
