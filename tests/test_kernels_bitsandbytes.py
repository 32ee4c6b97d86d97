"""The ways that bitsandbytes takes, held against the installed package's own rules."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.devices.kernels.bitsandbytes import multiplies_integers, reads_four_bits

CHIPS = (
    ((6, 1), 28),
    ((7, 0), 80),
    ((7, 5), 40),
    ((8, 0), 108),
    ((8, 6), 84),
    ((8, 7), 16),
    ((8, 9), 58),
    ((8, 9), 128),
    ((9, 0), 132),
    ((10, 0), 148),
    ((11, 0), 20),
    ((12, 0), 170),
    ((12, 1), 48),
)
ROWS = (1, 4, 5, 6, 7, 8, 9, 10, 12, 16, 23, 32, 48, 64, 100, 128, 192, 256, 320, 384, 512, 513, 1536, 1537)
SIZES = (
    64,
    128,
    576,
    704,
    768,
    1024,
    1536,
    2048,
    2304,
    3072,
    4096,
    5120,
    6912,
    8192,
    10240,
    11008,
    14336,
    28672,
)


def own_rule(chip: list[tuple[tuple[int, int], int]]) -> tuple[Callable[..., bool], int]:
    """bitsandbytes' rule for the chip in the list, and its largest number of rows, cut from its source.

    The module that holds them cannot be imported without a CUDA build of torch.
    """
    found = find_spec("bitsandbytes")
    if found is None or found.origin is None:
        pytest.skip("bitsandbytes is not installed")
    import torch

    source = (Path(found.origin).parent / "backends" / "cuda" / "ops.py").read_text(encoding="utf-8")
    names = ("_gemm_4bit_use_custom_cuda", "_GEMM_4BIT_CUSTOM_FLOOR_M", "_gemm_4bit_custom_max_m")
    parts: dict[str, ast.stmt] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == names[0]:
            node.decorator_list = []
            parts[node.name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            parts.setdefault(node.targets[0].id, node)
    space: dict[str, Any] = {"torch": torch, "_gpu_dispatch_props": lambda _: (chip[0][1], *chip[0][0])}
    body = [parts[name] for name in names]
    exec(compile(ast.Module(body=body, type_ignores=[]), "bitsandbytes", "exec"), space)
    return space[names[0]], space[names[2]]


def test_every_gpu_takes_the_kernel_that_bitsandbytes_would() -> None:
    """40,000 products, drawn over chips, widths, rows and dtypes."""
    draw, chip = random.Random(0), [CHIPS[0]]
    rule, most = own_rule(chip)
    import torch

    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    taken = set()
    for _ in range(40_000):
        chip[0] = draw.choice(CHIPS)
        rows, name = draw.choice(ROWS), draw.choice(tuple(dtypes))
        outputs, inputs = draw.choice(SIZES), draw.choice(SIZES)
        gpu = Gpu("gpu", "GPU", chip[0][0], chip[0][1], 2**34)
        expected = rows <= most and rule(0, dtypes[name], rows, outputs, inputs)
        found = reads_four_bits(gpu, name, rows, outputs, inputs, 64)
        assert found == expected, (chip[0], name, rows, outputs, inputs)
        taken.add(found)
    assert taken == {True, False}


def test_rows_that_no_block_divides_are_written_out() -> None:
    gpu = Gpu("gpu", "GPU", (9, 0), 132, 2**34)
    assert reads_four_bits(gpu, "bf16", 1, 4096, 4096, 64)
    assert not reads_four_bits(gpu, "bf16", 1, 4096, 4096 + 32, 64)


def test_the_processor_is_the_one_that_torch_sees() -> None:
    import torch

    multiplies_integers.cache_clear()
    assert multiplies_integers() == (torch.backends.cpu.get_cpu_capability() == "AVX512")
