"""Record the histories under ``tests/allocator_histories``.

``python -m allocator_recorder TORCH HEADERS...`` from ``tests/``, where TORCH is the folder of a CUDA build
of torch 2.11 and HEADERS are those of the CUDA toolkit (``cuda.h``, ``crt/``).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from allocator_recorder import HERE, Recorder
from allocator_recorder.commands import MIB, at_random, training
from mem_gpt_cli.allocator import write_history

ABOUT = "libc10_cuda.so of torch 2.11.0+cu130 with a stand-in for the CUDA runtime; no GPU"
DEVICE_BYTES = 256 * MIB
SCATTER = 7

TRAINING = training(layers=3, width=640, tokens=256, steps=2)
HISTORIES: dict[str, tuple[str, list[str]]] = {
    "training": ("", TRAINING),
    "training_expandable": ("expandable_segments:True", TRAINING),
    "random": ("", at_random(21, 200)),
    "random_expandable": ("expandable_segments:True", at_random(31, 200)),
    "random_max_split": ("max_split_size_mb:40", at_random(26, 200)),
    "random_garbage": (
        "garbage_collection_threshold:0.4,per_process_memory_fraction:0.8",
        at_random(17, 200),
    ),
    "random_roundup": ("roundup_power2_divisions:[1:4,2:8,4:2,16:1,>:8]", at_random(29, 200)),
    "random_large_segment": ("large_segment_size_mb:32", at_random(21, 200)),
}
"""Of each file: the settings, and the commands. The seeds are ones that run out of memory."""


def main(torch: str, *headers: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(torch), map(Path, headers), Path(folder))
        for name, (settings, commands) in HISTORIES.items():
            snapshot = recorder.record(commands, settings, device_bytes=DEVICE_BYTES, scatter=SCATTER)
            write_history(snapshot, HERE.parent / "allocator_histories" / f"{name}.json", ABOUT)
            print(f"{name}: {len(snapshot['device_traces'][0])} actions, {snapshot['ooms']} out of memory")


if __name__ == "__main__":
    main(*sys.argv[1:])
