"""What a GPU takes beside torch's allocator: the step from reserved memory to the process, and to the device.

None of it can be computed: a CUDA context holds the driver's tables, stacks and kernels, and grows with the
libraries that are loaded. So it is measured once for a GPU, a driver and a build of torch, by ``memgpt doctor
--calibrate``, and read here, from the user's own file and from those that the package ships.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from mem_gpt_cli.devices.gpu import Gpu
from mem_gpt_cli.errors import EnvironmentUnavailableError, UsageError

SCHEMA_VERSION: Literal[1] = 1
VARIABLE = "MEMGPT_CALIBRATION"
SHIPPED = Path(__file__).with_name("calibrations")

Bytes = Annotated[int, Field(ge=0)]
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Calibration:
    """What was measured on one GPU, with one driver and one build of torch. All sizes in bytes.

    Args:
        gpu: the catalogue's name, or the product where the catalogue does not know it.
        product: what the driver calls the GPU.
        date: when, in UTC, ISO 8601.
        torch: version of torch, with its build, e.g. ``2.11.0+cu130``.
        cuda: the CUDA version that torch was built for.
        driver: the driver's version.
        context_bytes: a process that has initialised CUDA and allocated one tensor, less what torch reserved.
        library_bytes: what a small training step adds to that, because libraries load at their first use.
        forward_workspace_bytes: cuBLAS workspaces that the first matrix products leave allocated.
        backward_workspace_bytes: those that autograd's thread adds, which has handles of its own.
        device_baseline_bytes: used on the device while no process is; ``None`` where it could not be told.
        libraries: what the first use of each library alone adds to the context, by name, where it works.
        process_how: how a process's memory was got: NVML's list, or the device's memory before and after.
    """

    __pydantic_config__ = _STRICT

    gpu: str
    product: str
    date: str
    torch: str
    cuda: str
    driver: str | None
    context_bytes: Bytes
    library_bytes: Bytes
    forward_workspace_bytes: Bytes
    backward_workspace_bytes: Bytes
    device_baseline_bytes: Bytes | None = None
    libraries: Mapping[str, Bytes] = field(default_factory=dict)
    process_how: str = ""

    @property
    def build(self) -> tuple[str, ...]:
        """What a calibration holds for; a new measurement of the same replaces it."""
        return (self.product, self.torch, self.cuda, self.driver or "")


def calibration_of(gpu: Gpu, *, path: Path | None = None, shipped: Path = SHIPPED) -> Calibration | None:
    """The calibration that fits a GPU best, or ``None`` where nobody has measured one.

    One for the installed version of torch is preferred, then the user's own, then the newest. ``path`` and
    ``shipped`` stand in for the user's file and the package's folder.

    Raises:
        UsageError: a calibration file that cannot be read.
    """
    own, packaged = read_calibrations(path or calibration_path()), _read_folder(shipped)
    fitting = [each for each in (*packaged, *own) if gpu.product == each.product or gpu.name == each.gpu]
    here = _torch_release()
    return max(
        fitting,
        key=lambda each: (each.torch.partition("+")[0] == here, each in own, each.date),
        default=None,
    )


def calibration_path() -> Path:
    """The user's file: ``$MEMGPT_CALIBRATION``, or ``memgpt/calibration.json`` where settings are kept."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    settings = os.environ.get("XDG_CONFIG_HOME")
    return (Path(settings) if settings else Path.home() / ".config") / "memgpt" / "calibration.json"


def read_calibrations(path: Path) -> tuple[Calibration, ...]:
    """The calibrations of a file; none where there is no file.

    Raises:
        UsageError: the file cannot be read, or is no calibration file of this version.
    """
    try:
        return _document().validate_json(path.read_bytes()).calibrations
    except FileNotFoundError:
        return ()
    except (OSError, ValidationError) as error:
        raise UsageError(
            f"{path} is no calibration file of this version of memgpt: {_reason(error)}: "
            "mend it, or move it away and run `memgpt doctor --calibrate`"
        ) from error


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Add a calibration to a file, in place of one for the same build; the file is there whole or not at all.

    Raises:
        UsageError: the file is no calibration file, or cannot be written.
        EnvironmentUnavailableError: the calibration holds what no GPU takes, such as less than nothing.
    """
    kept = [each for each in read_calibrations(path) if each.build != calibration.build]
    text = json.dumps(asdict(_Document(SCHEMA_VERSION, (*kept, calibration))), indent=2)
    _refuse_what_cannot_be_read(calibration)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(path)
            except BaseException:
                with suppress(FileNotFoundError):
                    Path(file.name).unlink()
                raise
    except OSError as error:
        raise UsageError(f"the calibration cannot be written to {path}: {error.strerror or error}") from error


@dataclass(frozen=True)
class _Document:
    """What a calibration file holds."""

    __pydantic_config__ = _STRICT

    schema_version: Literal[1]
    calibrations: tuple[Calibration, ...]


@cache
def _document() -> TypeAdapter[_Document]:
    return TypeAdapter(_Document)


def _refuse_what_cannot_be_read(calibration: Calibration) -> None:
    """A figure below 0 comes of a process that left the GPU meanwhile, and would spoil the whole file."""
    try:
        _document().validate_json(json.dumps(asdict(_Document(SCHEMA_VERSION, (calibration,)))))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        figure = ".".join(str(step) for step in first["loc"][2:])
        raise EnvironmentUnavailableError(
            f"the calibration is not kept, because {figure} was measured as {first['input']!r}: another "
            "process came to or left the GPU meanwhile; "
            "run `memgpt doctor --calibrate` again while nothing else uses it"
        ) from error


def _read_folder(folder: Path) -> tuple[Calibration, ...]:
    return tuple(each for path in sorted(folder.glob("*.json")) for each in read_calibrations(path))


def _reason(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    first = error.errors(include_url=False)[0]
    place = ".".join(str(step) for step in first["loc"])
    return (f"{place}: " if place else "") + first["msg"]


def _torch_release() -> str | None:
    try:
        return version("torch").partition("+")[0]
    except PackageNotFoundError:
        return None
