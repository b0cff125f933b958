"""``image_processing`` on real pictures, and on the ones that are made to hurt."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from pydantic import TypeAdapter

from eventq.events.data import BlobRef
from eventq.events.errors import InvalidInput, PayloadTooLarge
from eventq.workers.builtin.image_operations import PIXELS_MAX, Resize, resized, rotated
from eventq.workers.builtin.image_processing import image_processing
from eventq.workers.context import Context, TaskCancelled
from eventq.workers.registry import load_modules
from tests.workers.support import RecordingHost, make_context


@pytest.fixture
def host() -> RecordingHost:
    return RecordingHost()


@pytest.fixture
def context(tmp_path: Path, host: RecordingHost) -> Context:
    return make_context(tmp_path, host, input_dirs=[tmp_path])


def encoded(image: Image.Image, name: str = "PNG", **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, name, **options)
    return target.getvalue()


def photo(width: int = 60, height: int = 40, mode: str = "RGB") -> Image.Image:
    """Left half red, right half blue: which side is which survives every operation that should keep it."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 0, 255), (width // 2, 0, width, height))
    return image.convert(mode)


def process(context: Context, data: bytes, *operations: dict[str, Any], **options: Any) -> dict[str, Any]:
    """As a worker calls it: from JSON, through the registered task."""
    arguments = {"blob": context.blobs.put(data).key, "operations": list(operations), **options}
    result = load_modules().get("image_processing").call(context, [], arguments)
    assert isinstance(result, dict)
    return TypeAdapter(dict[str, Any]).validate_python(result)


def outputs(context: Context, result: dict[str, Any]) -> list[Image.Image]:
    images: list[Image.Image] = []
    for image in result["images"]:
        for output in image["outputs"]:
            fields = {name: output[name] for name in ("key", "sha256", "size_bytes", "media_type")}
            data = context.blobs.get(BlobRef(**fields))
            assert (output["size_bytes"], output["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
            opened = Image.open(io.BytesIO(data))
            assert (opened.size, (opened.format or "").lower()) == ((output["width"], output["height"]), output["format"])
            images.append(opened)
    return images


def one_output(context: Context, result: dict[str, Any]) -> Image.Image:
    (image,) = outputs(context, result)
    return image


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it has that many gray pixels and brings next to none of them."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("operation", "size"),
    [
        ({"op": "resize", "width": 30, "height": 30}, (30, 30)),
        ({"op": "resize", "width": 30, "height": 30, "fit": "contain"}, (30, 20)),
        ({"op": "resize", "width": 300, "height": 300, "fit": "contain"}, (300, 200)),
        ({"op": "resize", "width": 300, "height": 300, "fit": "shrink"}, (60, 40)),
        ({"op": "resize", "width": 30, "height": 30, "fit": "stretch"}, (30, 30)),
        ({"op": "resize", "width": 30}, (30, 20)),
        ({"op": "resize", "height": 20}, (30, 20)),
        ({"op": "crop", "width": 20, "height": 10}, (20, 10)),
        ({"op": "crop", "width": 20, "height": 10, "left": 40, "top": 30}, (20, 10)),
        ({"op": "rotate", "degrees": 90}, (40, 60)),
        ({"op": "rotate", "degrees": 90, "expand": False}, (60, 40)),
    ],
)
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_an_operation_makes_the_size_it_promises(
    context: Context, operation: dict[str, Any], size: tuple[int, int], mode: str
) -> None:
    result = process(context, encoded(photo(mode=mode)), operation)
    image = one_output(context, result)
    assert (image.size, image.mode) == (size, mode)


def test_operations_follow_one_another(context: Context) -> None:
    result = process(
        context,
        encoded(photo()),
        {"op": "crop", "width": 20, "height": 40, "left": 0, "top": 0},
        {"op": "rotate", "degrees": -90},
        {"op": "resize", "width": 80},
        {"op": "convert", "format": "webp", "quality": 90},
    )
    image = one_output(context, result)
    assert (image.size, image.format) == ((80, 40), "WEBP")
    red, _, blue = image.convert("RGB").getpixel((40, 20))  # type: ignore[misc]  # pyright: ignore
    assert red > 200 > 50 > blue


def test_thumbnails_are_further_outputs(context: Context) -> None:
    result = process(
        context, encoded(photo(), "JPEG"), {"op": "resize", "width": 600}, {"op": "thumbnails", "sizes": [120, 12]}
    )
    assert [image.size for image in outputs(context, result)] == [(600, 400), (120, 80), (12, 8)]
    assert [output["name"] for output in result["images"][0]["outputs"]] == [
        "image-0001.jpg",
        "image-0001-thumbnail-120.jpg",
        "image-0001-thumbnail-12.jpg",
    ]


@pytest.mark.parametrize("target", ["png", "jpeg", "webp", "gif", "tiff", "bmp"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_every_kind_of_picture_becomes_every_format(context: Context, mode: str, target: str) -> None:
    source = Image.new("I;16", (8, 8), 40_000) if mode == "I;16" else photo(8, 8).convert(mode)
    data = encoded(source, "TIFF" if mode in ("CMYK", "F", "I;16") else "PNG")
    image = one_output(context, process(context, data, {"op": "convert", "format": target}))
    assert image.size == (8, 8)


def test_transparency_is_laid_on_white_where_a_format_has_none(context: Context) -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image = one_output(context, process(context, encoded(clear), {"op": "convert", "format": "jpeg", "quality": 100}))
    assert image.getpixel((4, 4)) == (255, 255, 255)


def test_a_gray_picture_keeps_its_transparency(context: Context) -> None:
    image = one_output(context, process(context, encoded(photo(mode="RGBA")), {"op": "convert", "grayscale": True}))
    assert image.mode == "LA"


def test_a_16_bit_picture_keeps_its_tones(context: Context) -> None:
    data = encoded(Image.new("I;16", (8, 8), 40_000))
    assert one_output(context, process(context, data)).getpixel((0, 0)) == 40_000 // 256


def test_the_orientation_is_carried_out_and_all_metadata_left_behind(context: Context) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    exif[0x010E] = "SECRET PLACE"
    data = encoded(photo(), "JPEG", exif=exif, comment=b"SECRET COMMENT", quality=95)
    result = process(context, data)
    image = one_output(context, result)
    stored = context.blobs.get(result["images"][0]["outputs"][0]["key"])

    assert image.size == (40, 60)
    red, _, blue = image.convert("RGB").getpixel((20, 5))  # type: ignore[misc]  # pyright: ignore
    assert red > 200 > 50 > blue
    assert b"SECRET" in data
    assert b"SECRET" not in stored
    assert not image.getexif()


def test_text_in_a_png_is_left_behind(context: Context) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", "SECRET NAME")
    result = process(context, encoded(photo(), pnginfo=info))
    assert b"SECRET" not in context.blobs.get(result["images"][0]["outputs"][0]["key"])


def test_generated_pictures_have_the_size_asked_for_and_repeat(context: Context, host: RecordingHost) -> None:
    result = image_processing(context, num_images=3, target_width=80, target_height=60, seed=1)
    assert (result["total_images"], result["processed_images"]) == (3, 3)
    assert [image.size for image in outputs(context, result)] == [(80, 60)] * 3
    digests = [image["outputs"][0]["sha256"] for image in result["images"]]
    assert len(set(digests)) == 3
    assert result == image_processing(context, num_images=3, target_width=80, target_height=60, seed=1)
    assert [(update.done, update.total) for update in host.updates[:4]] == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_several_pictures_from_several_places(context: Context, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(photo()))
    ref = context.blobs.put(encoded(photo(), "GIF"))
    arguments = {"images": [{"path": "a.png"}, {"blob": ref.model_dump()}], "target_width": 6}
    result = load_modules().get("image_processing").call(context, [], arguments)
    assert [image["source"] for image in result["images"]] == ["a.png", ref.key]
    assert [image.size for image in outputs(context, result)] == [(6, 4), (6, 4)]


def test_an_animation_is_processed_by_its_first_frame(context: Context) -> None:
    frames = [photo(), Image.new("RGB", (60, 40), (0, 255, 0))]
    result = process(context, encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert result["images"][0]["frames"] == 2
    assert one_output(context, result).convert("RGB").getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(20_000, 20_000), (13_000, 13_000), (6_325, 6_325), (65_000, 65_000)])
def test_a_bomb_is_refused_before_it_is_decoded(context: Context, size: tuple[int, int]) -> None:
    data = png_header(*size)
    assert len(data) < 200
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput):
            process(context, data)
        assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_picture_over_the_limit_is_told_so(context: Context) -> None:
    with pytest.raises(PayloadTooLarge) as refused:
        process(context, png_header(10_000, 5_000))
    assert refused.value.fields["limit"] == PIXELS_MAX
    assert refused.value.fields["found"] == 50_000_000


@pytest.mark.parametrize("name", ["GIF", "WEBP", "TIFF", "PNG"])
def test_frames_count_towards_the_limit(context: Context, name: str) -> None:
    frames = [Image.new("RGB", (2_000, 2_000), (20 * n, 255 - 20 * n, 0)) for n in range(13)]
    packed = {"compression": "tiff_lzw"} if name == "TIFF" else {}
    data = encoded(frames[0], name, save_all=True, append_images=frames[1:], **packed)
    with pytest.raises(PayloadTooLarge) as refused:
        process(context, data)
    assert "frames" in refused.value.detail


def test_a_thin_picture_cannot_be_turned_into_a_huge_one(context: Context) -> None:
    with pytest.raises(PayloadTooLarge):
        process(context, encoded(Image.new("L", (1, 60_000))), {"op": "rotate", "degrees": 45})
    result = process(
        context, encoded(Image.new("L", (1, 60_000))), {"op": "resize", "width": 10, "height": 10, "fit": "contain"}
    )
    assert one_output(context, result).size == (1, 10)


def test_a_picture_cannot_be_blown_up_over_the_limit(context: Context) -> None:
    with pytest.raises(PayloadTooLarge) as refused:
        process(context, encoded(photo()), {"op": "resize", "width": 16_000, "height": 16_000})
    assert refused.value.field == "operations.0"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a picture",
        encoded(photo())[:60],
        encoded(photo(), "JPEG")[:-200],
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        encoded(photo(), "ICO"),
        b"GIF89a" + b"\0" * 20,
        b"RIFF\x10\0\0\0WEBPVP8X",
        png_header(0, 10),
    ],
    ids=["empty", "text", "cut PNG", "cut JPEG", "EPS", "SVG", "ICO", "GIF", "WebP", "no pixels"],
)
def test_what_is_no_good_picture_is_refused(context: Context, data: bytes) -> None:
    with pytest.raises(InvalidInput) as refused:
        process(context, data)
    assert refused.value.field == "images.0"


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "resize"},
        {"op": "resize", "width": 0},
        {"op": "resize", "width": 16_385},
        {"op": "crop", "width": 61, "height": 1},
        {"op": "crop", "width": 60, "height": 40, "left": 1},
        {"op": "crop", "width": 1, "height": 1, "left": -1},
        {"op": "rotate", "degrees": float("nan")},
        {"op": "rotate", "degrees": 10, "background": [1, 2, 256]},
        {"op": "convert", "format": "eps"},
        {"op": "convert", "quality": 101},
        {"op": "thumbnails", "sizes": []},
        {"op": "thumbnails", "sizes": [10] * 17},
        {"op": "paint"},
        {"op": "crop", "width": 1, "height": 1, "widht": 2},
        {},
    ],
)
def test_a_bad_operation_is_refused_by_its_number(context: Context, operation: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as refused:
        process(context, encoded(photo()), {"op": "rotate", "degrees": 0}, operation)
    assert refused.value.field.startswith("operations.1")


@pytest.mark.parametrize(
    "given", ["{}", '{"num_images": 1, "path": "x"}', '{"images": [], "url": "http://x/"}', '{"images": [{}]}']
)
def test_exactly_one_kind_of_input_is_required(context: Context, given: str) -> None:
    with pytest.raises(InvalidInput):
        load_modules().get("image_processing").call(context, [], json.loads(given))


def test_a_cancelled_task_stops_between_two_pictures(tmp_path: Path) -> None:
    host = RecordingHost(cancel_after=2)
    with pytest.raises(TaskCancelled):
        image_processing(make_context(tmp_path, host), num_images=100, target_width=8)
    assert len(host.updates) == 2


sides = st.integers(1, 3_000)


@given(size=st.tuples(sides, sides), width=sides, height=sides, fit=st.sampled_from(["contain", "shrink"]))
def test_a_contained_picture_fits_and_touches_a_side(size: tuple[int, int], width: int, height: int, fit: Any) -> None:
    found = resized(size, Resize(width=width, height=height, fit=fit))
    assert 1 <= found[0] <= width
    assert 1 <= found[1] <= height
    assert found[0] == width or found[1] == height or (fit == "shrink" and found == size)


@given(size=st.tuples(st.integers(1, 60), st.integers(1, 60)), degrees=st.floats(-360, 360))
def test_the_foreseen_box_of_a_turned_picture_is_large_enough(size: tuple[int, int], degrees: float) -> None:
    width, height = Image.new("L", size).rotate(degrees, expand=True).size
    foreseen = rotated(size, degrees)
    assert width <= foreseen[0] <= width + 4
    assert height <= foreseen[1] <= height + 4
