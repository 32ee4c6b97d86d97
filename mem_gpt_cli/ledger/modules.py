"""Which module of the model an operator runs in, in forward and in backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils.hooks import RemovableHandle


class ModulePath:
    """The path of the innermost module that runs.

    In forward a stack of hooks knows it. Each autograd node carries the sequence number that was current
    when its forward ran, so backward is looked up by the number of the node that runs: torch's profiler
    links forward and backward in the same way.
    """

    def __init__(self) -> None:
        self._paths: dict[int, str] = {}
        self._stack: list[str] = []
        self._forward: dict[int, str] = {}
        self._handles: list[RemovableHandle] = []
        self._quantized: set[int] = set()
        self._quantized_paths: set[str] = set()
        self._products: list[bool] = []
        self.on_product: Callable[[Any], None] = lambda _: None

    def name(self, model: torch.nn.Module) -> None:
        """Learn the paths of a model's modules."""
        self._paths = {id(module): path for path, module in model.named_modules()}
        quantized = [module for module in model.modules() if getattr(module, "writes_out_its_matrix", False)]
        self._quantized = set(map(id, quantized))
        self._quantized_paths = {self._paths[id(module)] for module in quantized}

    def attach(self) -> None:
        """Begin to watch every module call of the process."""
        self._handles = [
            register_module_forward_pre_hook(self._push),
            register_module_forward_hook(self._pop, always_call=True),
        ]

    def detach(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._stack.clear()
        self._products.clear()

    @property
    def in_product(self) -> bool:
        """Whether a quantized layer runs: what is made in its forward, but for its result, is workspace."""
        return bool(self._products) and self._products[-1]

    @property
    def in_product_backward(self) -> bool:
        """Whether the gradient of a quantized layer's input is computed: its matrix is written out for it."""
        if self._stack or not self._quantized:
            return False
        node: Any = torch._C._current_autograd_node()
        return node is not None and self._forward.get(node._sequence_nr()) in self._quantized_paths

    def current(self) -> str:
        """The path now; empty outside the model."""
        node: Any = torch._C._current_autograd_node()
        if self._stack:
            path = self._stack[-1]
            if node is None and path:
                self._forward[torch._C._autograd._get_sequence_nr() - 1] = path
            return path
        return "" if node is None else self._forward.get(node._sequence_nr(), "")

    @contextmanager
    def inside(self, path: str) -> Iterator[None]:
        """What happens inside belongs to the module of that path, though no forward of it runs."""
        self._stack.append(path)
        try:
            yield
        finally:
            self._stack.pop()

    def _push(self, module: torch.nn.Module, _: Any) -> None:
        path = self._paths.get(id(module))
        self._stack.append(path if path is not None else (self._stack[-1] if self._stack else ""))
        self._products.append(id(module) in self._quantized)

    def _pop(self, _: torch.nn.Module, __: Any, result: Any) -> None:
        if self._stack:
            self._stack.pop()
        if self._products and self._products.pop():
            self.on_product(result)
