"""Opening images that strangers made, and writing our own.

A kilobyte can decode to a gigabyte, so nothing is decoded before the header's size, times its frames, was compared with
the limit. Only decoders of the formats below may look at the bytes at all: some others start programs. What is written
carries no metadata: places, names and thumbnails of the uncropped picture stay behind. The orientation tag is carried
out first, as without it pictures would lie on their side. Colour profiles go too, without conversion.
"""

from __future__ import annotations

import io
import random
import warnings
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from eventq.events.errors import EventqError, InvalidInput
from eventq.workers.builtin.image_operations import check_pixels

if TYPE_CHECKING:
    from PIL import Image

READABLE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
IMAGE_MAX_BYTES = 64 * 1024 * 1024
FRAMES_MAX = 1_000
QUALITY_DEFAULT = 85

MEDIA_TYPES = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "tiff": "image/tiff",
    "bmp": "image/bmp",
}
EXTENSIONS = {"jpeg": "jpg"}

_GENERATED_SIZE = (1024, 768)
_MODES = ("L", "LA", "RGB", "RGBA")
_NO_ALPHA = ("jpeg", "bmp")


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture in mode ``L``, ``LA``, ``RGB`` or ``RGBA``, upright. ``frames``: how many the file has;
    only the first is used."""

    image: Image.Image
    format: str
    frames: int


def open_picture(file: IO[bytes], field: str) -> Picture:
    """Decode the picture in ``file`` (seekable). Raises :class:`InvalidInput` naming ``field`` for what is none, or is
    damaged, and :class:`PayloadTooLarge` for one over the pixel limit, before it is decoded."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=READABLE_FORMATS) as opened:
                check_pixels(field, opened.width, opened.height)
                frames = _count_frames(opened, field)
                check_pixels(field, opened.width, opened.height, frames)
                name = (opened.format or "").lower()
                upright = ImageOps.exif_transpose(opened)
                return Picture(_plain(upright), name, frames)
    except EventqError:
        raise
    except Exception as error:  # a decoder fed with anything may raise anything; to the caller it is one bad picture
        what = "is no picture in a known format" if type(error).__name__ == "UnidentifiedImageError" else "cannot be decoded"
        raise InvalidInput(field, f"{what}: {type(error).__name__}", hint=f"known: {', '.join(READABLE_FORMATS)}") from error


def generate_picture(seed: int, index: int) -> Picture:
    """A colourful picture that depends on the numbers alone."""
    from PIL import Image

    draw = random.Random(f"{seed}/{index}")
    small = Image.frombytes("RGB", (8, 6), draw.randbytes(8 * 6 * 3))
    return Picture(small.resize(_GENERATED_SIZE, Image.Resampling.BICUBIC), "png", 1)


def encode_picture(image: Image.Image, name: str, quality: int | None) -> bytes:
    """The picture as a file of format ``name``, without metadata; on white where the format knows no transparency."""
    if name in _NO_ALPHA and image.mode in ("LA", "RGBA"):
        image = _on_white(image)
    elif image.mode == "LA" and name in ("webp", "gif"):
        image = image.convert("RGBA")
    options: dict[str, Any] = {}
    if name in ("jpeg", "webp"):
        options["quality"] = quality if quality is not None else QUALITY_DEFAULT
    target = io.BytesIO()
    image.save(target, name, **options)
    return target.getvalue()


def _count_frames(image: Image.Image, field: str) -> int:
    """Frames by the header or, where a file only chains them, by walking the chain no further than the limit."""
    from PIL import TiffImagePlugin

    if not getattr(image, "is_animated", False) and not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1
    count = 1
    try:
        while count <= FRAMES_MAX:
            image.seek(count)
            count += 1
            check_pixels(field, image.width, image.height, count)
    except EOFError:
        image.seek(0)
        return count
    raise InvalidInput(field, f"has more than {FRAMES_MAX} frames", limit=FRAMES_MAX)


def _plain(image: Image.Image) -> Image.Image:
    """The same picture in one of the four modes, and nothing but its pixels."""
    if image.mode in ("I;16", "I;16L", "I;16B", "I"):
        image = image.convert("I").point(lambda value: value / 256).convert("L")  # 16 bits to 8: a bare convert clips
    elif image.mode not in _MODES:
        transparent = "transparency" in image.info or image.mode in ("PA", "RGBa", "La")
        image = image.convert("RGBA" if transparent else "L" if image.mode in ("1", "F") else "RGB")
    plain = image.copy()
    plain.info.clear()
    return plain


def _on_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    picture = image.convert("RGBA")
    ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    ground.alpha_composite(picture)
    return ground.convert("L" if image.mode == "LA" else "RGB")
