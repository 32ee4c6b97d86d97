"""What a reader should know of an optimizer's memory that no column of a report shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mem_gpt_cli.optimizers.bitsandbytes_steps import paged_bytes
from mem_gpt_cli.optimizers.galore_steps import projected
from mem_gpt_cli.optimizers.settings import Parameter, Settings
from mem_gpt_cli.recipe.schema import Recipe

MIB = 2**20


def notes(recipe: Recipe, parameters: Sequence[Parameter]) -> Iterator[str]:
    """Sentences on managed memory, on LAPACK's and cuSOLVER's own memory, and on what is not projected."""
    if recipe.task != "training":
        return
    settings = Settings.of(recipe)
    paged = paged_bytes(parameters, settings)
    if paged:
        yield (
            f"{paged / MIB:,.0f} MiB of the optimizer's state are managed memory, which the driver keeps on "
            "the card while there is room and else in the host: no column counts them"
        )
    if settings.name != "galore":
        return
    if settings.cuda:
        yield "what cuSOLVER takes for itself while it finds singular vectors is not counted"
    if not any(projected(p.shape, settings.rank, in_layer=p.in_layer) for p in parameters):
        yield (
            f"no matrix is larger than galore's rank of {settings.rank}, so that nothing is projected: it is "
            "AdamW; set optimizer.rank"
        )


def temporaries_of(recipe: Recipe) -> str:
    """What most of a step's temporaries are."""
    settings = Settings.of(recipe)
    if settings.name == "galore":
        return "singular vectors of a gradient"
    if settings.name == "adafactor":
        return "the update of a matrix"
    if settings.name not in ("adamw", "sgd"):
        return "the moments of a matrix in fp32"
    several = {"foreach": "of all weights at once", "loop": "of one matrix"}.get(settings.implementation, "")
    what = "the roots of the second moments" if settings.name == "adamw" else "the decayed gradients"
    return f"{what} {several}".strip()
