"""The GPU kit: ``benchmarks/gpu/run`` finds the packages, then runs this. See ``docs/gpu-kit.md``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu import RESULTS, facts, predictions, summary
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.kit import Kit, memory_of, name_of_device, workers_for
from benchmarks.gpu.plan import show
from benchmarks.gpu.record import Record, runs_in
from benchmarks.gpu.sources import blob_of, commit
from benchmarks.gpu.stages import STAGES
from mem_gpt_cli.cli import console
from mem_gpt_cli.errors import GateError, IncompleteSweepError, MemgptError, UsageError

LIMIT_S = 520.0
SUMMARY = "summary"
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the kit; the exit code: 0, 3 for a missed gate, 5 for what was cut off or failed, an error's."""
    asked = _parser().parse_args(arguments)
    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)
    try:
        if asked.plan:
            show(asked.device or "h100", asked.cells, asked.limit_s, as_json=asked.json, write=asked.write)
            return 0
        return _run(asked, Clock(asked.limit_s))
    except MemgptError as error:
        print(f"benchmarks.gpu: error: {error}", file=sys.stderr)
        return error.exit_code


def _run(asked: argparse.Namespace, clock: Clock) -> int:
    names = _stages(asked.stages)
    if asked.device not in (None, "cuda", "cpu"):
        raise UsageError(
            f"--device {asked.device!r}: a run takes cuda or cpu; a GPU's name belongs to --plan"
        )
    device: Literal["cuda", "cpu"] = "cpu" if asked.device == "cpu" else "cuda"
    whole = True
    if names - {SUMMARY}:
        whole, folder, gpu = _measure(asked, device, names, clock)
    else:
        folder, gpu = _known(asked.out)
    if SUMMARY not in names:
        return 0 if whole else IncompleteSweepError.exit_code
    found = summary.write(folder, gpu, asked.cells)
    if asked.json:
        print(json.dumps(found, indent=1))
    else:
        console.data().print(summary.table(found), soft_wrap=False)
    if not (whole and summary.whole(found)):
        return IncompleteSweepError.exit_code
    return 0 if summary.met(found) else GateError.exit_code


def _measure(
    asked: argparse.Namespace, device: Literal["cuda", "cpu"], names: set[str], clock: Clock
) -> tuple[bool, Path, str]:
    """Run the stages; whether all came to their end, where the files are, and the device's name."""
    known = facts.gathered(device)
    gpu = name_of_device(known)
    folder = asked.out or RESULTS / gpu
    folder.mkdir(parents=True, exist_ok=True)
    kit = Kit(
        device=device,
        gpu=gpu,
        out=folder,
        predictions=asked.predictions or predictions.path_of(gpu),
        predictions_blob=blob_of(asked.predictions or predictions.path_of(gpu)),
        memory_bytes=memory_of(known),
        workers=asked.workers or workers_for(known),
        pattern=asked.cells,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        clock=clock,
    )
    record = Record(folder, _about(kit, known))
    for stage in STAGES:
        if stage.name in names:
            with record.stage(stage.name) as left:
                left += stage.run(kit, stage.share)
    return record.whole, folder, gpu


def _about(kit: Kit, known: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "device": kit.gpu,
        "commit": commit(),
        "predictions": kit.predictions.name if kit.predictions_blob else None,
        "predictions_blob": kit.predictions_blob,
        "limit_s": kit.clock.limit_s,
        "workers": kit.workers,
        "cells": kit.pattern,
        **known,
    }


def _known(folder: Path | None) -> tuple[Path, str]:
    """A folder of results and the device that they are of.

    Raises:
        UsageError: if none is given, or there are no results in it.
    """
    if folder is None or not (runs := runs_in(folder)):
        raise UsageError("--stages summary: give the folder of the results, --out results/gpu/NAME")
    return folder, runs[-1]["device"]


def _stages(names: str | None) -> set[str]:
    known = [*(stage.name for stage in STAGES), SUMMARY]
    asked = set(known) if names is None else {name.strip() for name in names.split(",")}
    if unknown := asked - set(known):
        raise UsageError(f"--stages: {sorted(unknown)[0]!r} is no stage: choose from {', '.join(known)}")
    return asked


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/run", description="Everything that needs a GPU.")
    parser.add_argument("--plan", action="store_true", help="print stages and predictions; needs no GPU")
    parser.add_argument("--write", action="store_true", help="with --plan: write results/gpu/predictions/")
    parser.add_argument(
        "--device", help="cuda or cpu (a rehearsal); with --plan a GPU's name, h100 if not given"
    )
    parser.add_argument("--cells", default="*", help="only cells whose name or key matches, e.g. 'gpt2-xl/*'")
    parser.add_argument(
        "--stages", help=f"only these, of {', '.join(stage.name for stage in STAGES)}, {SUMMARY}"
    )
    parser.add_argument("--out", type=Path, help="folder for the files, results/gpu/NAME if not given")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds for all of it")
    parser.add_argument("--workers", type=int, help="cells at once; half the cores, at most 8, if not given")
    parser.add_argument("--predictions", type=Path, help="file to compare with, instead of the committed one")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


if __name__ == "__main__":
    sys.exit(main())
