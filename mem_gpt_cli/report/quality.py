"""What options cost in quality, as a few lines for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from mem_gpt_cli.report.table import plain_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mem_gpt_cli.report.model import Quality


def quality_table(quality: Quality) -> RenderableType:
    """Perplexity with the options and without them, and how far apart the predictions are."""
    table = plain_table()
    table.add_column("quality", no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column(f"of {quality.tokens} tokens of {quality.text}")
    table.add_row("perplexity", f"{quality.perplexity:.3f}", "a token, the options in effect")
    if quality.reference_perplexity is not None and quality.perplexity_change is not None:
        table.add_row(
            "without options",
            f"{quality.reference_perplexity:.3f}",
            f"the same weights in fp32: {100 * quality.perplexity_change:+.2f}%",
        )
    if quality.kl_divergence is not None:
        table.add_row("KL divergence", f"{quality.kl_divergence:.5f}", "nats a token, from the full model's")
    if quality.top1_agreement is not None:
        share = f"{100 * quality.top1_agreement:.1f}%"
        table.add_row("top-1 agreement", share, Text("of tokens: the same one is likeliest"))
    return table
