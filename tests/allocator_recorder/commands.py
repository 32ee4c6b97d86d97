"""Commands for the recorder: what programs ask of an allocator, invented."""

from __future__ import annotations

import random

KIB, MIB = 1 << 10, 1 << 20
EDGES = (1, 511, 512, 513, 2 * KIB, 60_000, 700_000, MIB, MIB + 1, 3 * MIB, 9 * MIB, 10 * MIB, 11 * MIB)
LARGE = (25 * MIB, 50 * MIB, 131 * MIB)


def at_random(seed: int, count: int) -> list[str]:
    """Requests of a few sizes, given back in any order, now and then after the cache is emptied."""
    rng = random.Random(seed)
    sizes = [
        rng.choice(EDGES + LARGE) + rng.choice((0, 0, 1, 512, 100_000)) for _ in range(rng.randint(3, 40))
    ]
    most, emptied = rng.randint(5, 60), rng.choice((0.0, 0.0, 0.01))
    live: list[int] = []
    commands = []
    for number in range(count):
        draw = rng.random()
        if draw < emptied:
            commands.append("e")
        elif live and (len(live) > most or draw < 0.47):
            commands.append(f"f {live.pop(rng.randrange(len(live)) if rng.random() < 0.5 else -1)}")
        else:
            nbytes = rng.choice(sizes) if rng.random() < 0.8 else int(2 ** rng.uniform(0, 27))
            commands.append(f"m {number} {nbytes}")
            live.append(number)
    return commands


def training(layers: int, width: int, tokens: int, steps: int) -> list[str]:
    """The storages of training steps: weights, activations kept for backward, gradients, Adam's state."""
    commands: list[str] = []
    live: set[str] = set()

    def birth(name: str, nbytes: int) -> None:
        commands.append(f"m {_number(name)} {nbytes}")
        live.add(name)

    def death(name: str) -> None:
        commands.append(f"f {_number(name)}")
        live.remove(name)

    weights = {f"w{layer}.{part}": 4 * width * width * part for layer in range(layers) for part in (1, 3, 4)}
    for name, nbytes in weights.items():
        birth(name, nbytes)
    for _ in range(steps):
        for layer in range(layers):
            birth(f"kept{layer}", 4 * tokens * width * 4)
            birth(f"passing{layer}", 4 * tokens * width * 3 + 100)
            death(f"passing{layer}")
        for layer in reversed(range(layers)):
            birth("incoming", 4 * tokens * width)
            for part in (4, 3, 1):
                birth(f"gw{layer}.{part}", weights[f"w{layer}.{part}"])
            death(f"kept{layer}")
            death("incoming")
        for name, nbytes in weights.items():
            for moment in ("m", "v"):
                if moment + name not in live:
                    birth(moment + name, nbytes)
            birth("denominator", nbytes)
            death("denominator")
            death("g" + name)
    return commands


def _number(name: str) -> int:
    """A number for a storage's name."""
    return int.from_bytes(name.encode(), "big") % (1 << 31)
