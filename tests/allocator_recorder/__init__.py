"""torch's own caching allocator, driven without a GPU: what the model of it is held against.

``libc10_cuda.so`` of a CUDA build of torch holds the allocator; it asks the CUDA runtime for memory. Here a
small program calls it, with ``runtime.cpp`` in the runtime's place: addresses are handed out, memory is not.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
VERSION_SCRIPT = "libcudart.so.13 { global: cuda*; local: *; };\n"


class Recorder:
    """The program built for one torch.

    ``torch`` is the folder of a CUDA build of torch 2.11 (CUDA 13), ``headers`` those of the CUDA toolkit;
    ``folder`` takes the two files that are built.
    """

    def __init__(self, torch: Path, headers: Iterable[Path], folder: Path) -> None:
        self.runtime = folder / "libcudart.so.13"
        self.program = folder / "recorder"
        includes = [f"-I{path}" for path in (torch / "include", *headers)]
        (folder / "exports").write_text(VERSION_SCRIPT)
        linking = ["-Wl,-soname,libcudart.so.13", f"-Wl,--version-script={folder / 'exports'}"]
        _compile("-fPIC", "-shared", *includes, HERE / "runtime.cpp", *linking, "-o", self.runtime)
        lib = torch / "lib"
        libraries = [f"-L{lib}", f"-Wl,-rpath,{lib}", "-lc10", "-lc10_cuda", "-Wl,--allow-shlib-undefined"]
        _compile(*includes, HERE / "recorder.cpp", *libraries, self.runtime, "-o", self.program)

    def record(
        self,
        commands: Iterable[str],
        settings: str = "",
        *,
        device_bytes: int,
        capacity: int | None = None,
        scatter: int = 0,
    ) -> dict[str, Any]:
        """What the allocator did for commands (see ``recorder.cpp``): a snapshot with ``stats`` and ``ooms``.

        Raises ``subprocess.CalledProcessError`` for settings that torch refuses.
        """
        environment = {
            **{key: value for key, value in os.environ.items() if not key.endswith("ALLOC_CONF")},
            "LD_PRELOAD": str(self.runtime),
            "STAND_IN_TOTAL": str(device_bytes),
            "STAND_IN_CAPACITY": str(device_bytes if capacity is None else capacity),
            "STAND_IN_SCATTER": str(scatter),
        }
        if settings:
            environment["PYTORCH_CUDA_ALLOC_CONF"] = settings
        done = subprocess.run(
            [self.program],
            input="\n".join(commands),
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


def _compile(*arguments: str | Path) -> None:
    subprocess.run(["g++", "-O1", "-std=c++20", *arguments], check=True)
