"""What the tools print: times, tables, amounts, measures, progress."""

from __future__ import annotations

import io
import time

import pytest

from flame.cli.measures import benchmark_lines, duration_text, percentile
from flame.cli.memory import human_memory
from flame.cli.output import bytes_document, page, table
from flame.cli.progress import Progress, StatusLine, bar
from flame.cli.times import local_time, span, stopwatch, utc_time

START = 1_770_000_000_123


def test_times_carry_their_date_and_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert local_time(START) == "2026-02-02T08:10:00+05:30"
    finally:
        monkeypatch.undo()
        time.tzset()
    assert utc_time(START) == "2026-02-02T02:40:00.123Z"
    assert (local_time(0), utc_time(0)) == ("-", None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (0.9, "0s"), (59, "59s"), (192, "3m12s"), (18120, "5h02m"), (2 * 86400 + 7 * 3600, "2d07h")],
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0004, "0 ms"), (0.153, "153 ms"), (0.9996, "1.00 s"), (3.288, "3.29 s"), (312, "5m12s")]
)
def test_stopwatch(seconds: float, text: str) -> None:
    assert stopwatch(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0B"), (1023, "1023B"), (1024, "1Ki"), (1536, "1.5Ki"), (15 * 1024**3, "15Gi"), (200 * 1024**2 + 5, "200Mi")],
)
def test_memory(size: int, text: str) -> None:
    assert human_memory(size) == text


def test_tables_have_one_blank_before_and_two_between() -> None:
    assert table(["ID", "State"], [["long-id", "x"], ["y", ""]]) == [" ID       State", " long-id  x", " y"]
    assert table(["ID", "State"], []) == [" ID  State"]


def test_pages_align_and_continue() -> None:
    assert page([("Name", "a"), ("Long Label", "b\nc"), ("None", None)]) == [
        "Name:        a",
        "Long Label:  b",
        "             c",
        "None:        -",
    ]


def test_bytes_for_programs() -> None:
    assert bytes_document(None) is None
    assert bytes_document(b"") == {"base64": "", "text": ""}
    assert bytes_document("é".encode()) == {"base64": "w6k=", "text": "é"}
    assert bytes_document(b"\xff") == {"base64": "/w=="}


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)) == (50.0, 99.0, 100.0)
    assert percentile([7.0], 0.99) == 7.0
    assert percentile([], 0.5) == 0.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.000085, "85 us"), (0.00153, "1.53 ms"), (0.0124, "12.4 ms"), (0.2, "200 ms"), (2.1, "2.10 s")],
)
def test_latencies_have_three_figures(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_the_benchmark_block() -> None:
    assert benchmark_lines(30000, 3, 3.288, [0.001, 0.002]) == [
        "",
        "=" * 60,
        "BENCHMARK RESULTS",
        "=" * 60,
        "Duration:        3.29s",
        "Succeeded:       29997/30000",
        "Failed:          3",
        "Throughput:      9123.18 tasks/sec",
        "Latency:         p50 1.00 ms, p99 2.00 ms",
        "=" * 60,
    ]


def test_a_bar_says_how_far_and_how_long() -> None:
    assert bar(15_000, 30_000, 2.0) == "[###############...............] 15,000/30,000 7,500 tasks/s, 2s left"
    assert bar(0, 10, 0.0) == "[..............................] 0/10 0 tasks/s"
    assert bar(10, 10, 2.0).endswith("10/10 5 tasks/s")


class Terminal(io.StringIO):
    """Text that goes to a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_status_line_is_written_over_and_goes_at_the_end() -> None:
    stream = Terminal()
    with StatusLine(stream) as line:
        line.show("two left")
        line.show("one left")
    assert stream.getvalue() == "\rtwo left\x1b[K\rone left\x1b[K\r\x1b[K"


def test_no_status_line_where_there_is_no_terminal_or_nothing_to_say() -> None:
    plain, silent = io.StringIO(), Terminal()
    with StatusLine(plain) as line:
        line.show("two left")
    with StatusLine(silent):
        pass
    assert (plain.getvalue(), silent.getvalue()) == ("", "")


def test_no_bar_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with Progress(10, lambda: 5, stream):
        pass
    assert stream.getvalue() == ""
