"""A timeline as one self-contained HTML page, drawn by plotly: hover, zoom, components to switch off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mem_gpt_cli.report.palette import COLORS
from mem_gpt_cli.report.sizes import render_bytes
from mem_gpt_cli.report.timeline import Timeline, thinned
from mem_gpt_cli.report.timeline_picture import (
    FAINT,
    INK,
    NAMELESS,
    NARROW,
    byte_unit,
    outline,
    peak_label,
    phase_label,
)

BUCKETS = 2000


def write_page(timeline: Timeline, path: Path) -> None:
    """Write a page that needs no network.

    Raises:
        OSError: where the path cannot be written.
    """
    page = _figure(timeline).to_html(
        include_plotlyjs=True,
        full_html=True,
        default_height="94vh",
        config={"displaylogo": False, "responsive": True, "scrollZoom": True},
    )
    path.write_text(page, encoding="utf-8")


def _figure(timeline: Timeline) -> Any:
    import plotly.graph_objects as go

    unit, divisor = byte_unit(timeline.peak.allocated_bytes)
    figure = go.Figure()
    shown = thinned(timeline, BUCKETS)
    for name, held in shown.stacked():
        figure.add_trace(
            go.Scatter(
                x=shown.position,
                y=held / divisor,
                name=name.replace("_", " "),
                customdata=[render_bytes(count) for count in held.tolist()],
                hovertemplate="%{customdata}",
                stackgroup="memory",
                mode="lines",
                line={"width": 0, "shape": "hv"},
                fillcolor=COLORS[name],
                line_color=COLORS[name],
            )
        )
    _total(figure, shown, divisor)
    _phases(figure, timeline)
    _peak(figure, timeline, divisor)
    _layout(figure, timeline, unit)
    return figure


def _total(figure: Any, shown: Timeline, divisor: int) -> None:
    import plotly.graph_objects as go

    allocated = shown.allocated
    figure.add_trace(
        go.Scatter(
            x=shown.position,
            y=allocated / divisor,
            name="all",
            customdata=[render_bytes(count) for count in allocated.tolist()],
            hovertemplate="<b>%{customdata}</b>",
            mode="lines",
            line={"width": outline(shown, 1.0), "shape": "hv", "color": INK},
        )
    )


def _phases(figure: Any, timeline: Timeline) -> None:
    whole = timeline.stretches[-1].end - timeline.stretches[0].begin
    for number, stretch in enumerate(timeline.stretches):
        figure.add_vrect(
            x0=stretch.begin,
            x1=stretch.end,
            fillcolor=INK,
            opacity=0.05 if number % 2 else 0,
            line_width=0,
            layer="below",
        )
        if number:
            figure.add_vline(x=stretch.begin, line={"width": 1, "dash": "dot", "color": FAINT})
        share = (stretch.end - stretch.begin) / whole
        if share < NAMELESS:
            continue
        figure.add_annotation(
            x=(stretch.begin + stretch.end) / 2,
            y=1.0,
            yref="paper",
            yanchor="bottom",
            text=phase_label(stretch),
            textangle=-35 if share < NARROW else 0,
            xanchor="left" if share < NARROW else "center",
            showarrow=False,
            font={"size": 12, "color": INK},
        )


def _peak(figure: Any, timeline: Timeline, divisor: int) -> None:
    peak = timeline.peak
    right_half = peak.position > (timeline.stretches[0].begin + timeline.stretches[-1].end) / 2
    figure.add_annotation(
        x=peak.position,
        y=peak.allocated_bytes / divisor,
        text=peak_label(peak).replace("\n", "<br>"),
        align="left",
        ax=-70 if right_half else 70,
        ay=-44,
        xanchor="right" if right_half else "left",
        arrowhead=6,
        arrowcolor=INK,
        bgcolor="rgba(255,255,255,0.92)",
        bordercolor=FAINT,
        borderpad=5,
        font={"size": 12, "color": INK},
    )


def _layout(figure: Any, timeline: Timeline, unit: str) -> None:
    _, divisor = byte_unit(timeline.peak.allocated_bytes)
    figure.update_layout(
        title={"text": timeline.title, "x": 0.02, "font": {"size": 18, "color": INK}},
        template="plotly_white",
        hovermode="x unified",
        legend={"traceorder": "reversed"},
        margin={"l": 70, "r": 20, "t": 110, "b": 60},
    )
    figure.update_xaxes(
        title="seconds (recorded run)" if timeline.axis == "seconds" else "allocations and releases",
        range=[timeline.stretches[0].begin, timeline.stretches[-1].end],
        showgrid=False,
    )
    figure.update_yaxes(
        title=f"allocated memory, {unit}", range=[0, 1.22 * timeline.peak.allocated_bytes / divisor]
    )
