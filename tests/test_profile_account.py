"""The arithmetic of the account, on events whose answer is known, and the allocator's record itself."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from mem_gpt_cli.ledger import allocator
from mem_gpt_cli.ledger.allocator import Allocation, AllocatorTrace, record_allocator
from mem_gpt_cli.profile.account import Sighting, TimedLog, account_of


def record(*events: tuple[int, int, int]) -> AllocatorTrace:
    return AllocatorTrace([Allocation(*event) for event in events])


class HandWritten(TimedLog):
    """A log whose clock stands where the test puts it."""

    def at(self, time_ns: int) -> None:
        self.operation_time_ns[-1] = time_ns


def log_of_two_phases() -> HandWritten:
    """Load from 0 (aten.empty over at 20), prefill from 100 (aten.mm over at 120, aten.add at 140)."""
    log = HandWritten()
    log.enter("load")
    log.at(0)
    log.operate("aten.empty", "")
    log.at(20)
    log.span_end_ns.append(90)
    log.enter("prefill")
    log.at(100)
    log.operate("aten.mm", "h.0")
    log.at(120)
    log.operate("aten.add", "h.1")
    log.at(140)
    log.span_end_ns.append(200)
    return log


def test_matched_storages_have_their_component_and_the_rest_is_workspace() -> None:
    log = log_of_two_phases()
    weights, product = log.storage(1000, "weights"), log.storage(300)
    trace = record(
        (10, 0xA, 1000),
        (110, 0xB, 70),  # the kernel's own
        (112, 0xC, 300),
        (115, 0xB, -70),
        (180, 0xC, -300),
    )
    account = account_of(log, [Sighting(weights, 0xA, 20), Sighting(product, 0xC, 120)], trace)
    peaks = account.peaks()
    assert peaks["load"].allocated_bytes == 1000
    assert peaks["load"].components["weights"] == 1000
    assert peaks["prefill"].allocated_bytes == 1370
    assert peaks["prefill"].components["activations"] == 300
    assert peaks["prefill"].components["workspace"] == 70
    assert peaks["prefill"].operation.name == "aten.mm"
    assert account.inner == (("aten.mm", 70, 1),)
    assert account.foreign_bytes == 0


def test_an_address_used_twice_belongs_to_whoever_was_seen_there_last() -> None:
    log = log_of_two_phases()
    first, second = log.storage(64, "kv_cache"), log.storage(64, "logits")
    trace = record((105, 0xA, 64), (119, 0xA, -64), (130, 0xA, 64))
    account = account_of(log, [Sighting(first, 0xA, 118), Sighting(second, 0xA, 139)], trace)
    kv_cache = [account.moment(event).components["kv_cache"] for event in range(len(account.live))]
    logits = [account.moment(event).components["logits"] for event in range(len(account.live))]
    assert kv_cache == [0, 0, 64, 0, 0]  # two of the events are the beginnings of the spans
    assert logits == [0, 0, 0, 0, 64]


def test_a_phase_that_only_frees_has_the_peak_that_it_found() -> None:
    log = log_of_two_phases()
    weights = log.storage(500, "weights")
    account = account_of(log, [Sighting(weights, 0xA, 20)], record((10, 0xA, 500), (150, 0xA, -500)))
    assert account.peaks()["prefill"].allocated_bytes == 500


def test_what_is_cleared_away_after_the_run_is_no_part_of_it() -> None:
    log = log_of_two_phases()
    weights = log.storage(500, "weights")
    account = account_of(log, [Sighting(weights, 0xA, 20)], record((10, 0xA, 500), (250, 0xA, -500)))
    assert account.live[-1] == 500
    assert account.time_ns[-1] <= 200


def test_a_storage_that_the_allocator_never_gave_is_foreign() -> None:
    log = log_of_two_phases()
    mapped = log.storage(4096, "weights")
    log.birth(mapped)
    account = account_of(log, [Sighting(mapped, 0xF, 20)], record((10, 0xA, 500)))
    assert account.foreign_bytes == 4096
    assert account.live[-1] == 500


def test_the_record_sees_each_byte_and_only_its_own() -> None:
    before = torch.empty(10_007, dtype=torch.uint8)
    with record_allocator() as trace:
        begin = time.time_ns()
        block = torch.empty(12_345, dtype=torch.uint8)
        address = block.data_ptr()
        end = time.time_ns()
        del before
        del block
    assert [event[1:] for event in trace.events] == [(address, 12_345), (address, -12_345)]
    assert begin <= trace.events[0].time_ns <= end <= trace.events[1].time_ns


def test_the_record_sees_inside_kernels() -> None:
    query = torch.randn(1, 4, 256, 32)
    with record_allocator() as trace:
        result = torch.nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)
        seen = result.untyped_storage().nbytes() + 4 * 256 * 4  # and the sums that backward needs
        del result
    assert sum(event.nbytes for event in trace.events if event.nbytes > 0) > seen
    assert sum(event.nbytes for event in trace.events) == 0


@pytest.mark.parametrize("lag", [0, 5_000_000, -3_000_000_000])
def test_a_profiler_with_a_clock_of_its_own_is_put_right(lag: int) -> None:
    size = allocator._BEACON_BYTES
    raw = [
        Allocation(1_000 - lag, 0xA, size),
        Allocation(1_100 - lag, 0xA, -size),
        Allocation(5_000 - lag, 0xB, 64),
        Allocation(9_000 - lag, 0xC, size),
        Allocation(9_100 - lag, 0xC, -size),
    ]
    beacons = [allocator._Beacon(0xA, 990, 1_010), allocator._Beacon(0xC, 8_990, 9_010)]
    assert allocator._aligned(raw, beacons) == [Allocation(5_000, 0xB, 64)]


def test_a_drifting_clock_is_put_right_in_between() -> None:
    size = allocator._BEACON_BYTES
    raw = [
        Allocation(10_000, 0xA, size),
        Allocation(10_100, 0xA, -size),
        Allocation(60_000, 0xB, 64),
        Allocation(110_000, 0xC, size),
        Allocation(110_100, 0xC, -size),
    ]
    beacons = [allocator._Beacon(0xA, 9_999, 10_001), allocator._Beacon(0xC, 120_999, 121_001)]
    (event,) = allocator._aligned(raw, beacons)
    assert event.time_ns == 65_500


def test_the_record_leaves_nothing_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with record_allocator():
        torch.empty(10)
    captured = capfd.readouterr()
    assert captured.err == ""
    assert captured.out == ""


def test_memory_map_is_not_the_allocators(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from mem_gpt_cli.model.safetensors_file import read_tensors

    tensors = {"a": torch.arange(1000, dtype=torch.float32), "b": torch.ones(3, 5, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "x.safetensors")
    with record_allocator() as trace:
        found = dict(read_tensors(tmp_path / "x.safetensors"))
    assert trace.events == []
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert found["b"].dtype == torch.bfloat16
