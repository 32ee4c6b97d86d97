"""The CSV: whole rows whatever happens to the writers."""

from __future__ import annotations

import csv
import multiprocessing
from pathlib import Path

import pytest
from report_samples import inference, training

from mem_gpt_cli.errors import UsageError
from mem_gpt_cli.report.csv import REPORT_COLUMNS, append_row, read_rows, report_row

COLUMNS = ("schema_version", "name", "peak_bytes")


def test_the_header_is_written_once_and_begins_with_the_schema_version(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "rows.csv"
    append_row(path, COLUMNS, {"schema_version": 1, "name": "a", "peak_bytes": 5})
    append_row(path, COLUMNS, {"schema_version": 1, "name": "b"})
    assert path.read_text() == "schema_version,name,peak_bytes\n1,a,5\n1,b,\n"
    assert REPORT_COLUMNS[0] == "schema_version"
    assert len(set(REPORT_COLUMNS)) == len(REPORT_COLUMNS)


def test_columns_of_the_first_version_keep_their_places() -> None:
    """Others read this file by these names; a new column goes behind them."""
    names = """
        schema_version lens status model architecture parameters task dtype autocast quantization attention
        kv_cache checkpointing adapters optimizer loss batch seq prompt_tokens new_tokens device
        peak_phase peak_operation peak_allocated_bytes reserved_bytes process_bytes device_bytes
        peak_weights_bytes peak_kv_cache_bytes peak_activations_bytes peak_logits_bytes peak_gradients_bytes
        peak_optimizer_state_bytes peak_adapters_bytes peak_workspace_bytes
        load_allocated_bytes prefill_allocated_bytes decode_allocated_bytes forward_allocated_bytes
        backward_allocated_bytes optimizer_step_allocated_bytes
        load_s prefill_s decode_s forward_s backward_s optimizer_step_s
        tokens_per_s ttft_ms decode_ms_per_token step_s device_name
    """
    first = names.split()
    assert list(REPORT_COLUMNS[: len(first)]) == first


def test_rows_of_reports(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for report in (training(), inference()):
        append_row(path, REPORT_COLUMNS, report_row(report))
    first, second = read_rows(path)
    assert first["peak_phase"] == "forward"
    assert int(first["peak_allocated_bytes"]) == training().allocated_bytes
    assert first["reserved_bytes"] == first["ttft_ms"] == first["decode_allocated_bytes"] == ""
    assert first["peak_gradients_bytes"] == "0"
    assert first["peak_adapters_bytes"] == "", "a component that the lens cannot see is no 0"
    assert second["ttft_ms"] == "1500.0"
    assert second["prompt_tokens"] == "4064"
    assert (first["device"], second["device"]) == ("cpu", "cpu"), "the recipe's, for every lens"
    assert (first["device_name"], second["device_name"]) == ("cpu", "AMD EPYC")
    assert int(second["decode_allocated_bytes"]) == inference().phases[2].peak_allocated_bytes


def test_a_torn_last_line_is_taken_away_before_the_next_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("schema_version,name,peak_bytes\n1,a,5\n1,bro")
    assert [row["name"] for row in read_rows(path)] == ["a"]
    append_row(path, COLUMNS, {"schema_version": 1, "name": "c", "peak_bytes": 7})
    assert path.read_text() == "schema_version,name,peak_bytes\n1,a,5\n1,c,7\n"


@pytest.mark.parametrize("left", ["", "schema_ver", "schema_version,name,peak_bytes"])
def test_a_torn_header_is_written_anew(tmp_path: Path, left: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(left)
    append_row(path, COLUMNS, {"name": "a"})
    assert path.read_text() == "schema_version,name,peak_bytes\n,a,\n"


def test_a_torn_line_longer_than_a_block_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("schema_version,name,peak_bytes\n" + "x" * 200_000)
    append_row(path, COLUMNS, {"name": "a"})
    assert path.read_text() == "schema_version,name,peak_bytes\n,a,\n"


@pytest.mark.parametrize(
    "text", ["other,columns\n1,2\n", "schema_version,name\n1,a\n", "some notes without an end"]
)
def test_a_file_with_other_columns_is_refused_and_left_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(UsageError, match="other columns"):
        append_row(path, COLUMNS, {"name": "a"})
    assert path.read_text() == text


def test_a_folder_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="directory"):
        append_row(tmp_path, COLUMNS, {"name": "a"})


def test_a_value_that_is_no_column_is_a_mistake_of_the_program(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="typo"):
        append_row(tmp_path / "rows.csv", COLUMNS, {"typo": 1})


def test_values_keep_their_meaning_and_a_row_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    append_row(
        path, ("a", "b", "c", "d"), {"a": 'say "hi", twice', "b": "two\nlines\r", "c": True, "d": {"k": [1]}}
    )
    assert path.read_bytes().count(b"\n") == 2
    assert read_rows(path) == [{"a": 'say "hi", twice', "b": "two lines", "c": "true", "d": '{"k": [1]}'}]


def _write_many(path: Path, writer: int, count: int) -> None:
    for number in range(count):
        append_row(path, COLUMNS, {"schema_version": 1, "name": f"{writer}" * 500, "peak_bytes": number})


def test_writers_at_once_lose_and_mix_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_write_many, args=(path, writer, 40)) for writer in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    seen = {(row["name"], int(row["peak_bytes"])) for row in rows}
    assert len(rows) == 160
    assert seen == {(f"{writer}" * 500, number) for writer in range(4) for number in range(40)}
