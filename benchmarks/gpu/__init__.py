"""The GPU kit: everything that needs a GPU, in one call of limited time. See ``docs/gpu-kit.md``."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "gpu"
