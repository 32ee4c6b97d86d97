"""Predicted against measured, over every cell of this folder's recipes and over cells drawn at random.

    python benchmarks/accuracy/run.py                      # goes on where it was left
    python benchmarks/accuracy/run.py --fresh              # moves the old rows aside and measures all anew
    python benchmarks/accuracy/run.py --drawn 24 --seed 1  # cells that nobody chose
    python benchmarks/accuracy/run.py --drawn 24 --seed 4 --options training  # fine-tunes that nobody chose

It runs ``memgpt bench``'s own code and appends to ``results/accuracy_cpu.csv``. Cells share processes, which
saves most of the time and changes no byte that torch's allocator counts (``--cells-per-process 1`` shows it).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from drawn import drawn_recipe

from mem_gpt_cli.bench import Plan, run_sweep
from mem_gpt_cli.recipe import Recipe, expand, load_recipe

HERE = Path(__file__).parent
RESULTS = HERE.parent.parent / "results" / "accuracy_cpu.csv"
OPTIONS = HERE / "options.yaml"
ASIDE = ".old.csv"
NICENESS = 10


def main() -> None:
    arguments = parsed()
    os.nice(NICENESS)
    if arguments.fresh and arguments.csv.exists():
        arguments.csv.replace(arguments.csv.with_suffix(ASIDE))
    for name, recipe in recipes(arguments):
        plan = Plan(
            name=name,
            cells=expand(recipe),
            csv=arguments.csv,
            timeout_s=arguments.timeout,
            resume=True,
            cells_per_process=arguments.cells_per_process,
        )
        for row in run_sweep(plan):
            print(
                f"{name} {row['cell']:>3} {row['status']} {row['trace_residual_bytes']} B  {row['key']}",
                flush=True,
            )


def recipes(arguments: argparse.Namespace) -> Iterator[tuple[str, Recipe]]:
    if arguments.drawn:
        of = "" if arguments.options == "all" else f"{arguments.options}-"
        yield f"drawn-{of}{arguments.seed}", drawn_recipe(arguments.drawn, arguments.seed, arguments.options)
        return
    for path in sorted(HERE.glob("*.yaml")):
        if path != OPTIONS and path.stem in (arguments.only or [path.stem]):
            yield path.stem, load_recipe(path)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=sys.modules[__name__].__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--csv", type=Path, default=RESULTS)
    parser.add_argument("--fresh", action="store_true", help=f"move the CSV aside first, to {ASIDE}")
    parser.add_argument("--only", nargs="*", help="names of recipes in this folder")
    parser.add_argument("--drawn", type=int, default=0, help="how many cells to draw at random")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--options", choices=["all", "training"], default="all", help="what is drawn")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds a cell")
    parser.add_argument("--cells-per-process", type=int, default=18)
    return parser.parse_args()


if __name__ == "__main__":
    main()
