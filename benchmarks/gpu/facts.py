"""What this machine and its software are, as JSON: ``python -m benchmarks.gpu.facts cuda``.

A process of its own, because it imports torch and makes a CUDA context, which the kit itself never does.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import distributions
from typing import Any

from benchmarks.gpu.child import run_child
from mem_gpt_cli.errors import EnvironmentUnavailableError

PACKAGES = """
    torch transformers peft accelerate numpy pandas typer rich pydantic pydantic-core gguf safetensors
    huggingface-hub triton nvidia-ml-py pytest hypothesis
"""
VARIABLES = (
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
)
LIMIT_S = 120


def gathered(device: str) -> dict[str, Any]:
    """The facts, from a child process.

    Raises:
        EnvironmentUnavailableError: if there is no such device.
    """
    command = [sys.executable, "-m", "benchmarks.gpu.facts", device]
    done = run_child(command, LIMIT_S)
    if done.returncode:
        raise EnvironmentUnavailableError((done.stderr.strip().splitlines() or ["no answer"])[-1])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    import torch

    if sys.argv[1] == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no GPU here: --plan shows predictions, --device cpu rehearses")
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "packages": _packages(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "cuda_of_torch": torch.version.cuda,
        "gpu": _gpu(torch) if sys.argv[1] == "cuda" else None,
    }
    print(json.dumps(facts))


def _packages() -> dict[str, str]:
    found = {
        (each.metadata["Name"] or "").lower().replace("_", "-"): each.version for each in distributions()
    }
    return {
        name: version
        for name, version in sorted(found.items())
        if name in PACKAGES.split() or name.startswith("nvidia-")
    }


def _gpu(torch: Any) -> dict[str, Any]:
    """The GPU by torch and by the driver; what cannot be asked is ``None``."""
    properties = torch.cuda.get_device_properties(0)
    facts = {
        "product": properties.name,
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "total_bytes": properties.total_memory,
        "cudnn": torch.backends.cudnn.version(),
        "allocator": torch.cuda.get_allocator_backend(),
        "arch_list": torch.cuda.get_arch_list(),
        "nvidia_smi": None,
    }
    with suppress(OSError, subprocess.SubprocessError):
        query = "name,driver_version,memory.total,memory.used,mig.mode.current,power.limit,clocks.max.sm"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv"]
        facts["nvidia_smi"] = subprocess.run(
            command, capture_output=True, text=True, timeout=20
        ).stdout.splitlines()
    return facts


if __name__ == "__main__":
    main()
