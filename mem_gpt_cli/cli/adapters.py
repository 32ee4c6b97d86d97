"""``memgpt adapters``: saved adapters listed, shown, merged into their base, exported."""

from __future__ import annotations

import json as json_text
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mem_gpt_cli.cli import console
from mem_gpt_cli.cli.options import Request, takes_recipe
from mem_gpt_cli.cli.save import OF_A_RUN
from mem_gpt_cli.cli.startup import hush_libraries
from mem_gpt_cli.errors import UsageError

if TYPE_CHECKING:
    from mem_gpt_cli.adapters.export import Format
    from mem_gpt_cli.adapters.folder import SavedAdapter
    from mem_gpt_cli.quality.merging import Merged

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="List and show saved adapters, merge them into their base, export them.",
)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
_DTYPES = ("fp32", "fp16", "bf16")


@app.command("list")
def list_(
    folder: Annotated[
        Path, typer.Argument(help="Where to look, at whatever depth.", metavar="FOLDER")
    ] = Path(),
    json: _Json = False,
) -> None:
    """List the adapters under a folder: base, rank, targets, size, and when each was saved.

    A folder that cannot be read is listed too, with what is wrong, and ends nothing: the exit code is 0.
    """
    from mem_gpt_cli.adapters.folder import adapter_folders, read_adapter

    rows: list[dict[str, Any]] = []
    for path in adapter_folders(folder):
        try:
            rows.append(_summary(read_adapter(path)))
        except UsageError as error:
            rows.append({"name": path.resolve().name, "folder": str(path), "problem": str(error)})
    if json:
        print(json_text.dumps(rows, indent=2))
        return
    if rows:
        from mem_gpt_cli.cli.adapter_tables import list_table

        console.data().print(list_table(rows))
    problems = [row["problem"] for row in rows if "problem" in row]
    for problem in problems:
        console.warn(problem)
    count = len(rows) - len(problems)
    noun = "adapter" if count == 1 else "adapters"
    console.people().print(f"{count} {noun} under {folder}", markup=False, soft_wrap=True)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(help="The folder of an adapter.", metavar="FOLDER")],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Check that it belongs to this model.", metavar="TEXT"),
    ] = None,
    json: _Json = False,
) -> None:
    """Show one adapter: what it was made of, and the size of its factors at each target."""
    from mem_gpt_cli.adapters.folder import read_adapter

    adapter = read_adapter(folder)
    belongs = None if model is None else _belonging(adapter, model)
    if json:
        more = {} if belongs is None else {"belongs_to": model}
        print(json_text.dumps({**_details(adapter), **more}, indent=2))
        return
    from mem_gpt_cli.cli.adapter_tables import facts_table, targets_table

    out = console.data()
    out.print(facts_table(adapter))
    out.print()
    out.print(targets_table(adapter))
    if belongs is not None:
        print(belongs)


@app.command()
@takes_recipe(without=OF_A_RUN)
def merge(
    request: Request,
    adapter: Annotated[
        list[str],
        typer.Option("--adapter", help="The folder of an adapter; may be repeated.", metavar="FOLDER"),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="The folder to write; nothing may be there.", metavar="FOLDER")
    ],
    text: Annotated[
        str | None,
        typer.Option(
            "--text", help="A text file or folder to compare logits on; else sample.", metavar="FILE"
        ),
    ] = None,
) -> None:
    """Merge adapters into the model of a recipe and write it, as `memgpt save` does.

    Into full weights, or with --quantization into quantized ones. Prints how far the logits of the merged
    model are from those of the model with adapters beside its weights.
    """
    hush_libraries()
    from transformers.utils import logging

    from mem_gpt_cli.quality.merging import merge as merge_into_model
    from mem_gpt_cli.recipe.changing import changed

    logging.disable_progress_bar()
    recipe = request.recipe()
    if text is not None:
        recipe = changed(recipe, {"quality": {"text": text}})
    merged = merge_into_model(recipe, adapter, out)
    if request.json:
        print(json_text.dumps(_merged(merged), indent=2))
    else:
        _print_merged(merged)
    for note in merged.notes:
        console.warn(note)


@app.command()
def export(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Folders of adapters; several become their sum.", metavar="FOLDERS..."),
    ],
    out: Annotated[Path, typer.Option("--out", help="What to write; nothing may be there.", metavar="PATH")],
    to: Annotated[
        str,
        typer.Option(
            "--format",
            help="peft: a folder; safetensors: one file with the config in its metadata.",
            metavar="peft|safetensors",
        ),
    ] = "peft",
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="Width of the factors; else as they are.", metavar="fp32|fp16|bf16"),
    ] = None,
    json: _Json = False,
) -> None:
    """Write an adapter for other programs, or several as their exact sum, of the sum of their ranks."""
    hush_libraries()
    from mem_gpt_cli.adapters.export import FORMATS
    from mem_gpt_cli.adapters.export import export as write
    from mem_gpt_cli.adapters.folder import read_adapter

    _refuse_unknown("--format", to, FORMATS)
    if dtype is not None:
        _refuse_unknown("--dtype", dtype, _DTYPES)
    adapters = [read_adapter(folder) for folder in folders]
    parameters = write(adapters, out, cast("Format", to), dtype)
    files = [out] if out.is_file() else list(out.glob("*.safetensors"))
    nbytes = sum(path.stat().st_size for path in files)
    if json:
        print(
            json_text.dumps(
                {
                    "path": str(out),
                    "format": to,
                    "adapters": [str(adapter.folder) for adapter in adapters],
                    "parameters": parameters,
                    "bytes": nbytes,
                }
            )
        )
        return
    names = " + ".join(adapter.name for adapter in adapters)
    print(f"{names} is in {out}: {parameters:,} parameters, {nbytes:,} B")


def _refuse_unknown(flag: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{flag}: {value!r} is not offered: choose {' or '.join(known)}")


def _belonging(adapter: SavedAdapter, model: str) -> str:
    """A sentence that says why the adapter belongs to the model.

    Raises:
        UsageError: if it does not.
    """
    from mem_gpt_cli.adapters.base import check_base
    from mem_gpt_cli.model import resolve
    from mem_gpt_cli.recipe.schema import Model

    source = resolve(Model(name=model))
    check_base(adapter, source)
    noted = "its base's numbers as noted, " if adapter.record else ""
    return (
        f"belongs to {source.name}: {noted}names and shapes of all {len(adapter.factors)} matrices fit "
        "(weights are compared when it is loaded)"
    )


def _summary(adapter: SavedAdapter) -> dict[str, Any]:
    return {
        "name": adapter.name,
        "folder": str(adapter.folder),
        "base": adapter.base,
        "ranks": list(adapter.ranks),
        "targets": list(adapter.targets),
        "parameters": adapter.parameters,
        "bytes": adapter.nbytes,
        "dtypes": list(adapter.dtypes),
        "saved": adapter.saved.isoformat(),
    }


def _details(adapter: SavedAdapter) -> dict[str, Any]:
    from mem_gpt_cli.adapters.folder import by_target

    return {
        **_summary(adapter),
        "matrices": len(adapter.factors),
        "config": dict(adapter.config),
        "record": adapter.record and adapter.record.model_dump(exclude_unset=True),
        "by_target": [
            {
                "target": target,
                "matrices": len(factors),
                "ranks": sorted({one.rank for one in factors}),
                "scales": sorted({one.scale for one in factors}),
                "parameters": sum(one.parameters for one in factors),
                "bytes": sum(one.nbytes for one in factors),
            }
            for target, factors in by_target(adapter).items()
        ],
    }


def _merged(merged: Merged) -> dict[str, Any]:
    return {
        "model": merged.model,
        "folder": str(merged.folder),
        "adapters": list(merged.adapters),
        "matrices": merged.matrices,
        "dtype": merged.dtype,
        "quantization": merged.quantization,
        "weights_bytes": merged.weights_bytes,
        "shift": {"text": merged.text, **merged.shift.as_dict()},
        "notes": list(merged.notes),
    }


def _print_merged(merged: Merged) -> None:
    shift = merged.shift
    stored, count = merged.quantization or merged.dtype, len(merged.adapters)
    what = f"{count} {'adapter' if count == 1 else 'adapters'} merged ({merged.matrices} matrices, {stored})"
    print(f"{merged.model} with {what} is in {merged.folder}, {merged.weights_bytes:,} B of weights")
    print(f"logits against those before the merging, on {shift.tokens:,} tokens of {merged.text}:")
    print(f"  norm of the difference  {shift.relative_norm:.2e} of theirs")
    print(f"  largest difference      {shift.largest:.2e}")
    print(f"  KL divergence           {shift.kl_divergence:.2e} nats a token")
    print(f"  likeliest token alike   {shift.top1_agreement:.2%}")
