"""Compile the bookkeeping driver with gcc, once for each version of its sources."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from mem_gpt_cli.errors import EnvironmentUnavailableError, UsageError

DRIVER = Path(__file__).parent / "driver"
CACHE = Path.home() / ".cache" / "memgpt" / "rehearsal"
LIBRARY = "libcuda.so.1"
"""Under the CUDA driver's own name: whoever opens that gets ours."""


def built(headers: Path) -> Path:
    """The compiled driver.

    Args:
        headers: the folder of ``cuda_runtime_api.h``: the CUDA wheels that come with torch have one.

    Raises:
        EnvironmentUnavailableError: there is no gcc, or it refuses the sources; its words are on stderr.
    """
    sources = sorted(DRIVER.rglob("*.[ch]"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources) + str(headers).encode())
    library = CACHE / digest.hexdigest()[:16] / LIBRARY
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        compile_to(library, headers, [path for path in sources if path.suffix == ".c"])
    return library


def compile_to(library: Path, headers: Path, sources: list[Path]) -> None:
    """Run gcc; the library appears under its name only when it is whole."""
    unfinished = library.with_suffix(".unfinished")
    flags = ["-shared", "-fPIC", "-O1", "-Wall", f"-Wl,-soname,{LIBRARY}"]
    folders = ["-I", str(DRIVER / "include"), "-isystem", str(headers)]
    command = ["gcc", *flags, *folders, "-o", str(unfinished), *map(str, sources), "-lpthread", "-ldl"]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError as error:
        raise EnvironmentUnavailableError(
            "there is no gcc on the PATH: install it, it compiles the rehearsal's driver"
        ) from error
    except subprocess.CalledProcessError as error:
        raise EnvironmentUnavailableError(
            f"gcc cannot compile the rehearsal's driver against {headers}: see its words above"
        ) from error
    unfinished.rename(library)


def cuda_headers(python: Path) -> Path:
    """Where a Python environment with a CUDA build of torch keeps the headers of its CUDA.

    Raises:
        UsageError: there is no such Python.
        EnvironmentUnavailableError: it has none.
    """
    if not python.is_file():
        raise UsageError(f"--python {python}: there is no such file")
    packages = python.parent.parent
    for header in sorted(packages.glob("lib/python3*/site-packages/nvidia/cu*/include/cuda_runtime_api.h")):
        return header.parent
    raise EnvironmentUnavailableError(
        f"{python} has no CUDA headers in its site-packages: give the Python of an environment with a CUDA "
        "build of torch"
    )
