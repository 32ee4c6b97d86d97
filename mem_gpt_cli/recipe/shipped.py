"""The recipes that come with memgpt: in the wheel beside the package, in a checkout at its top."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def folder() -> Path:
    """Where the shipped recipes lie: ``mem_gpt_cli/_recipes`` of a wheel, ``recipes/`` of a checkout."""
    packed = _PACKAGE / "_recipes"
    return packed if packed.is_dir() else _PACKAGE.parent / "recipes"


def shipped() -> tuple[Path, ...]:
    """Every shipped recipe file, subfolders included, sorted by name."""
    return tuple(sorted(folder().rglob("*.yaml")))


def name_of(path: Path) -> str:
    """The name a shipped recipe is called by: its path in the folder without ``.yaml``."""
    return path.relative_to(folder()).with_suffix("").as_posix()


def by_name() -> dict[str, Path]:
    """The shipped recipes' names and files."""
    return {name_of(path): path for path in shipped()}
