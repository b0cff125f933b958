"""Where inputs may come from: checked keys, opened directories, and nothing that links lead out of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from eventq.events.blobs import BlobStore
from eventq.events.errors import BlobDamaged, BlobNotFound, InvalidInput, PayloadTooLarge
from eventq.workers.inputs import Inputs, Source


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore.open(tmp_path / "blobs")


@pytest.fixture
def open_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "open"
    (directory / "sub").mkdir(parents=True)
    (directory / "sub" / "in.txt").write_bytes(b"inside")
    (tmp_path / "secret.txt").write_bytes(b"outside")
    return directory


@pytest.fixture
def inputs(blobs: BlobStore, open_dir: Path) -> Inputs:
    return Inputs(blobs, [open_dir])


def read(inputs: Inputs, source: Source, seekable: bool = False) -> bytes:
    with inputs.open(source, seekable=seekable) as opened:
        return opened.file.read()


def test_a_path_is_relative_to_an_open_directory_or_absolute_inside_it(inputs: Inputs, open_dir: Path) -> None:
    for path in ("sub/in.txt", "sub/../sub/in.txt", str(open_dir / "sub" / "in.txt")):
        assert read(inputs, Source(path=path)) == b"inside"
    with inputs.open(Source(path="sub/in.txt")) as opened:
        assert (opened.name, opened.size_bytes) == ("in.txt", 6)


def test_several_directories_are_searched_in_order(blobs: BlobStore, open_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.txt").write_bytes(b"b")
    assert read(Inputs(blobs, [open_dir, other]), Source(path="b.txt")) == b"b"


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt",
        "sub/../../secret.txt",
        "/etc/passwd",
        "nope",
        "",
        ".",
        "sub",
        "link",
        "linked/x",
        "a\0b",
        "x" * 5000,
    ],
)
def test_what_lies_outside_is_refused(inputs: Inputs, open_dir: Path, tmp_path: Path, path: str) -> None:
    (open_dir / "link").symlink_to(tmp_path / "secret.txt")
    (open_dir / "linked").symlink_to(tmp_path)
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(InvalidInput) as refused:
        inputs.open(Source(path=path))
    assert refused.value.field == "path"


def test_outside_and_absent_are_refused_in_the_same_words(inputs: Inputs) -> None:
    sentences: list[str] = []
    for path in ("../secret.txt", "../no-such.txt"):
        with pytest.raises(InvalidInput) as refused:
            inputs.open(Source(path=path))
        sentences.append(refused.value.detail)
    assert sentences[0] == sentences[1]


def test_a_link_that_stays_inside_is_followed(inputs: Inputs, open_dir: Path) -> None:
    (open_dir / "alias.txt").symlink_to(open_dir / "sub" / "in.txt")
    assert read(inputs, Source(path="alias.txt")) == b"inside"
    (open_dir / "circle").symlink_to(open_dir / "circle")
    with pytest.raises(InvalidInput):
        inputs.open(Source(path="circle"))


def test_a_pipe_is_not_waited_on(inputs: Inputs, open_dir: Path) -> None:
    os.mkfifo(open_dir / "pipe")
    with pytest.raises(InvalidInput, match="not a regular file"):
        inputs.open(Source(path="pipe"))


def test_no_directory_is_open_unless_given(blobs: BlobStore) -> None:
    with pytest.raises(InvalidInput, match="no directory"):
        Inputs(blobs).open(Source(path="x"))


@pytest.mark.parametrize("seekable", [False, True])
def test_a_blob_is_read_and_checked(inputs: Inputs, blobs: BlobStore, tmp_path: Path, seekable: bool) -> None:
    ref = blobs.put(b"content", media_type="text/plain")
    with inputs.open(Source(blob=ref), seekable=seekable) as opened:
        assert (opened.name, opened.size_bytes, opened.media_type) == (ref.key, 7, "text/plain")
        assert opened.file.read() == b"content"
        assert opened.file.seekable() == seekable
    assert read(inputs, Source(blob=ref.key), seekable) == b"content"
    (tmp_path / "blobs" / ref.key).write_bytes(b"consent")
    with pytest.raises(BlobDamaged):
        read(inputs, Source(blob=ref), seekable)
    with pytest.raises(BlobNotFound):
        inputs.open(Source(blob="sha256/00/" + "0" * 64), seekable=seekable)
    with pytest.raises(InvalidInput):
        inputs.open(Source(blob="../secret.txt"), seekable=seekable)


def test_an_input_over_the_limit_is_refused_before_it_is_read(inputs: Inputs, blobs: BlobStore) -> None:
    for source in (Source(path="sub/in.txt"), Source(blob=blobs.put(b"123456"))):
        inputs.open(source, max_bytes=6).file.close()
        with pytest.raises(PayloadTooLarge) as refused:
            inputs.open(source, max_bytes=5)
        assert (refused.value.fields["limit"], refused.value.fields["found"]) == (5, 6)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"path": "a", "url": "http://b/"},
        {"blob": "k", "path": "p", "url": "u"},
        {"file": "x"},
    ],
)
def test_a_source_is_exactly_one_place(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Source.model_validate(given)
