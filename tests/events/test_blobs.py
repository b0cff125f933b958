"""The blob store, against a real directory and, for what must not depend on it, the in-memory backend."""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from eventq.events.blob_keys import check_key, output_key, upload_key
from eventq.events.blobs import BlobStore
from eventq.events.data import BlobRef
from eventq.events.errors import BlobDamaged, BlobNotFound, InvalidInput, PayloadTooLarge

MIB = 1024 * 1024


@pytest.fixture(params=["directory", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return BlobStore.open(tmp_path / "blobs" if request.param == "directory" else "memory:///")


@pytest.fixture
def local(tmp_path: Path) -> BlobStore:
    return BlobStore.open(tmp_path)


def files_in(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("data", [b"", b"x", b"\x00\xff" * 3 * MIB], ids=["empty", "one byte", "6 MiB"])
def test_what_was_put_is_what_is_got(store: BlobStore, data: bytes) -> None:
    ref = store.put(data, media_type="text/csv")

    assert ref == BlobRef(
        key=upload_key(hashlib.sha256(data).hexdigest()),
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        media_type="text/csv",
    )
    assert store.get(ref) == data
    assert store.get(ref.key) == data
    assert b"".join(store.stream(ref)) == data
    assert store.reader(ref).read() == data
    assert store.stat(ref).size_bytes == len(data)


def test_the_same_upload_twice_is_one_blob(local: BlobStore, tmp_path: Path) -> None:
    assert local.put(b"same") == local.put(b"same")
    assert len(files_in(tmp_path)) == 1


def test_an_output_lies_under_its_attempt(local: BlobStore, tmp_path: Path) -> None:
    ref = local.put_stream(iter([b"a", b"b"]), key=output_key("task-1", 2, "result.json"))

    assert files_in(tmp_path) == ["tasks/task-1/2/result.json"]
    assert local.get(ref) == b"ab"


def test_nothing_is_stored_of_a_stream_over_its_limit(local: BlobStore, tmp_path: Path) -> None:
    with pytest.raises(PayloadTooLarge) as refused:
        local.put_stream((bytes(MIB) for _ in range(1000)), max_bytes=3 * MIB)

    assert refused.value.fields["limit"] == 3 * MIB
    assert files_in(tmp_path) == []
    local.put(bytes(3 * MIB), max_bytes=3 * MIB)


def test_nothing_is_stored_of_a_stream_that_breaks_off(local: BlobStore, tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(2 * MIB)
        raise ConnectionResetError("peer went away")

    with pytest.raises(ConnectionResetError):
        local.put_stream(broken(), key=output_key("t", 1, "o"))
    assert files_in(tmp_path) == []


def test_a_large_blob_is_never_whole_in_memory(local: BlobStore) -> None:
    tracemalloc.start()
    try:
        ref = local.put_stream(bytes(MIB) for _ in range(64))
        assert sum(len(chunk) for chunk in local.stream(ref)) == 64 * MIB
        assert tracemalloc.get_traced_memory()[1] < 8 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("by_reference", [True, False], ids=["by reference", "by key"])
def test_a_damaged_blob_is_not_served_as_good(local: BlobStore, tmp_path: Path, by_reference: bool) -> None:
    ref = local.put(b"precious")
    (tmp_path / ref.key).write_bytes(b"precioux")
    blob = ref if by_reference else ref.key

    with pytest.raises(BlobDamaged) as damaged:
        local.get(blob)
    assert damaged.value.fields["expected"] == ref.sha256
    with pytest.raises(BlobDamaged):
        local.reader(blob).read()


def test_a_truncated_output_is_noticed_through_its_reference(local: BlobStore, tmp_path: Path) -> None:
    ref = local.put(b"precious", key=output_key("t", 1, "o"))
    (tmp_path / ref.key).write_bytes(b"")

    with pytest.raises(BlobDamaged):
        local.get(ref)


def test_an_absent_blob_is_not_found(store: BlobStore) -> None:
    key = upload_key("0" * 64)
    for read in (store.get, store.stat, store.reader):
        with pytest.raises(BlobNotFound) as absent:
            read(key)
        assert absent.value.fields["key"] == key
    with pytest.raises(BlobNotFound):
        list(store.stream(key))


def test_a_directory_may_be_given_as_a_url_and_have_any_name(tmp_path: Path) -> None:
    directory = tmp_path / "with space & ümlaut %20"
    ref = BlobStore.open(directory.as_uri()).put(b"x")
    assert files_in(directory) == [ref.key]
    assert BlobStore.open(directory).get(ref) == b"x"
    assert [path.name for path in tmp_path.iterdir()] == [directory.name]


def test_outputs_that_two_delete_at_once_are_gone_for_both(local: BlobStore, tmp_path: Path) -> None:
    """As two schedulers do; with one file already gone a store refuses to delete the others with it."""
    for _ in range(10):
        for number in range(20):
            local.put(b"x", key=output_key("task-1", 1, f"file-{number}"))
        both = Barrier(2)

        def delete(store: BlobStore, both: Barrier = both) -> None:
            both.wait()
            store.delete_outputs("task-1")

        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(delete, BlobStore.open(tmp_path)) for _ in range(2)]:
                done.result()
        assert files_in(tmp_path) == []


def test_deleting_twice_is_deleting_once(store: BlobStore) -> None:
    ref = store.put(b"x")
    store.delete(ref)
    store.delete(ref)
    with pytest.raises(BlobNotFound):
        store.get(ref)


def test_a_read_may_be_limited(store: BlobStore) -> None:
    ref = store.put(bytes(100))
    assert len(store.get(ref, max_bytes=100)) == 100
    with pytest.raises(PayloadTooLarge):
        store.get(ref, max_bytes=99)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "x",
        "/etc/passwd",
        "../up",
        "sha256/aa/../../x",
        f"sha256/ff/{'0' * 64}",
        f"sha256/00/{'0' * 63}",
        f"sha256/AA/{'A' * 64}",
        "tasks/t/0/name",
        "tasks/t/01/name",
        "tasks/t/1/.hidden",
        "tasks/t/1/..",
        "tasks/../1/name",
        "tasks/t/1/a/b",
        "tasks/t/1/a b",
        "tasks/t/1/näme",
        "tasks/t/1/name\n",
        "tasks/t/1/na\x00me",
        f"tasks/t/1/{'n' * 129}",
        f"tasks/{'t' * 65}/1/name",
        "tasks/t/\u0661/name",
    ],
)
def test_a_path_is_no_key(local: BlobStore, tmp_path: Path, key: str) -> None:
    with pytest.raises(InvalidInput):
        local.get(key)
    with pytest.raises(InvalidInput):
        local.put(b"x", key=key)
    assert files_in(tmp_path) == []


def test_keys_made_here_pass_their_own_check() -> None:
    for key in (upload_key("a" * 64), output_key("0199-abc_D", 12, "thumb-1.webp")):
        assert check_key(key) == key


def test_other_data_cannot_take_a_content_address(local: BlobStore) -> None:
    ref = local.put(b"mine")
    with pytest.raises(InvalidInput):
        local.put(b"theirs", key=ref.key)
    assert local.get(ref) == b"mine"


async def test_the_async_methods_do_the_same(store: BlobStore) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(MIB)

    ref = await store.put_stream_async(body())
    assert ref == await store.put_async(bytes(3 * MIB))
    assert await store.get_async(ref) == bytes(3 * MIB)
    assert sum([len(chunk) async for chunk in store.stream_async(ref)]) == 3 * MIB
    assert (await store.stat_async(ref)).size_bytes == 3 * MIB
    await store.delete_async(ref)
    with pytest.raises(BlobNotFound):
        await store.get_async(ref)
    with pytest.raises(PayloadTooLarge):
        await store.put_stream_async(body(), max_bytes=MIB)


def test_a_store_travels_to_a_spawned_child(local: BlobStore) -> None:
    ref = local.put(b"for the child")
    assert pickle.loads(pickle.dumps(local)).get(ref) == b"for the child"
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(local.get, (ref,)) == b"for the child"
