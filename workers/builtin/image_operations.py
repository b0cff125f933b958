"""What can be done to an image: the operations as data, the geometry as arithmetic, and their application.

Sizes are worked out, and checked against the pixel limit, before a single output pixel exists: a picture one pixel wide
and 65,000 high is small until it is turned by 45 degrees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from eventq.events.errors import InvalidInput, PayloadTooLarge

if TYPE_CHECKING:
    from PIL import Image

PIXELS_MAX = 40_000_000
"""Width times height (times frames, where a file has several) that is decoded or made."""

SIDE_MAX = 16_384
THUMBNAILS_MAX = 16

Side = Annotated[int, Field(ge=1, le=SIDE_MAX)]
Channel = Annotated[int, Field(ge=0, le=255)]
Colour = tuple[Channel, Channel, Channel]


class _Operation(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Resize(_Operation):
    """To ``width`` by ``height``. ``fit``: ``cover`` fills the box and cuts what stands over, ``contain`` fits inside it,
    ``stretch`` changes the proportions, ``shrink`` is ``contain`` that never enlarges. One side alone keeps them."""

    op: Literal["resize"] = "resize"
    width: Side | None = None
    height: Side | None = None
    fit: Literal["cover", "contain", "stretch", "shrink"] = "cover"

    @model_validator(mode="after")
    def _some_side(self) -> Resize:
        if self.width is None and self.height is None:
            raise ValueError("give width, height or both")
        return self


class Crop(_Operation):
    """The ``width`` by ``height`` pixels from ``left`` and ``top``; from the middle where those are not given."""

    op: Literal["crop"] = "crop"
    width: Side
    height: Side
    left: Annotated[int, Field(ge=0)] | None = None
    top: Annotated[int, Field(ge=0)] | None = None


class Rotate(_Operation):
    """Counter-clockwise. ``expand`` makes room for the corners; else the size stays and they are cut."""

    op: Literal["rotate"] = "rotate"
    degrees: Annotated[float, Field(ge=-360, le=360)]
    expand: bool = True
    background: Colour = (255, 255, 255)


class Convert(_Operation):
    """Another file format, a ``quality`` (JPEG and WebP), or ``grayscale``. Applies to the image and later thumbnails."""

    op: Literal["convert"] = "convert"
    format: Literal["png", "jpeg", "webp", "gif", "tiff", "bmp"] | None = None
    quality: Annotated[int, Field(ge=1, le=100)] | None = None
    grayscale: bool = False


class Thumbnails(_Operation):
    """Smaller copies as further outputs, each fitting into a square of the given side; the image itself is unchanged."""

    op: Literal["thumbnails"] = "thumbnails"
    sizes: Annotated[list[Side], Field(min_length=1, max_length=THUMBNAILS_MAX)]


Operation = Annotated[Resize | Crop | Rotate | Convert | Thumbnails, Field(discriminator="op")]


def check_pixels(field: str, width: int, height: int, frames: int = 1) -> None:
    """Raise :class:`PayloadTooLarge` for more pixels than ``PIXELS_MAX``, :class:`InvalidInput` for none."""
    if width < 1 or height < 1:
        raise InvalidInput(field, "has no pixels", found=[width, height])
    if width * height * frames > PIXELS_MAX:
        several = f" in {frames} frames" if frames > 1 else ""
        raise PayloadTooLarge(
            field,
            f"{width} x {height}{several} is more than {PIXELS_MAX} pixels",
            limit=PIXELS_MAX,
            found=width * height * frames,
        )


def resized(size: tuple[int, int], wanted: Resize) -> tuple[int, int]:
    """The size after ``wanted``; never below one pixel on a side, however thin the picture."""
    width, height = size
    if wanted.width is not None and wanted.height is not None and wanted.fit in ("cover", "stretch"):
        return wanted.width, wanted.height
    scale = min((wanted.width or math.inf) / width, (wanted.height or math.inf) / height)
    if wanted.fit == "shrink":
        scale = min(scale, 1.0)
    return max(1, round(width * scale)), max(1, round(height * scale))


def rotated(size: tuple[int, int], degrees: float) -> tuple[int, int]:
    """The box around a turned picture, at least as large as the one that the turning will make."""
    width, height = size
    sine, cosine = abs(math.sin(math.radians(degrees))), abs(math.cos(math.radians(degrees)))
    return math.ceil(width * cosine + height * sine) + 2, math.ceil(width * sine + height * cosine) + 2


def apply(image: Image.Image, operation: Resize | Crop | Rotate, field: str) -> Image.Image:
    """A new image. Raises :class:`InvalidInput` for a crop outside the picture, :class:`PayloadTooLarge` for a result
    over the pixel limit; ``field`` names the operation in both."""
    match operation:
        case Resize():
            return _resize(image, operation, field)
        case Crop():
            return _crop(image, operation, field)
        case Rotate():
            return _rotate(image, operation, field)


def _resize(image: Image.Image, operation: Resize, field: str) -> Image.Image:
    from PIL import Image, ImageOps

    size = resized(image.size, operation)
    check_pixels(field, *size)
    if operation.width is not None and operation.height is not None and operation.fit == "cover":
        return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    return image.resize(size, Image.Resampling.LANCZOS)


def _crop(image: Image.Image, operation: Crop, field: str) -> Image.Image:
    left = operation.left if operation.left is not None else (image.width - operation.width) // 2
    top = operation.top if operation.top is not None else (image.height - operation.height) // 2
    right, bottom = left + operation.width, top + operation.height
    if left < 0 or top < 0 or right > image.width or bottom > image.height:
        raise InvalidInput(field, "reaches beyond the picture", limit=list(image.size), found=[left, top, right, bottom])
    return image.crop((left, top, right, bottom))


def _rotate(image: Image.Image, operation: Rotate, field: str) -> Image.Image:
    from PIL import Image

    if operation.expand:
        check_pixels(field, *rotated(image.size, operation.degrees))
    return image.rotate(
        operation.degrees,
        Image.Resampling.BICUBIC,
        expand=operation.expand,
        fillcolor=_fill(image.mode, operation.background),
    )


def _fill(mode: str, colour: Sequence[int]) -> int | tuple[int, ...]:
    red, green, blue = colour
    gray = round(0.299 * red + 0.587 * green + 0.114 * blue)
    fills: dict[str, int | tuple[int, ...]] = {
        "L": gray,
        "LA": (gray, 0),
        "RGB": (red, green, blue),
        "RGBA": (red, green, blue, 0),
    }
    return fills[mode]
