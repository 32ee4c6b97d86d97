"""Whether a model's files are still those that a run began with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path

from mem_gpt_cli.model.source import ModelSource
from mem_gpt_cli.model.weights import wants_real_weights
from mem_gpt_cli.recipe.schema import Recipe

_WEIGHTS = ("*.safetensors", "*.bin")
_PLACES = 64
_BLOCK = 65536


def weights_fingerprint(source: ModelSource, recipe: Recipe) -> str | None:
    """16 hex digits for the weights that training starts from; ``None`` where they are drawn by the seed.

    They stand for the names and sizes of the files and for 64 stretches of each, spread evenly over it: large
    models are not read twice for it.

    Raises:
        OSError: for a file that cannot be read.
    """
    files = list(_files(source, recipe))
    return _digest(files) if files else None


def _files(source: ModelSource, recipe: Recipe) -> Iterator[Path]:
    if wants_real_weights(source, recipe):
        if source.gguf_file is not None:
            yield source.gguf_file
        elif source.folder is not None:
            yield from _weights_in(source.folder)
    for folder in recipe.adapters.load:
        yield from _weights_in(Path(folder).expanduser())


def _weights_in(folder: Path) -> Iterator[Path]:
    for pattern in _WEIGHTS:
        yield from sorted(folder.glob(pattern))


def _digest(files: Iterable[Path]) -> str:
    found = sha256()
    for path in files:
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for place in range(_PLACES):
                file.seek(max(0, size - _BLOCK) * place // (_PLACES - 1))
                found.update(file.read(_BLOCK))
    return found.hexdigest()[:16]
