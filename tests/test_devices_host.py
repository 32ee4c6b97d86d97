"""How much memory this machine has left: the system's word, and the container's where that is less."""

from __future__ import annotations

from pathlib import Path

import pytest

from mem_gpt_cli.devices import host


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(host, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host, "_CGROUP", tmp_path)
    return tmp_path


def test_the_lesser_counts_and_files_that_were_read_give_way(told: Path) -> None:
    assert host.host_bytes_left() is None
    (told / "meminfo").write_text("MemTotal:  9000 kB\nMemAvailable:  4000 kB\nHugePages_Total:  0\n")
    assert host.host_bytes_left() == 4000 * 1024
    (told / "memory.max").write_text("3000\n")
    (told / "memory.current").write_text("2500\n")
    (told / "memory.stat").write_text("anon 1500\ninactive_file 700\n")
    assert host.host_bytes_left() == 1200
    (told / "memory.max").write_text("max\n")
    assert host.host_bytes_left() == 4000 * 1024


def test_this_machine_tells() -> None:
    assert (host.host_bytes_left() or 0) > 0
