"""The ladder: what each step adds, what is missing and why, in 80 columns."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from report_samples import GIB, MIB, inference, training
from rich.console import Console

from mem_gpt_cli.report import DeviceSummary, MemoryReport, Source, Telemetry, table
from mem_gpt_cli.report.json import from_dict, to_dict
from mem_gpt_cli.report.ladder import ladder

H100 = DeviceSummary("cuda", "NVIDIA H100 80GB HBM3", 80 * GIB)


def on_gpu(report: MemoryReport, *above: int | None, **more: object) -> MemoryReport:
    """A report of a GPU whose ladder is that many bytes above what is allocated."""
    names = ("reserved_bytes", "process_bytes", "device_bytes")
    counts = {
        name: None if more_bytes is None else report.allocated_bytes + more_bytes
        for name, more_bytes in zip(names, above, strict=True)
    }
    return replace(report, device=H100, **counts, **more)  # type: ignore[arg-type]


def measured(*above: int | None, **more: object) -> MemoryReport:
    sources = {"allocated_bytes": Source("counted"), "reserved_bytes": Source("counted")}
    return on_gpu(inference("profile"), *above, **({"sources": sources} | more))


def render(report: MemoryReport) -> str:
    console = Console(file=io.StringIO(), width=80, height=25, highlight=False)
    console.print(table.summary(report))
    console.print(table.places(report))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_each_step_is_above_the_one_before() -> None:
    steps = ladder(measured(MIB, 500 * MIB, 900 * MIB))
    assert [step.name for step in steps] == ["allocated", "reserved", "process", "device"]
    assert [step.above for step in steps] == [None, "allocated", "reserved", "process"]
    assert [step.difference_bytes for step in steps] == [None, MIB, 499 * MIB, 400 * MIB]


def test_a_missing_step_is_skipped_and_says_why() -> None:
    why = "NVML lists no process on this GPU, as in most containers"
    sources = {"process_bytes": Source("NVML, list of the processes", why), "device_bytes": Source("NVML")}
    report = measured(MIB, None, 900 * MIB, sources=sources)
    process, device = ladder(report)[2:]
    assert (process.bytes, process.difference_bytes, process.above, process.why_not) == (
        None,
        None,
        None,
        why,
    )
    assert (device.above, device.difference_bytes) == ("reserved", 899 * MIB)
    text = " ".join(render(report).split())
    assert "process not available: NVML lists no process on this GPU, as in most containers" in text
    assert " 0 B" not in text


def test_nothing_above_is_no_difference_and_not_missing() -> None:
    reserved = ladder(measured(0, None, None))[1]
    assert (reserved.difference_bytes, reserved.why_not) == (0, None)


def test_a_measured_figure_without_a_source_is_said_to_be_unmeasured() -> None:
    steps = ladder(measured(MIB, None, None, sources={}))
    assert [step.why_not for step in steps[2:]] == ["it was not measured"] * 2


def test_a_calibration_without_an_idle_figure_is_not_denied() -> None:
    report = on_gpu(
        training("trace"),
        *(GIB, 2 * GIB, None),
        provenance={
            "peak_allocated_bytes": "traced",
            "reserved_bytes": "traced",
            "process_bytes": "calibrated",
            "device_bytes": "unavailable",
        },
    )
    process, device = ladder(report)[2:]
    assert "calibrated" in process.how
    assert device.why_not == "the calibration could not tell what an idle device uses"
    assert "no calibration" not in render(report)


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_dry_run_says_traced_and_calibrated(calibrated: bool) -> None:
    told = "calibrated" if calibrated else "unavailable"
    report = on_gpu(
        training("trace"),
        *((GIB, 2 * GIB, 3 * GIB) if calibrated else (GIB, None, None)),
        provenance={
            "peak_allocated_bytes": "traced",
            "reserved_bytes": "traced",
            "process_bytes": told,
            "device_bytes": told,
        },
    )
    allocated, reserved, process, device = ladder(report)
    assert allocated.how.startswith("traced")
    assert "replayed" in reserved.how
    for step in (process, device):
        assert ("calibrated" in step.how) is calibrated
        assert ("memgpt doctor --calibrate" in str(step.why_not)) is not calibrated


def test_80_columns_cut_nothing() -> None:
    everything = measured(
        1023 * GIB,
        1500 * GIB,
        2000 * GIB,
        telemetry=Telemetry(312.4, 698.7, 93.2, 71, 10.2, 512),
        sources={
            "device_bytes": Source(
                "NVML, version 1 of the memory call, which counts the driver's own reserve"
            )
        },
    )
    lines = render(everything).splitlines()
    assert all(len(line) <= 80 and "…" not in line for line in lines)
    assert "312 W on average, 699 W at most, 93% busy, 71 °C at most" in lines
    assert any(line.startswith("device: adds other processes") for line in lines)
    assert not any("→" in line for line in lines)


def test_on_cpu_and_for_a_formula_it_stays_one_line() -> None:
    assert "allocated 56.8 MiB → process 460 MiB" in render(inference("profile"))
    formula = replace(on_gpu(training("estimate"), GIB, None, None), device=H100)
    assert "nvidia-smi" not in render(formula)
    assert to_dict(formula)["ladder"] is None


def test_json_holds_the_ladder_and_its_sources() -> None:
    report = measured(MIB, 500 * MIB, 900 * MIB, telemetry=Telemetry(power_max_w=300.0, samples=3))
    data = to_dict(report)
    assert data["ladder"][2] == {
        "name": "process",
        "bytes": report.process_bytes,
        "above": "reserved",
        "difference_bytes": 499 * MIB,
        "how": "measured",
        "why_not": None,
        "explanation": ladder(report)[2].explanation,
    }
    assert data["telemetry"]["power_max_w"] == 300.0
    assert data["telemetry"]["power_mean_w"] is None
    assert to_dict(from_dict(data)) == data
    assert from_dict(data).sources == report.sources
