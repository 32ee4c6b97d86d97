"""The JSON object: the contract that other programs parse."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from report_samples import inference, training

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.report import COMPONENTS, MemoryReport
from mem_gpt_cli.report.json import from_dict, to_dict, to_json

SAMPLES = [training(), inference(), replace(inference(), warnings=(), speed=None, cause=None)]


def test_the_keys_are_those_of_the_contract_in_its_order() -> None:
    data = to_dict(training())
    contract = ["schema_version", "lens", "recipe", "model", "device", "task", "phases", "peak", "provenance"]
    assert list(data)[: len(contract) + 1] == [*contract, "warnings"]
    assert {"name", "architecture", "parameters"} <= set(data["model"])
    assert set(data["device"]) == {"type", "name", "total_bytes"}
    assert list(data["peak"]) == [
        "phase",
        "allocated_bytes",
        "reserved_bytes",
        "process_bytes",
        "device_bytes",
        "components",
    ]
    for phase in data["phases"]:
        named = {"name", "peak_allocated_bytes", "peak_operation", "duration_s", "components"}
        assert named <= set(phase)
        assert tuple(phase["components"]) == COMPONENTS


def test_the_peak_is_the_highest_phase_and_its_components_add_up() -> None:
    data = to_dict(training())
    assert data["peak"]["phase"] == "forward"
    assert data["peak"]["allocated_bytes"] == max(phase["peak_allocated_bytes"] for phase in data["phases"])
    assert sum(data["peak"]["components"].values()) == data["peak"]["allocated_bytes"]


def test_what_is_not_available_is_null_and_never_0() -> None:
    data = to_dict(training())
    assert data["device"]["total_bytes"] is None
    assert data["peak"]["reserved_bytes"] is data["peak"]["process_bytes"] is data["speed"] is None
    assert all(phase["duration_s"] is None for phase in data["phases"])


@pytest.mark.parametrize("report", SAMPLES)
def test_round_trip_through_text(report: MemoryReport) -> None:
    data = json.loads(to_json(report))
    assert data == to_dict(report)
    again = from_dict(data)
    assert to_dict(again) == data
    assert again == replace(report, details=data["details"])
    assert again.peak == report.peak


def test_bytes_stay_whole_numbers() -> None:
    numbers: list[Any] = []

    def walk(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                walk(item, name if name == "components" else key)
        elif isinstance(value, list):
            for item in value:
                walk(item, name)
        elif (name.endswith("_bytes") or name == "components") and value is not None:
            numbers.append(value)

    data = json.loads(to_json(inference()))
    walk({key: data[key] for key in ("phases", "peak", "device")}, "")
    assert len(numbers) > 30
    assert all(type(number) is int for number in numbers)


def test_unknown_keys_of_a_later_version_are_left_aside() -> None:
    data = to_dict(inference()) | {"later": 1}
    data["model"] = data["model"] | {"later": 2}
    assert to_dict(from_dict(data)) == to_dict(inference())


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"schema_version": 99}, "schema version"),
        ({"schema_version": None}, "schema version"),
        ({"peak": {}}, "reserved_bytes"),
        ({"phases": [{"name": "load", "peak_allocated_bytes": 1, "components": {}}]}, "add up to 0"),
        ({"model": {"name": "x"}}, "architecture"),
    ],
)
def test_what_is_no_report_is_refused_in_a_sentence(damage: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        from_dict(to_dict(inference()) | damage)
