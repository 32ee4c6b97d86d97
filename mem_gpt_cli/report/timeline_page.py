"""A timeline as one self-contained HTML page, drawn by plotly: hover, zoom, components to switch off."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from mem_gpt_cli.report.palette import COLORS
from mem_gpt_cli.report.sizes import render_bytes
from mem_gpt_cli.report.timeline import Panel, Timeline, named, panels, peak_label, phase_label, thinned
from mem_gpt_cli.report.timeline_picture import FAINT, INK

BUCKETS = 2000
STYLE = "<style>html, body, body > div { height: 100%; margin: 0; overflow: hidden }</style>"


def write_page(timeline: Timeline, path: Path) -> None:
    """Write a page that needs no network.

    Raises:
        OSError: where the path cannot be written.
    """
    page = _figure(timeline).to_html(
        include_plotlyjs=True,
        full_html=True,
        default_height="100%",
        config={"displaylogo": False, "responsive": True, "scrollZoom": True},
    )
    title = html.escape(timeline.title)
    path.write_text(page.replace("<head>", f"<head><title>{title}</title>{STYLE}", 1), encoding="utf-8")


def _figure(timeline: Timeline) -> Any:
    from plotly.subplots import make_subplots

    parts = panels(timeline)
    figure = make_subplots(rows=len(parts), shared_xaxes=True, vertical_spacing=0.05)
    for row, panel in enumerate(parts, start=1):
        _areas(figure, panel, row, legend=row == len(parts))
        figure.update_yaxes(title=panel.title, range=[0, panel.top], row=row, col=1)
    _phases(figure, timeline)
    _name_peak(figure, parts[0])
    figure.update_layout(
        title={"text": timeline.title, "x": 0.02, "font": {"size": 18, "color": INK}},
        template="plotly_white",
        hovermode="x unified",
        legend={"traceorder": "reversed"},
        margin={"l": 70, "r": 20, "t": 110, "b": 60},
    )
    limits = [timeline.stretches[0].begin, timeline.stretches[-1].end]
    figure.update_xaxes(range=limits, showgrid=False)
    figure.update_xaxes(title=timeline.axis_title, row=len(parts), col=1)
    return figure


def _areas(figure: Any, panel: Panel, row: int, *, legend: bool) -> None:
    """One trace a component, and one for their sum; switching a component off does so in every panel."""
    import plotly.graph_objects as go

    shown = thinned(panel.timeline, BUCKETS)
    allocated = shown.allocated
    for name, held in shown.stacked():
        trace = go.Scatter(
            x=shown.position,
            y=held / panel.divisor,
            name=name.replace("_", " "),
            legendgroup=name,
            showlegend=legend,
            customdata=[render_bytes(count) for count in held.tolist()],
            hovertemplate="%{customdata}",
            stackgroup="memory",
            mode="lines",
            line={"width": 0, "shape": "hv", "color": COLORS[name]},
            fillcolor=COLORS[name],
        )
        figure.add_trace(trace, row=row, col=1)
    width = 0 if shown.restless else 1
    total = go.Scatter(
        x=shown.position,
        y=allocated / panel.divisor,
        name="sum",
        legendgroup="sum",
        showlegend=legend,
        customdata=[render_bytes(count) for count in allocated.tolist()],
        hovertemplate="<b>%{customdata}</b>",
        mode="lines",
        line={"width": width, "shape": "hv", "color": INK},
    )
    figure.add_trace(total, row=row, col=1)


def _phases(figure: Any, timeline: Timeline) -> None:
    for number, stretch in enumerate(timeline.stretches):
        if number % 2:
            figure.add_vrect(
                x0=stretch.begin, x1=stretch.end, fillcolor=INK, opacity=0.05, line_width=0, layer="below"
            )
        if number:
            figure.add_vline(x=stretch.begin, line={"width": 1, "dash": "dot", "color": FAINT})
    wide, slanted = named(timeline.stretches)
    for stretch in wide:
        figure.add_annotation(
            x=(stretch.begin + stretch.end) / 2,
            y=1.0,
            yref="paper",
            yanchor="bottom",
            text=phase_label(stretch),
            textangle=-35 if slanted else 0,
            xanchor="left" if slanted else "center",
            showarrow=False,
            font={"size": 12, "color": INK},
        )


def _name_peak(figure: Any, panel: Panel) -> None:
    figure.add_annotation(
        x=panel.peak_position,
        y=panel.peak_height,
        text=peak_label(panel.timeline.peak).replace("\n", "<br>"),
        align="left",
        ax=-70 if panel.peak_is_right else 70,
        ay=-34,
        xanchor="right" if panel.peak_is_right else "left",
        arrowhead=6,
        arrowcolor=INK,
        bgcolor="rgba(255,255,255,0.92)",
        bordercolor=FAINT,
        borderpad=5,
        font={"size": 12, "color": INK},
        row=1,
        col=1,
    )
