"""Our own packed integers: what is stored, what comes back, products and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mem_gpt_cli.quantization import native
from mem_gpt_cli.quantization.native import NativeEmbedding, NativeLinear
from mem_gpt_cli.quantization.packing import Layout, Packed, pack, unpack
from mem_gpt_cli.quantization.plan import Method

METHODS = [
    Method(scheme, "native", mapping, group, False)  # type: ignore[arg-type]
    for scheme in ("int8", "int4")
    for mapping in ("symmetric", "asymmetric")
    for group in (None, 32)
]
IDS = [f"{m.scheme} {m.mapping} {m.group_size}" for m in METHODS]


def reference(packed: Packed, layout: Layout) -> torch.Tensor:
    """The stored values in float64, read from the bytes by the layout's own description."""
    codes = packed.codes
    if layout.bits == 4:
        wide = torch.empty(layout.rows, layout.padded, dtype=torch.float64)
        wide[:, ::2] = (codes & 15).double()
        wide[:, 1::2] = (codes >> 4).double()
        if layout.symmetric:
            wide -= 8
    else:
        wide = codes.double()
    scale = packed.scale.double().repeat_interleave(layout.group, dim=1)
    zero = 0.0 if packed.zero is None else packed.zero.double().repeat_interleave(layout.group, dim=1)
    return ((wide - zero) * scale)[:, : layout.columns]


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_what_is_unpacked_is_what_the_bytes_say(method: Method) -> None:
    layout = Layout.of(method, 24, 100)  # 100 is no multiple of 32: the rows are padded
    packed = pack(torch.randn(24, 100), layout)
    assert torch.allclose(unpack(packed, layout).double(), reference(packed, layout), rtol=1e-6, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 70),
    group=st.one_of(st.none(), st.integers(1, 80)),
    bits=st.sampled_from(["int4", "int8"]),
    mapping=st.sampled_from(["symmetric", "asymmetric"]),
    spread=st.sampled_from([1e-3, 1.0, 300.0]),
    shift=st.sampled_from([0.0, 0.5, -2.0]),
    seed=st.integers(0, 2**16),
)
def test_no_weight_moves_further_than_its_step(
    rows: int,
    columns: int,
    group: int | None,
    bits: str,
    mapping: str,
    spread: float,
    shift: float,
    seed: int,
) -> None:
    """Rounding costs half a step; at the upper end of a symmetric range, one code short, a whole one."""
    generator = torch.Generator().manual_seed(seed)
    matrix = (torch.randn(rows, columns, generator=generator) + shift) * spread
    layout = Layout.of(Method(bits, "native", mapping, group, False), rows, columns)  # type: ignore[arg-type]
    packed = pack(matrix, layout)
    per_row = layout.padded // (2 if layout.bits == 4 else 1)
    assert packed.codes.shape == (rows, per_row)
    assert packed.codes.element_size() == 1
    assert packed.scale.shape == (rows, layout.groups)
    assert (packed.zero is None) == layout.symmetric
    step = packed.scale.repeat_interleave(layout.group, dim=1)[:, :columns]
    assert ((unpack(packed, layout) - matrix).abs() <= step * 1.001).all()


@given(codes=st.lists(st.integers(0, 15), min_size=2, max_size=64).filter(lambda each: len(each) % 2 == 0))
def test_two_codes_a_byte_come_back(codes: list[int]) -> None:
    from mem_gpt_cli.quantization.packing import _one_a_byte, _two_a_byte

    given_codes = torch.tensor([codes], dtype=torch.int8)
    assert torch.equal(_one_a_byte(_two_a_byte(given_codes)), given_codes)


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@pytest.mark.parametrize("at_once", [2**22, 700], ids=["whole", "in pieces"])
def test_products_and_gradients_are_those_of_the_reference(
    method: Method, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "WEIGHTS_AT_ONCE", at_once)
    torch.manual_seed(1)
    bias = torch.nn.Parameter(torch.randn(40))
    layer = NativeLinear(method, 40, 64, bias)
    layer.quantize(torch.randn(40, 64))
    weight = reference(Packed(layer.codes, layer.scale, layer.zero), layer.layout)
    x = torch.randn(2, 5, 64, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    own_bias = bias.detach().double().requires_grad_()
    expected = torch.nn.functional.linear(exact, weight, own_bias)
    found = layer(x)
    assert torch.allclose(found.double(), expected, atol=1e-4)
    (found**2).sum().backward()
    (expected**2).sum().backward()
    assert x.grad is not None
    assert exact.grad is not None
    assert torch.allclose(x.grad.double(), exact.grad, rtol=1e-4, atol=1e-2)
    assert bias.grad is not None
    assert own_bias.grad is not None
    assert torch.allclose(bias.grad.double(), own_bias.grad, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("at_once", [2**22, 700], ids=["whole", "in pieces"])
def test_gradients_come_back_through_autocast(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "WEIGHTS_AT_ONCE", at_once)
    layer = NativeLinear(METHODS[0], 40, 64, torch.nn.Parameter(torch.zeros(40)))
    layer.quantize(torch.randn(40, 64))
    x = torch.randn(3, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        product = layer(x)
    product.sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, layer.dequantized().sum(0).expand(3, 64), atol=1e-3)


def test_pieces_are_quantized_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.randn(50, 64)
    method = METHODS[-1]
    whole = NativeLinear(method, 50, 64, None)
    whole.quantize(matrix)
    monkeypatch.setattr(native, "WEIGHTS_AT_ONCE", 640)
    pieces = NativeLinear(method, 50, 64, None)
    pieces.quantize(matrix)
    assert all(torch.equal(part, pieces.parts()[name]) for name, part in whole.parts().items())


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_an_embedding_unpacks_the_rows_that_are_looked_up(method: Method) -> None:
    layer = NativeEmbedding(method, 30, 40)
    layer.quantize(torch.randn(30, 40))
    ids = torch.tensor([[3, 3, 29], [0, 1, 2]])
    assert torch.equal(layer(ids), layer.dequantized()[ids])


def test_bf16_keeps_its_scales_in_bf16() -> None:
    layer = NativeLinear(METHODS[0], 8, 64, None)
    layer.quantize(torch.randn(8, 64, dtype=torch.bfloat16) * 1e-3)
    assert layer.scale.dtype == torch.bfloat16
    assert layer(torch.randn(1, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
