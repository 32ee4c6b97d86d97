"""``memgpt doctor``: what is installed, what works, which GPU, and what to install for what is missing."""

from __future__ import annotations

import json as json_text
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mem_gpt_cli.cli import console
from mem_gpt_cli.errors import EnvironmentUnavailableError, UsageError

if TYPE_CHECKING:
    from mem_gpt_cli.doctor.diagnosis import Diagnosis


def doctor(
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Measure what the GPU takes beside torch's allocator, and keep it."),
    ] = False,
    device: Annotated[
        str | None, typer.Option("--device", help="With --calibrate: cuda or cuda:N.", metavar="NAME")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="With --calibrate: the file to write, instead of your own.", metavar="FILE"
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds that each try may take.", min=0.1, metavar="SECONDS")
    ] = 120,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Say what is installed, what works and which GPU there is; each backend is tried in its own process."""
    if calibrate:
        _calibrate(device or "cuda", out, timeout, json)
    elif device or out:
        raise UsageError(
            f"{'--device' if device else '--out'} belongs to --calibrate: add it, or leave it out"
        )
    else:
        _diagnose(timeout, json)


def _diagnose(timeout: float, json: bool) -> None:
    from mem_gpt_cli.doctor.diagnosis import diagnose

    with console.progress() as bar:
        task = bar.add_task("trying", total=None)
        found = diagnose(
            timeout,
            on_outcome=lambda name, done, total: bar.update(
                task, description=name, completed=done, total=total
            ),
        )
    if json:
        print(json_text.dumps(found.as_dict(), indent=2, ensure_ascii=False))
    else:
        _print(found)
    if found.broken:
        raise EnvironmentUnavailableError("; ".join(found.broken))


def _print(found: Diagnosis) -> None:
    from mem_gpt_cli.doctor.table import commands, diagnosis_tables

    screen = console.data()
    for number, part in enumerate(diagnosis_tables(found)):
        if number:
            screen.print()
        screen.print(part)
    for line in commands(found):
        screen.print(line, markup=False, soft_wrap=True)


def _calibrate(device: str, out: Path | None, timeout: float, json: bool) -> None:
    from dataclasses import asdict

    from mem_gpt_cli.devices.calibration import calibration_path, write_calibration
    from mem_gpt_cli.doctor.calibrate import STEPS, calibrate
    from mem_gpt_cli.doctor.table import calibration_table

    number = re.fullmatch(r"cuda(?::(\d{1,3}))?", device)
    if number is None:
        raise UsageError(
            f"--device: {device!r} cannot be calibrated: write cuda or cuda:N, a GPU of this machine"
        )
    with console.progress() as bar:
        task = bar.add_task("calibrating", total=len(STEPS))
        found = calibrate(
            int(number[1] or 0),
            timeout,
            on_step=lambda name: bar.update(task, description=name, advance=1),
        )
    path = out or calibration_path()
    write_calibration(found, path)
    if json:
        print(json_text.dumps(asdict(found), indent=2))
    else:
        console.data().print(calibration_table(found))
    console.people().print(f"written to {path}", markup=False, soft_wrap=True)
