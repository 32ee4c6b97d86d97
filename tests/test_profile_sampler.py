"""The sampler on gauges whose answers are known."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import pytest

from mem_gpt_cli.devices.nvml import GpuLostError, Reading
from mem_gpt_cli.profile.sampler import Figure, Gauge, Sampler

NEVER = 3600.0
"""An interval in which a test sees the first tick alone."""


def answers(*values: int | None) -> Gauge:
    """A gauge that gives these values, then the last one for good."""
    turns = itertools.chain(values, itertools.repeat(values[-1]))
    return lambda: Reading(value := next(turns), "a test", None if value is not None else "not told")


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.001)


def test_the_highest_reading_is_kept_and_none_are_added_up() -> None:
    with Sampler({"device": answers(3, 9, 4)}, 0.001) as sampler:
        until(lambda: sampler.ticks > 5)
    figure = sampler.figures["device"]
    assert figure.highest == 9
    assert figure.count == sampler.ticks


def test_a_stretch_has_its_own_highest_reading() -> None:
    with Sampler({"device": answers(5, 7, 2), "power": answers(1)}, NEVER) as sampler:
        until(lambda: sampler.figures["power"].count == 1)
        found = []
        for _ in range(2):
            sampler.begin()
            found.append(sampler.end(["device"]))
    assert [stretch["device"].highest for stretch in found] == [7, 2]
    assert [stretch["power"].highest for stretch in found] == [None, None], "read at ticks alone"
    assert sampler.figures["device"].highest == 7


def test_what_is_read_between_two_stretches_belongs_to_neither() -> None:
    with Sampler({"device": answers(1)}, 0.001) as sampler:
        sampler.begin()
        first = sampler.end(["device"])["device"]
        count = first.count
        ticks = sampler.ticks
        until(lambda: sampler.ticks > ticks + 3)
    assert first.count <= count + 1  # a tick may have begun in the stretch
    assert sampler.figures["device"].count > count + 2


def test_a_mean_is_of_the_readings_that_there_are() -> None:
    figure = Figure()
    for value in (100, None, 300):
        figure.note(Reading(value, "a test", None if value else "not told"))
    assert (figure.mean, figure.highest, figure.count) == (200, 300, 2)
    assert figure.last == Reading(300, "a test")


def test_what_was_never_told_says_why() -> None:
    with Sampler({"power": answers(None)}, 0.001) as sampler:
        until(lambda: sampler.ticks > 2)
    figure = sampler.figures["power"]
    assert (figure.highest, figure.mean, figure.count) == (None, None, 0)
    assert figure.last is not None
    assert figure.last.why_not == "not told"


def test_a_lost_gpu_stops_it_and_keeps_what_it_has() -> None:
    turns = itertools.count()

    def read() -> Reading:
        if next(turns) == 3:
            raise GpuLostError("the GPU is lost")
        return Reading(6, "a test")

    with Sampler({"device": read}, 0.001) as sampler:
        until(lambda: sampler.lost is not None)
        sampler.begin()
        assert sampler.end(["device"])["device"].highest is None, "nobody is asked any more"
    assert sampler.lost == "the GPU is lost"
    assert (sampler.figures["device"].highest, sampler.figures["device"].count) == (6, 3)
    assert next(turns) == 4


def test_a_bug_in_a_gauge_is_raised_where_somebody_sees_it() -> None:
    def broken() -> Reading:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Sampler({"device": broken}, 0.001):
        time.sleep(0.01)


def test_an_error_of_the_run_is_not_hidden_by_one_of_a_gauge() -> None:
    def broken() -> Reading:
        raise ZeroDivisionError

    def run() -> None:
        with Sampler({"device": broken}, 0.001):
            time.sleep(0.01)
            raise MemoryError

    with pytest.raises(MemoryError):
        run()


def test_it_sleeps_between_ticks_and_misses_those_that_a_slow_reading_took() -> None:
    def slow() -> Reading:
        time.sleep(0.013)
        return Reading(1, "a test")

    wall, cpu = time.perf_counter(), time.process_time()
    with Sampler({"device": slow}, 0.005) as sampler:
        until(lambda: sampler.ticks >= 12)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert sampler.interval_s is not None
    assert sampler.interval_s >= 0.013
    assert sampler.ticks <= wall / 0.013 + 1
    assert cpu < wall / 2


def test_fewer_than_two_ticks_have_no_interval() -> None:
    with Sampler({"device": answers(1)}, NEVER) as sampler:
        until(lambda: sampler.figures["device"].count > 0)
    assert (sampler.ticks, sampler.interval_s) == (1, None)
