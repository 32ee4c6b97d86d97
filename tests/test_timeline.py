"""Timelines: the data type, and each kind of file, opened and looked at."""

from __future__ import annotations

import csv
import importlib
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from mem_gpt_cli.errors import MissingExtraError, UsageError
from mem_gpt_cli.ledger.timeline import timeline_of
from mem_gpt_cli.model import resolve
from mem_gpt_cli.profile import profile
from mem_gpt_cli.report import COMPONENTS, MemoryReport
from mem_gpt_cli.report.palette import COLORS, STACK
from mem_gpt_cli.report.timeline import (
    Peak,
    Stretch,
    Timeline,
    check,
    envelope,
    merged,
    named,
    thinned,
    write,
)
from mem_gpt_cli.trace.run import fake_run
from mem_gpt_cli.workload.build import build_on_meta
from tests.profiled import GPT2, LLAMA, small_recipe

WEIGHTS, ACTIVATIONS = COMPONENTS.index("weights"), COMPONENTS.index("activations")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def saw(events: int = 4000, spike: int = 2345) -> Timeline:
    """Weights and a zigzag of activations with one narrow spike."""
    held = np.zeros((events, len(COMPONENTS)), dtype=np.int64)
    held[:, WEIGHTS] = 10 * 2**20
    held[:, ACTIVATIONS] = (np.arange(events) % 7) * 2**18
    held[spike, ACTIVATIONS] = 30 * 2**20
    position = np.linspace(0.0, 2.0, events)
    return Timeline(
        title="a saw",
        axis="seconds",
        position=position,
        by_component=held,
        stretches=(Stretch("load", 0.0, 0.5), Stretch("prefill", 0.5, 1.5), Stretch("decode", 1.5, 2.0, 8)),
        peak=Peak(float(position[spike]), 40 * 2**20, "prefill", "aten.mm", "h.0.mlp"),
    )


def test_thinning_loses_neither_the_peak_nor_the_ends() -> None:
    whole = saw()
    thin = thinned(whole, 50)
    assert len(thin.position) <= 200
    assert thin.allocated.max() == whole.allocated.max() == whole.peak.allocated_bytes
    assert thin.allocated.min() == whole.allocated.min()
    assert thin.position[0] == whole.position[0]
    assert thin.position[-1] == whole.position[-1]
    assert whole.peak.position in thin.position
    assert (np.diff(thin.position) > 0).all()
    kept = np.searchsorted(whole.position, thin.position)
    assert (whole.by_component[kept] == thin.by_component).all()


def test_the_envelope_shows_each_bucket_at_its_highest_and_ends_it_as_it_was() -> None:
    whole = saw()
    edge = envelope(whole, 100)
    assert len(edge.position) == 200
    assert (np.diff(edge.position) >= 0).all()
    assert edge.allocated.max() == whole.peak.allocated_bytes
    highest, last = edge.allocated[::2], edge.allocated[1::2]
    assert (highest >= 11.5 * 2**20).all(), "each bucket of 40 events has seen the top of the saw"
    at = np.searchsorted(whole.position, edge.position[1::2])
    assert (last == whole.allocated[at]).all()


def test_a_short_timeline_is_left_as_it_is() -> None:
    whole = saw(events=100, spike=50)
    assert thinned(whole, 25) is whole


def test_equal_neighbours_become_one_stretch() -> None:
    steps = [
        Stretch("prefill", 0, 1),
        *(Stretch("decode", at, at + 1) for at in range(1, 4)),
        Stretch("load", 4, 5),
    ]
    assert merged(steps) == (Stretch("prefill", 0, 1), Stretch("decode", 1, 4, 3), Stretch("load", 4, 5))


@pytest.mark.parametrize(("end", "slanted"), [(0.3, False), (0.05, True)])
def test_names_are_slanted_together_and_left_out_where_nothing_fits(end: float, slanted: bool) -> None:
    load, backward = Stretch("load", 0.0, 0.7 - end), Stretch("backward", 0.7 - end, 0.7)
    step, rest = Stretch("optimizer_step", 0.7, 0.99), Stretch("forward", 0.99, 1.0)
    assert named((load, backward, step, rest)) == ([load, backward, step], slanted)


def test_every_component_has_a_color_of_its_own() -> None:
    assert sorted(STACK) == sorted(COMPONENTS)
    assert len(set(COLORS.values())) == len(COMPONENTS)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[MemoryReport, list[dict[str, str]]]:
    path = tmp_path_factory.mktemp("timeline") / "training.csv"
    report = profile(small_recipe(GPT2, "training"), passes="memory", timeline=path)
    return report, read_csv(path)


def test_the_csv_holds_the_peak_of_the_report(measured: tuple[MemoryReport, list[dict[str, str]]]) -> None:
    report, rows = measured
    assert max(int(row["allocated_bytes"]) for row in rows) == report.allocated_bytes
    for phase in report.phases:
        inside = [row for row in rows if row["phase"] == phase.name]
        highest = max(inside, key=lambda row: int(row["allocated_bytes"]))
        assert int(highest["allocated_bytes"]) == phase.peak_allocated_bytes
        assert {name: int(highest[f"{name}_bytes"]) for name in COMPONENTS} == dict(phase.components)


def test_the_csv_adds_up_and_runs_forward(measured: tuple[MemoryReport, list[dict[str, str]]]) -> None:
    _, rows = measured
    assert len(rows) > 500
    for row in rows:
        assert int(row["allocated_bytes"]) == sum(int(row[f"{name}_bytes"]) for name in COMPONENTS)
        assert all(int(row[f"{name}_bytes"]) >= 0 for name in COMPONENTS)
    times = [float(row["position"]) for row in rows]
    assert times == sorted(times)
    order = list(dict.fromkeys(row["phase"] for row in rows))
    assert order == ["load", "forward", "backward", "optimizer_step"]
    assert rows[-1]["phase"] == "optimizer_step"


def test_a_trace_is_drawn_over_its_events(tmp_path: Path) -> None:
    recipe = small_recipe(LLAMA, "inference")
    source = resolve(recipe.model)
    log = fake_run(build_on_meta(source, recipe), source, recipe, every_step=True).log
    timeline = timeline_of(log.curves(), "a trace")
    assert timeline.axis == "events"
    assert [(stretch.phase, stretch.steps) for stretch in timeline.stretches] == [
        ("load", 1),
        ("prefill", 1),
        ("decode", 4),
    ]
    assert timeline.peak.allocated_bytes == timeline.allocated.max()
    write(timeline, tmp_path / "trace.csv")
    rows = read_csv(tmp_path / "trace.csv")
    assert [int(row["position"]) for row in rows] == list(range(len(timeline.position)))
    assert max(int(row["allocated_bytes"]) for row in rows) == timeline.peak.allocated_bytes


def test_the_png_is_a_picture_with_every_color(tmp_path: Path) -> None:
    from matplotlib.image import imread

    write(saw(), tmp_path / "saw.png")
    assert (tmp_path / "saw.png").read_bytes().startswith(PNG_SIGNATURE)
    pixels = (imread(tmp_path / "saw.png")[:, :, :3] * 255).round().astype(int)
    for name in ("weights", "activations"):
        color = [int(COLORS[name][at : at + 2], 16) for at in (1, 3, 5)]
        assert (pixels == color).all(axis=2).sum() > 10_000, name


def test_the_svg_names_phases_peak_and_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")
    write(saw(), tmp_path / "saw.svg")
    text = " ".join(ElementTree.parse(tmp_path / "saw.svg").getroot().itertext())
    for word in ("load", "prefill", "decode × 8", "peak 40.0 MiB", "aten.mm", "h.0.mlp", "weights", "MiB"):
        assert word in text


def test_a_picture_needs_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    for suffix, package in ((".png", "matplotlib"), (".svg", "matplotlib"), (".html", "plotly")):
        with pytest.raises(MissingExtraError, match=rf"{package}.*\[plot\]"):
            check(tmp_path / f"x{suffix}")
    check(tmp_path / "x.csv")


@pytest.mark.parametrize("name", ["x.pdf", "x", "no_such_folder/x.png"])
def test_a_path_that_cannot_be_drawn_is_refused_before_the_run(tmp_path: Path, name: str) -> None:
    steps: list[str] = []
    with pytest.raises(UsageError, match="--timeline"):
        profile(
            small_recipe(GPT2, "inference"),
            timeline=tmp_path / name,
            progress=lambda *step: steps.append(step[0]),
        )
    assert steps == []


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    write(saw(), tmp_path / "saw.html")
    page = (tmp_path / "saw.html").read_text()
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']https?:", page)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    assert CHROMIUM is not None
    write(saw(), tmp_path / "saw.html")
    common = (CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync")
    profile_folder = f"--user-data-dir={tmp_path / 'browser'}"
    done = subprocess.run(
        [
            *common,
            *quiet,
            profile_folder,
            "--virtual-time-budget=10000",
            "--dump-dom",
            (tmp_path / "saw.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    drawn = re.findall(r'<g class="trace scatter[^"]*"', done.stdout)
    assert len(drawn) >= 3, "weights, activations and their sum"
    filled = re.findall(r'class="js-fill"[^>]*?fill: (rgb\([^)]*\))', done.stdout)
    assert {"rgb(0, 114, 178)", "rgb(86, 180, 233)"} <= set(filled)
    for word in ("prefill", "decode × 8", "peak 40.0 MiB", "weights", "activations"):
        assert word in done.stdout
