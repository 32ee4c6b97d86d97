"""The colors of the components in pictures, and the order in which they are stacked."""

from __future__ import annotations

from collections.abc import Mapping

COLORS: Mapping[str, str] = {
    "weights": "#0072B2",
    "optimizer_state": "#CC79A7",
    "gradients": "#009E73",
    "adapters": "#F0E442",
    "kv_cache": "#E69F00",
    "activations": "#56B4E9",
    "logits": "#D55E00",
    "workspace": "#8C8C8C",
}
"""What lasts lies below what comes and goes. The colors are told apart with any color vision: Okabe and Ito,
Color Universal Design, 2008 (https://jfly.uni-koeln.de/color/), with grey in place of black."""
STACK: tuple[str, ...] = tuple(COLORS)
