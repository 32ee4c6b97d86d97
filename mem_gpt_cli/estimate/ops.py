"""The operations that decoders are made of: what each makes, what autograd keeps of it, what backward makes.

The rules are those of torch's derivatives (tools/autograd/derivatives.yaml) and of its composite kernels, for
CPU and CUDA. Sizes are in elements; widths (``item``) in bytes.
"""
# ruff: noqa: ARG001  (every rule has the signature that the tape calls it with)

from __future__ import annotations

from collections.abc import Sequence

from mem_gpt_cli.estimate import quantized
from mem_gpt_cli.estimate.books import CASTS, FP32, WIDTHS
from mem_gpt_cli.estimate.tape import Edge, Node, Parameter, Tape, Tensor

Grads = list[Tensor | None]


def fresh(tape: Tape, node: Node, grads: Grads) -> Sequence[Tensor | None]:
    """A new gradient for every input that wants one, its elements in the order of the incoming one."""
    results = [
        tape.new(edge.numel, edge.item, f"{node.operation}_backward", edge.slot) if edge.node else None
        for edge in node.edges
    ]
    for result in results:
        if result is not None and grads[0] is not None:
            result.permuted = grads[0].permuted
    return results


def _passed(tape: Tape, node: Node, grads: Grads) -> Sequence[Tensor | None]:
    """The incoming gradient itself, once for every input."""
    grad = grads[0]
    assert grad is not None
    return [grad.handle() if edge.node else None for edge in node.edges]


def pointwise(
    tape: Tape, operation: str, x: Tensor, *, keeps_input: bool = False, keeps_output: bool = False
) -> Tensor:
    """A function of one tensor; its derivative needs the input, the output or neither."""
    out = tape.new(x.numel, x.item, operation)
    out.permuted = x.permuted
    saved = [t.storage for t, kept in ((x, keeps_input), (out, keeps_output)) if kept]
    return tape.record(operation, out, (x,), saved, fresh)


def add(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    """``a + b`` with ``b`` no larger than ``a``; nothing is kept."""
    out = tape.new(a.numel, max(a.item, b.item), "add")
    _promote(tape, a, b)
    out.permuted = a.permuted
    return tape.record("add", out, (a, b), (), _passed)


def _promote(tape: Tape, a: Tensor, b: Tensor) -> None:
    """On CPU the narrower operand is copied to the wider one's width first (ATen/TensorIterator.cpp)."""
    if a.item != b.item and not tape.cuda:
        narrow = min(a, b, key=lambda x: x.item)
        tape.scratch(narrow.numel * max(a.item, b.item), "_to_copy")


def shift(tape: Tape, x: Tensor) -> Tensor:
    """``x`` plus a number: the gradient passes unchanged."""
    out = tape.new(x.numel, x.item, "add")
    out.permuted = x.permuted
    return tape.record("add", out, (x,), (), _passed)


def multiply(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    """``a * b``, ``b`` broadcast over ``a`` where it is smaller; each is kept for the other's gradient."""
    out = tape.new(a.numel, max(a.item, b.item), "mul")
    _promote(tape, a, b)
    out.permuted = a.permuted
    saved = [kept.storage for kept, other in ((b, a), (a, b)) if other.node is not None]
    return tape.record("mul", out, (a, b), saved, _multiply_backward)


def _multiply_backward(tape: Tape, node: Node, grads: Grads) -> Sequence[Tensor | None]:
    """A product for each input; that of a broadcast input has the full size before it is summed."""
    if tape.cuda:
        return _multiply_backward_on_cuda(tape, node)
    full = max(edge.numel for edge in node.edges)
    item = max(edge.item for edge in node.edges)
    results: list[Tensor | None] = []
    for edge in node.edges:
        if edge.node is None:
            results.append(None)
            continue
        product = tape.new(full, item, "mul_backward", None if edge.numel < full else edge.slot)
        if edge.numel < full:
            product = tape.new(edge.numel, item, "sum", edge.slot)
        results.append(product)
    return results


def _multiply_backward_on_cuda(tape: Tape, node: Node) -> Sequence[Tensor | None]:
    """As on the CPU, in the order in which it is done: all products, that for the right factor first, then
    the sums. A weight stands to the left of what it multiplies.

    tools/autograd/derivatives.yaml, ``mul.Tensor``; ``validate_outputs`` in torch/csrc/autograd/engine.cpp.
    """
    full, item = max(edge.numel for edge in node.edges), max(edge.item for edge in node.edges)
    right = 0 if node.edges[1].node is not None and node.edges[1].node.keeps else 1
    results: list[Tensor | None] = [None, None]
    for index in (right, 1 - right):
        edge = node.edges[index]
        if edge.node is not None:
            results[index] = tape.new(full, item, "mul_backward", None if edge.numel < full else edge.slot)
    for index, edge in enumerate(node.edges):
        if results[index] is not None and edge.numel < full:
            results[index] = tape.new(edge.numel, item, "sum", edge.slot)
            if edge.node is not None and edge.node.keeps:
                tape.reduce_rows(full // edge.numel, edge.numel, item)
    return results


def cast(tape: Tape, x: Tensor, item: int) -> Tensor:
    """``x.to(dtype)``: the tensor itself where the width is right already."""
    if x.item == item:
        return x
    out = tape.new(x.numel, item, "_to_copy")
    out.permuted = x.permuted
    return tape.record("_to_copy", out, (x,), (), _passed)


def widen(tape: Tape, x: Tensor) -> Tensor:
    """What CUDA's autocast makes of the input of a power, a norm or a softmax: fp32 (aten/autocast_mode.h).

    CPU's autocast leaves them as they are.
    """
    return cast(tape, x, FP32) if tape.cuda and tape.autocast else x


def power(tape: Tape, x: Tensor) -> Tensor:
    """``x`` to the power of a number: keeps its input."""
    x = widen(tape, x)
    out = tape.new(x.numel, x.item, "pow")
    out.permuted = x.permuted
    return tape.record("pow", out, (x,), (x.storage,), _power_backward)


def _power_backward(tape: Tape, node: Node, grads: Grads) -> Sequence[Tensor | None]:
    """``grad * (exponent * x ** (exponent - 1))``: power, multiple and product are there together."""
    edge = node.edges[0]
    inner = [tape.new(edge.numel, edge.item, "pow_backward") for _ in range(2)]
    result = fresh(tape, node, grads)
    del inner
    return result


def clone(tape: Tape, x: Tensor, operation: str = "clone") -> Tensor:
    """A copy in the order that the elements are read in."""
    out = tape.new(x.numel, x.item, operation)
    return tape.record(operation, out, (x,), (), _passed)


def split(tape: Tape, x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Views of ``sizes`` elements each; backward puts their gradients together in one tensor."""
    parts = [Tensor(size, x.item, x.storage, permuted=x.permuted) for size in sizes]
    if tape.recording and x.node is not None:
        node = Node("cat", (x.edge(),), (), fresh, tape.slot, ports=len(parts), module=tape.ledger.module)
        tape.nodes.append(node)
        for port, part in enumerate(parts):
            part.node, part.port = node, port
    return parts


def part(tape: Tape, x: Tensor, numel: int) -> Tensor:
    """A slice; its gradient is written into zeros of the whole size."""
    out = Tensor(numel, x.item, x.storage, permuted=x.permuted)
    return tape.record("slice", out, (x,), (), fresh)


def concatenate(tape: Tape, parts: Sequence[Tensor], *, slot: int | None = None) -> Tensor:
    """One tensor from several; backward hands views of the gradient on."""
    out = tape.new(sum(x.numel for x in parts), max(x.item for x in parts), "cat", slot)
    return tape.record("cat", out, parts, (), _views)


def _views(tape: Tape, node: Node, grads: Grads) -> Sequence[Tensor | None]:
    """A part of the gradient's own storage for each input."""
    grad = grads[0]
    assert grad is not None
    return [Tensor(edge.numel, grad.item, grad.storage) if edge.node else None for edge in node.edges]


def embedding(tape: Tape, table: Parameter, tokens: Tensor, width: int) -> Tensor:
    """Rows of a table; the gradient of the table is dense."""
    if table.method is not None:
        return quantized.lookup(tape, table, tokens.numel, width)
    out = tape.new(tokens.numel * width, table.item, "embedding")
    if not tape.cuda:
        return tape.record("embedding", out, (table,), (tokens.storage,), fresh)
    count, rows = tokens.numel, table.numel // width

    def backward(tape: Tape, node: Node, grads: Grads) -> Sequence[Tensor | None]:
        result = fresh(tape, node, grads)
        if tape.cuda:
            tape.buffers(tape.cuda.embedding_gradient(count, rows, width), "embedding_dense_backward")
        return result

    return tape.record("embedding", out, (table,), (tokens.storage,), backward)


def linear(
    tape: Tape,
    x: Tensor,
    weight: Parameter,
    outputs: int,
    slot: int | None = None,
    bias: Parameter | None = None,
) -> Tensor:
    """``x @ weight``; input and weight are kept, both cast to autocast's width where it is on.

    ``bias`` is walked on CUDA alone, where its gradient takes more than its size.
    """
    if weight.method is not None:
        width = x.item
        if weight.method.scheme in ("nf4", "fp4"):  # these compute in the model's width, autocast or not
            x = cast(tape, x, WIDTHS[tape.dtype])
        product = quantized.product(tape, x, weight, outputs, biased=bias is not None, slot=slot)
        return cast(tape, product, width) if weight.method.backend == "bitsandbytes" else product
    rows = x.numel * outputs // weight.numel
    kernel: Tensor = weight
    added: Tensor | None = bias
    if tape.autocast:
        kernel = in_autocast(tape, weight)
        x = cast(tape, x, tape.autocast)
        added = None if bias is None else in_autocast(tape, bias)
    item = x.item
    (out,) = tape.kept(
        "products", lambda: _product(tape, rows * outputs, item, slot, biased=bias is not None)
    )
    saved = [t.storage for t, other in ((x, kernel), (kernel, x)) if other.node is not None]
    if added is not None:
        return tape.record("addmm", out, (x, kernel, added), saved, _biased_linear_backward)
    return tape.record("mm", out, (x, kernel), saved, _linear_backward)


def _product(tape: Tape, numel: int, item: int, slot: int | None, *, biased: bool) -> tuple[Tensor]:
    out = tape.new(numel, item, "mm", slot)
    if tape.cuda:
        tape.cuda.multiplies(tape, biased=biased)
    return (out,)


def in_autocast(tape: Tape, weight: Parameter) -> Tensor:
    """A weight in autocast's width, where it is on, made once for as long as the autocast context lasts.

    A frozen one is made anew each time (aten/src/ATen/autocast_mode.cpp, ``cached_cast``).
    """
    if tape.autocast in (0, weight.item):
        return weight
    made = tape.casts.get(id(weight))
    if made is None:
        slot, tape.slot = tape.slot, CASTS
        made = cast(tape, weight, tape.autocast)
        tape.slot = slot
        if not weight.frozen:
            tape.casts[id(weight)] = made
    return made


def _linear_backward(tape: Tape, node: Node, grads: Grads) -> Sequence[Tensor | None]:
    """The input's gradient and the weight's; the latter is a gradient of the model from its birth on."""
    return _products(tape, node.edges[:2], weight_first=tape.cuda is not None)


def _biased_linear_backward(tape: Tape, node: Node, grads: Grads) -> Sequence[Tensor | None]:
    """As ``_linear_backward``, and the bias's gradient, the sum over all rows."""
    results = list(_products(tape, node.edges[:2], weight_first=False))
    bias, grad = node.edges[2], grads[0]
    assert grad is not None
    if bias.node is None:
        return [*results, None]
    total = tape.new(bias.numel, bias.item, "sum", bias.slot)
    tape.reduce_rows(grad.numel // bias.numel, bias.numel, grad.item)
    return [*results, total]


def _products(tape: Tape, edges: Sequence[Edge], *, weight_first: bool) -> Sequence[Tensor | None]:
    """The gradients of both factors, in the order in which the derivative makes them."""
    results: list[Tensor | None] = [None, None]
    for index in (1, 0) if weight_first else (0, 1):
        edge = edges[index]
        if edge.node is None:
            continue
        result = results[index] = tape.new(edge.numel, edge.item, "mm", edge.slot)
        result.viewed = True
        if tape.cuda:
            tape.cuda.multiplies(tape, biased=False)
    return results


def dropout(tape: Tape, x: Tensor, probability: float) -> Tensor:
    """On CUDA one kernel with a mask of a byte an element; on CPU a product with noise of ``x``'s own width.

    aten/src/ATen/native/Dropout.cpp: the fused kernel is for CUDA alone.
    """
    if not probability:
        return x
    if tape.cuda:
        mask = tape.new(x.numel, 1, "native_dropout")
        out = tape.new(x.numel, x.item, "native_dropout")
        return tape.record("native_dropout", out, (x,), (mask.storage,), fresh)
    noise = tape.new(x.numel, x.item, "bernoulli_")
    return multiply(tape, x, noise)


def layer_norm(tape: Tape, x: Tensor, rows: int, weights: Sequence[Parameter] = ()) -> Tensor:
    """Keeps its input and two statistics a row; ``weights`` are walked on CUDA alone."""
    x = widen(tape, x)
    out = tape.new(x.numel, x.item, "native_layer_norm")
    if tape.cuda:
        both = [tape.new(rows, FP32, "native_layer_norm") for _ in range(2)]
        saved = (x.storage, *(one.storage for one in both))
        return tape.record("native_layer_norm", out, (x, *weights), saved, fresh)
    statistics = tape.new(2 * rows, x.item, "native_layer_norm")
    return tape.record("native_layer_norm", out, (x,), (x.storage, statistics.storage), fresh)


def log_softmax_nll(tape: Tape, logits: Tensor, rows: int) -> Tensor:
    """Cross entropy: keeps the log-probabilities; backward makes a gradient of them and one of the logits."""
    out = tape.new(logits.numel, logits.item, "_log_softmax")
    tape.record("_log_softmax", out, (logits,), (out.storage,), fresh)
    loss = tape.new(1, logits.item, "nll_loss")
    return tape.record("nll_loss", loss, (out,), (out.storage,), fresh)


def reduce_mean(tape: Tape, x: Tensor, rows: int) -> Tensor:
    """The mean of each row; backward spreads it over the whole size."""
    return tape.record("mean", tape.new(rows, x.item, "mean"), (x,), (), fresh)


def gather(tape: Tape, x: Tensor, numel: int) -> Tensor:
    """Rows of ``x`` by an index; backward adds them into zeros of the whole size."""
    return tape.record("index", tape.new(numel, x.item, "index"), (x,), (), fresh)


def add_up(tape: Tape, x: Tensor, numel: int) -> Tensor:
    """The sum over one dimension; backward is a view of the gradient, repeated."""
    return tape.record("sum", tape.new(numel, x.item, "sum"), (x,), (), _views)


def grouped_linear(tape: Tape, x: Tensor, weight: Parameter, numel: int) -> Tensor:
    """``grouped_mm`` with stacked experts: autocast leaves it alone, ``x`` follows the weight's width."""
    x = cast(tape, x, weight.item)
    saved = [t.storage for t, other in ((x, weight), (weight, x)) if other.node is not None]
    (out,) = tape.kept("products", lambda: (tape.new(numel, x.item, "_grouped_mm"),))
    return tape.record("_grouped_mm", out, (x, weight), saved, _linear_backward)
