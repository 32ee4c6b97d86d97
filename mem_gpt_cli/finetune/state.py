"""All that a run's future depends on, as files: weights, optimizer, schedule, random numbers, place."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.model.facts import trainable

_WEIGHTS = "trainable.safetensors"
_STATE = "state.pt"
_PLACE = "place.json"
_DEVICES = ("cpu", "meta")

RandomStates = dict[str, Any]


class Moving(NamedTuple):
    """What training changes."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler


def save_state(folder: Path, moving: Moving, place: Mapping[str, Any], randoms: list[RandomStates]) -> None:
    """Write everything; ``randoms`` has the random states of each process in the order of their ranks."""
    weights = {name: p.detach().contiguous() for name, p in trainable(moving.model).items()}
    save_file(weights, folder / _WEIGHTS)
    state = {
        "optimizer": _optimizer_state(moving.optimizer),
        "schedule": moving.schedule.state_dict(),
        "random": randoms,
    }
    with (folder / _STATE).open("wb") as file:  # ours, because torch's own tells no reason when it fails
        torch.save(state, file)
    (folder / _PLACE).write_text(json.dumps(place, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def not_finite(model: torch.nn.Module) -> str | None:
    """The name of the first trained tensor with a value that is no finite number; ``None``: all are numbers.

    Both extremes of a tensor are NaN where one value is; to ask for them takes no memory of its size.
    """
    for name, parameter in trainable(model).items():
        if parameter.numel() and not torch.stack(parameter.detach().aminmax()).isfinite().all():
            return name
    return None


def place_of(folder: Path) -> dict[str, Any]:
    """Where in the run a checkpoint stands: what was given as ``place``."""
    found: dict[str, Any] = json.loads((folder / _PLACE).read_text(encoding="utf-8"))
    return found


@torch.no_grad()
def load_state(folder: Path, moving: Moving, device: torch.device, rank: int) -> None:
    """Bring a run that was just set up to where a checkpoint stands; tensors get the bits that were saved.

    Raises:
        UsageError: for a checkpoint of another model.
    """
    stored = load_file(folder / _WEIGHTS)
    parameters = trainable(moving.model)
    if {name: tuple(p.shape) for name, p in parameters.items()} != {
        n: tuple(t.shape) for n, t in stored.items()
    }:
        raise UsageError(f"{folder} is of another model: name the folder of this run, or begin a new one")
    for name, parameter in parameters.items():
        parameter.copy_(stored[name])
    state = torch.load(folder / _STATE, map_location=_onto(device), weights_only=True)
    _restore_optimizer(moving.optimizer, state["optimizer"])
    moving.schedule.load_state_dict(state["schedule"])
    set_random_states(state["random"][rank], device)


def _onto(device: torch.device) -> Any:
    """Counters that an optimizer keeps on the CPU stay there; what was on any GPU comes onto this one."""
    return lambda storage, location: storage if location in _DEVICES else storage.to(device)


def _optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's own tensors and options; its ``state_dict`` would do, but ``load_state_dict`` casts
    what it reads to the parameters' width."""
    groups = [
        {key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups
    ]
    state = {number: dict(optimizer.state[p]) for number, p in _numbered(optimizer) if p in optimizer.state}
    return {"groups": groups, "state": state}


def _restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.update(values)
    optimizer.state.clear()
    for number, parameter in _numbered(optimizer):
        if number in saved["state"]:
            optimizer.state[parameter] = _paged(optimizer, parameter, saved["state"][number])


def _paged(optimizer: Any, parameter: torch.nn.Parameter, state: dict[str, Any]) -> dict[str, Any]:
    """The state as the optimizer keeps it: a paged one of bitsandbytes, on a GPU, has moments in memory that
    the driver moves, which no file can be read into."""
    if not getattr(optimizer, "is_paged", False) or parameter.device.type != "cuda":
        return state
    found = dict(state)
    for name in ("state1", "state2"):
        if name in state:
            found[name] = optimizer.get_state_buffer(parameter, dtype=state[name].dtype)
            found[name].copy_(state[name])
    return found


def _numbered(optimizer: torch.optim.Optimizer) -> Iterator[tuple[int, torch.nn.Parameter]]:
    yield from enumerate(p for group in optimizer.param_groups for p in group["params"])


def random_states(device: torch.device) -> RandomStates:
    """Where the random numbers of Python, numpy and torch stand in this process."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_states(states: RandomStates, device: torch.device) -> None:
    """Go on with the random numbers of ``random_states``."""
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)


def seed_everything(seed: int) -> None:
    """Begin all random numbers anew."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
