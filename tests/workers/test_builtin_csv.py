"""``csv_processing`` on real files: encodings, delimiters, hostile shapes, and Python's own statistics as the judge."""

from __future__ import annotations

import csv
import io
import math
import statistics
import time
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventq.events.errors import BlobDamaged, BlobNotFound, InvalidInput
from eventq.workers.builtin.column_statistics import DistinctCounter
from eventq.workers.builtin.csv_processing import csv_processing
from eventq.workers.builtin.csv_reading import COLUMNS_MAX, LINE_MAX_CHARS, RECORD_MAX_CHARS
from eventq.workers.context import Context, TaskCancelled
from tests.workers.support import RecordingHost, make_context

PEOPLE = "name;age;city\nJürgen;41;Köln\nZoë;29;Malmö\nŁukasz;;Łódź\n"


@pytest.fixture
def host() -> RecordingHost:
    return RecordingHost()


@pytest.fixture
def context(tmp_path: Path, host: RecordingHost) -> Context:
    return make_context(tmp_path, host, input_dirs=[tmp_path])


def column(result: dict[str, Any], name: str) -> dict[str, Any]:
    columns: list[dict[str, Any]] = result["columns"]
    (found,) = [column for column in columns if column["name"] == name]
    return found


def process(context: Context, text: str | bytes, **options: Any) -> dict[str, Any]:
    data = text.encode() if isinstance(text, str) else text
    return csv_processing(context, blob=context.blobs.put(data), **options)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_unicode_file_is_read_without_being_told_how(context: Context, encoding: str) -> None:
    result = process(context, (PEOPLE * 3).encode(encoding))

    assert result["delimiter"] == ";"
    assert column(result, "name")["max"] == "Łukasz"
    assert column(result, "age") | {"name": ""} == column(process(context, PEOPLE * 3), "age") | {"name": ""}


@pytest.mark.parametrize(
    ("encoding", "city"),
    [
        ("latin-1", "Malmö"),
        ("cp1252", "Köln"),
        ("cp1250", "Łódź"),
        ("cp1251", "Москва"),
        ("shift_jis", "東京都"),
        ("gb18030", "北京"),
    ],
)
def test_an_older_encoding_can_be_named(context: Context, encoding: str, city: str) -> None:
    result = process(context, f"city,n\n{city},1\n".encode(encoding), encoding=encoding)
    assert column(result, "city")["min"] == city


def test_an_8_bit_encoding_is_guessed_from_its_letters(context: Context) -> None:
    text = "Straße;Größe;Stück\n" + "Königsallee in Düsseldorf;groß und schön;für fünf Bäckereien\n" * 50
    result = process(context, text.encode("cp1252"))
    assert [found["name"] for found in result["columns"]] == ["Straße", "Größe", "Stück"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_usual_delimiters_are_found(context: Context, delimiter: str) -> None:
    rows = [["a", "b", "c"], ["1", 'say "hi", you; two', "x|y"], ["2", "", "z"]]
    target = io.StringIO()
    csv.writer(target, delimiter=delimiter).writerows(rows)
    result = process(context, target.getvalue())

    assert result["delimiter"] == delimiter
    assert result["total_rows"] == 2
    assert column(result, "b")["nulls"] == 1
    assert column(result, "b")["max"] == 'say "hi", you; two'


@pytest.mark.parametrize("delimiter", ["^", "\x1f", "é", " ", ":"])
def test_any_delimiter_can_be_given(context: Context, delimiter: str) -> None:
    result = process(context, f"a{delimiter}b\n1{delimiter}2\n", delimiter=delimiter)
    assert column(result, "b")["sum"] == 2


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_every_kind_of_line_end_is_one(context: Context, newline: str) -> None:
    result = process(context, newline.join(["a,b", "1,x", "", '2,"two\nlines"', "3,y"]))
    assert (result["total_rows"], column(result, "a")["sum"]) == (3, 6)


def test_quotes_may_mean_nothing(context: Context) -> None:
    result = process(context, 'a,b\n5" pipe,1\n"open,2\n', quote="")
    assert (result["total_rows"], column(result, "b")["sum"]) == (2, 3)


def test_types_and_nulls_are_told_apart(context: Context) -> None:
    result = process(context, "i,f,t,e,m,u\n1,1.5,x,,1,1_000\n-2,2e3,y,NaN,two,2\n3, 4 ,z,N/A,3,3\n")

    assert [(found["type"], found["count"], found["nulls"]) for found in result["columns"]] == [
        ("integer", 3, 0),
        ("number", 3, 0),
        ("text", 3, 0),
        ("empty", 0, 3),
        ("text", 3, 0),
        ("text", 3, 0),
    ]
    assert column(result, "i") == {
        "name": "i",
        "type": "integer",
        "count": 3,
        "nulls": 0,
        "distinct": 3,
        "distinct_exact": True,
        "min": -2,
        "max": 3,
        "sum": 2,
        "mean": pytest.approx(2 / 3),
        "stddev": pytest.approx(statistics.stdev([1, -2, 3])),
        "min_length": 1,
        "max_length": 2,
    }
    assert column(result, "m")["sum"] is None
    assert process(context, "a\nNA\nNaN\n", nulls=["-"])["columns"][0]["nulls"] == 0


def test_infinite_and_enormous_numbers_stay_json(context: Context) -> None:
    result = process(context, "inf,huge,edge,long\ninf,{0},1e308,{1}\n1,{0},1e308,{1}\n".format("9" * 400, "9" * 4999))
    assert column(result, "inf")["type"] == "text"
    assert column(result, "edge")["max"] == 1e308
    for found in result["columns"]:
        for value in found.values():
            assert not isinstance(value, float) or math.isfinite(value)
            assert not isinstance(value, int) or abs(value) < 2**63


def test_rows_of_another_width_are_counted(context: Context) -> None:
    result = process(context, "a,b\n1\n1,2\n1,2,3\n")
    assert (result["total_rows"], result["short_rows"], result["long_rows"]) == (3, 1, 1)
    assert (column(result, "b")["count"], column(result, "b")["nulls"]) == (2, 1)


@pytest.mark.parametrize(
    ("text", "rows", "names"), [("", 0, []), ("\n\n", 0, []), ("a,b\n", 0, ["a", "b"]), ("a,a\n1,2", 1, ["a", "a"])]
)
def test_a_small_table_is_a_table(context: Context, text: str, rows: int, names: list[str]) -> None:
    result = process(context, text)
    assert result["total_rows"] == rows
    assert [found["name"] for found in result["columns"]] == names


def test_a_table_without_a_header_gets_numbered_columns(context: Context) -> None:
    result = process(context, "1,x\n2,y\n", has_header=False)
    assert result["total_rows"] == 2
    assert column(result, "column_1")["sum"] == 3


def test_the_summary_is_of_the_column_asked_for(context: Context) -> None:
    text = "a,b,t\n1,10,x\n3,30,y\n"
    assert process(context, text)["statistics"] == {"column": "b", "sum": 40, "avg": 20, "min": 10, "max": 30}
    assert process(context, text, statistics_column="a")["statistics"]["sum"] == 4
    assert process(context, "t\nx\n")["statistics"] == dict.fromkeys(["column", "sum", "avg", "min", "max"])
    with pytest.raises(InvalidInput):
        process(context, text, statistics_column="nope")


def test_a_file_is_taken_by_path_too(context: Context, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a\n1\n")
    result = csv_processing(context, path="in.csv")
    assert (result["source"], result["size_bytes"], result["total_rows"]) == ("in.csv", 4, 1)


@pytest.mark.parametrize(
    ("data", "limit", "words"),
    [
        (b"a,b\n" + b"x" * (LINE_MAX_CHARS + 1), LINE_MAX_CHARS, "line 2: is longer than"),
        (b'a,b\n"' + b"never closed\n" * (RECORD_MAX_CHARS // 10), RECORD_MAX_CHARS, "belongs to a record"),
        (b'a,b\n1,"open', None, "not well-formed"),
        (b'a,b\n1,"x"y\n', None, "not well-formed"),
        (b"a" + b",a" * COLUMNS_MAX, COLUMNS_MAX, "columns"),
        (b"," * (LINE_MAX_CHARS - 1), COLUMNS_MAX, "columns"),
        (b"a,b\n1,\x002\n", None, "NUL"),
        (b"a,b\n" + b"1,2\n" * 100_000 + b"\xff\xfe,1\n", None, "is not utf-8"),
    ],
    ids=["long line", "long record", "open quote", "stray quote", "columns", "a million columns", "NUL", "late bad byte"],
)
def test_a_hostile_file_is_refused_with_the_limit_named(context: Context, data: bytes, limit: int | None, words: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        process(context, data, encoding="utf-8" if b"\0" in data else None)
    assert words in refused.value.detail
    assert refused.value.fields.get("limit") == limit


def test_a_line_without_end_is_given_up_early(context: Context, tmp_path: Path) -> None:
    with (tmp_path / "endless.csv").open("wb") as file:
        file.truncate(1024**3)  # a sparse gigabyte of NULs, no line end
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput):
            csv_processing(context, path="endless.csv", encoding="latin-1", delimiter=",")
        assert tracemalloc.get_traced_memory()[1] < 32 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_file(context: Context, tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        (tmp_path / "big.csv").write_text("id,text\n" + "".join(f"{n % 500},{'x' * 90}\n" for n in range(rows)))
        tracemalloc.start()
        try:
            assert csv_processing(context, path="big.csv")["total_rows"] == rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(60_000) < 1.2 * peak(15_000)


@pytest.mark.parametrize(
    "options",
    [
        {"encoding": "no-such"},
        {"encoding": "base64"},
        {"encoding": "idna"},
        {"encoding": "punycode"},
        {"delimiter": "\n"},
        {"delimiter": '"'},
        {"quote": "\r"},
    ],
)
def test_an_unusable_option_is_refused(context: Context, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as refused:
        process(context, "a,b\n1,2\n", **options)
    assert refused.value.field in options


@pytest.mark.parametrize("given", [{}, {"blob": "x", "path": "y"}, {"num_rows": 1, "url": "http://x/"}])
def test_exactly_one_input_is_required(context: Context, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        csv_processing(context, **given)


def test_a_missing_or_damaged_blob_gives_no_result(context: Context, tmp_path: Path) -> None:
    ref = context.blobs.put(PEOPLE.encode())
    (tmp_path / "blobs" / ref.key).write_bytes(PEOPLE.replace("41", "14").encode())
    with pytest.raises(BlobDamaged):
        csv_processing(context, blob=ref)
    context.blobs.delete(ref)
    with pytest.raises(BlobNotFound):
        csv_processing(context, blob=ref.key)


def test_generated_rows_have_the_documented_shape_and_repeat(context: Context, host: RecordingHost) -> None:
    result = csv_processing(context, num_rows=1000, seed=7)

    assert (result["total_rows"], result["processed_rows"]) == (1000, 1000)
    summary = result["statistics"]
    assert (summary["column"], summary["min"] >= 1, summary["max"] <= 1000) == ("value", True, True)
    assert summary["avg"] == pytest.approx(summary["sum"] / 1000)
    assert result == csv_processing(context, num_rows=1000, seed=7)
    assert result != csv_processing(context, num_rows=1000, seed=8)
    assert host.updates[-1].done == host.updates[-1].total == 1000


def test_generated_rows_are_spread_over_the_time_asked_for(context: Context, host: RecordingHost) -> None:
    began = time.monotonic()
    csv_processing(context, num_rows=500, processing_time=0.3)
    assert 0.3 <= time.monotonic() - began < 5
    done = [update.done for update in host.updates]
    assert len(done) == 100
    assert done == sorted(done)


def test_progress_counts_the_bytes_of_the_file(context: Context, host: RecordingHost) -> None:
    text = "a\n" + "12345\n" * 50_000
    process(context, text)
    assert host.updates[-1].done == host.updates[-1].total == len(text)
    assert host.updates[-1].unit == "bytes"
    assert len(host.updates) > 10


@pytest.mark.parametrize("options", [{"num_rows": 1_000_000, "processing_time": 600}, {"blob": True}])
def test_a_cancelled_task_stops_between_two_batches(tmp_path: Path, options: dict[str, Any]) -> None:
    host = RecordingHost(cancel_after=3)
    context = make_context(tmp_path, host)
    if "blob" in options:
        options = {"blob": context.blobs.put(b"a\n" + b"1\n" * 100_000)}
    with pytest.raises(TaskCancelled):
        csv_processing(context, **options)
    assert len(host.updates) == 3


finite = st.floats(-1e12, 1e12, allow_subnormal=False)
numbers = st.lists(st.one_of(st.integers(-(10**12), 10**12), finite), min_size=2, max_size=300)


@settings(deadline=None, max_examples=60)
@given(values=numbers)
def test_numbers_agree_with_the_statistics_module(values: list[float]) -> None:
    with TemporaryDirectory() as directory:
        result = process(make_context(Path(directory)), "v\n" + "".join(f"{value!r}\n" for value in values))
    found = column(result, "v")
    scale = max(1.0, *(abs(value) for value in values))

    assert (found["count"], found["min"], found["max"]) == (len(values), min(values), max(values))
    assert found["sum"] == pytest.approx(math.fsum(values), rel=1e-9, abs=1e-9 * scale)
    assert found["mean"] == pytest.approx(statistics.fmean(values), rel=1e-9, abs=1e-9 * scale)
    assert found["stddev"] == pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-6 * scale)


cells = st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"]), max_size=12)


@settings(deadline=None, max_examples=60)
@given(rows=st.lists(st.tuples(cells, cells), min_size=1, max_size=40), delimiter=st.sampled_from(",;\t|"))
def test_what_the_csv_module_writes_is_read_back(rows: list[tuple[str, str]], delimiter: str) -> None:
    target = io.StringIO()
    csv.writer(target, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([("x", "y"), *rows])
    with TemporaryDirectory() as directory:
        result = process(make_context(Path(directory)), target.getvalue(), delimiter=delimiter, encoding="utf-8", nulls=[])

    assert (result["total_rows"], result["short_rows"], result["long_rows"]) == (len(rows), 0, 0)
    for index, name in enumerate("xy"):
        texts = [row[index] for row in rows]
        found = column(result, name)
        assert (found["count"], found["distinct"]) == (len(texts), len(set(texts)))
        assert found["max_length"] == max(map(len, texts))
        if found["type"] == "text":
            assert (found["min"], found["max"]) == (min(texts), max(texts))


@pytest.mark.parametrize("different", [10, 1_000, 10_000, 200_000])
def test_distinct_is_exact_up_to_its_cap_and_near_beyond(different: int) -> None:
    counter = DistinctCounter(10_000)
    for start in range(0, different, 1_000):
        counter.add([f"cell {n}" for n in range(start, min(start + 1_000, different))] * 2)
    assert counter.exact == (different <= 10_000)
    assert counter.estimate() == (different if counter.exact else pytest.approx(different, rel=0.05))
