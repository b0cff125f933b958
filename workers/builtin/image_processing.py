"""``image_processing``: resize, crop, rotate, convert and thumbnail pictures, given or made up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from eventq.events.data import BlobRef
from eventq.events.errors import InvalidInput
from eventq.workers.builtin.image_files import (
    EXTENSIONS,
    IMAGE_MAX_BYTES,
    MEDIA_TYPES,
    Picture,
    encode_picture,
    generate_picture,
    open_picture,
)
from eventq.workers.builtin.image_operations import Convert, Operation, Resize, Side, Thumbnails, apply
from eventq.workers.context import Context
from eventq.workers.inputs import Source
from eventq.workers.registry import task

if TYPE_CHECKING:
    from PIL import Image

IMAGES_MAX = 1_000
OPERATIONS_MAX = 32


@task
def image_processing(
    ctx: Context,
    images: Annotated[list[Source], Field(min_length=1, max_length=IMAGES_MAX)] | None = None,
    blob: BlobRef | str | None = None,
    path: str | None = None,
    url: str | None = None,
    num_images: Annotated[int, Field(ge=1, le=IMAGES_MAX)] | None = None,
    target_width: Side | None = None,
    target_height: Side | None = None,
    operations: Annotated[list[Operation], Field(max_length=OPERATIONS_MAX)] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Apply ``operations``, in order, to every picture; each result is stored as a file of this attempt.

    The pictures: one as ``blob``, ``path`` or ``url``; several as ``images``; or ``num_images`` generated from ``seed``.
    ``target_width`` and ``target_height`` are short for one ``resize`` before the operations. The result lists each
    picture's outputs with their keys, sizes and digests. One bad picture fails the task, named by its number.
    """
    sources = _sources(images, blob, path, url, num_images)
    steps = _steps(target_width, target_height, operations)
    done: list[dict[str, Any]] = []
    total = len(sources)
    ctx.progress(0, total, "images")
    for number, source in enumerate(sources, start=1):
        ctx.check()
        picture, name = _load(ctx, source, number, seed)
        done.append(_process(ctx, picture, name, number, steps))
        ctx.progress(number, total, "images")
    return {
        "total_images": total,
        "processed_images": len(done),
        "output_bytes": sum(output["size_bytes"] for image in done for output in image["outputs"]),
        "images": done,
    }


def _sources(
    images: list[Source] | None, blob: BlobRef | str | None, path: str | None, url: str | None, num_images: int | None
) -> list[Source | None]:
    """What to work on, in order; ``None`` for a picture to be generated."""
    single = [part for part in (blob, path, url) if part is not None]
    if len(single) + (images is not None) + (num_images is not None) != 1:
        raise InvalidInput("images", "give exactly one of images, blob, path, url and num_images")
    if images is not None:
        return list(images)
    if num_images is not None:
        return [None] * num_images
    return [Source(blob=blob, path=path, url=url)]


def _steps(width: int | None, height: int | None, operations: list[Operation] | None) -> list[Operation]:
    target = [Resize(width=width, height=height)] if width is not None or height is not None else []
    return [*target, *(operations or [])]


def _load(ctx: Context, source: Source | None, number: int, seed: int) -> tuple[Picture, str]:
    if source is None:
        return generate_picture(seed, number), "generated"
    with ctx.inputs.open(source, seekable=True, max_bytes=IMAGE_MAX_BYTES, check=ctx.check) as opened:
        return open_picture(opened.file, f"images.{number - 1}"), opened.name


def _process(ctx: Context, picture: Picture, source: str, number: int, steps: list[Operation]) -> dict[str, Any]:
    image, format_name = picture.image, picture.format
    quality: int | None = None
    outputs: list[dict[str, Any]] = []
    for index, step in enumerate(steps):
        ctx.check()
        match step:
            case Convert():
                format_name, quality = step.format or format_name, step.quality or quality
                image = _gray(image) if step.grayscale else image
            case Thumbnails():
                for side in step.sizes:
                    small = apply(image, Resize(width=side, height=side, fit="shrink"), f"operations.{index}")
                    outputs.append(_put(ctx, small, f"image-{number:04}-thumbnail-{side}", format_name, quality))
            case _:
                image = apply(image, step, f"operations.{index}")
    ctx.check()
    outputs.insert(0, _put(ctx, image, f"image-{number:04}", format_name, quality))
    return {
        "source": source,
        "format": picture.format,
        "width": picture.image.width,
        "height": picture.image.height,
        "frames": picture.frames,
        "outputs": outputs,
    }


def _put(ctx: Context, image: Image.Image, stem: str, format_name: str, quality: int | None) -> dict[str, Any]:
    name = f"{stem}.{EXTENSIONS.get(format_name, format_name)}"
    ref = ctx.put_output(name, encode_picture(image, format_name, quality), MEDIA_TYPES[format_name])
    return {"name": name, "format": format_name, "width": image.width, "height": image.height, **ref.model_dump()}


def _gray(image: Image.Image) -> Image.Image:
    return image.convert("LA" if image.mode in ("LA", "RGBA") else "L")
