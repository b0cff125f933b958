"""What the demo runs: real files, made on the spot from a seed, so that every result can be checked."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

CSV_ROWS = 30_000
GENERATED_ROWS, GENERATED_S = 200_000, 4.0
PHOTO_SIZE = (2_400, 1_600)
PICTURES, PICTURE_SIZE, THUMBNAILS = 16, (640, 480), [64, 128]
ECHO_DELAY_S = 2.0
STUMBLES = 2

CITIES = ["Köln", "Málaga", 'Bath, "the old town"', "Łódź", "Zürich", "two\nlines"]
"""Names that trip naive readers: accents, the delimiter, quotes, a line break. Encodings that lack a letter leave it out."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A result in a few words, and whether it is what it must be."""

    text: str
    right: bool


@dataclass(frozen=True, slots=True)
class Job:
    """One task of the demo. ``file``: uploaded, and given to the task as ``blob``. ``delay_s``: from submission."""

    label: str
    task_name: str
    judge: Callable[[Any], Verdict]
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    file: bytes | None = None
    media_type: str = "application/octet-stream"
    delay_s: float = 0.0


def make_jobs(*, gpu: bool) -> list[Job]:
    """Every job of one demo; takes a second of computing."""
    jobs = [
        _csv_job("comma, UTF-8", ",", "utf-8", seed=1),
        _csv_job("semicolon, cp1252", ";", "cp1252", seed=2),
        _csv_job("tab, UTF-16", "\t", "utf-16", seed=3),
        _csv_job("pipe, UTF-8 with BOM", "|", "utf-8-sig", seed=4),
        Job(
            f"csv: {GENERATED_ROWS:,} generated rows",
            "csv_processing",
            lambda result: Verdict(f"{result['total_rows']:,} rows", result["total_rows"] == GENERATED_ROWS),
            {"num_rows": GENERATED_ROWS, "processing_time": GENERATED_S},
        ),
        _photo_job(),
        _pictures_job(),
        Job("echo", "echo", lambda result: Verdict(str(result), result == 42), {"value": 42}),
        Job(
            f"echo, not before {ECHO_DELAY_S:g} s",
            "echo",
            lambda result: Verdict(str(result), result == "on time"),
            {"value": "on time"},
            delay_s=ECHO_DELAY_S,
        ),
        Job(
            f"fails {STUMBLES} times first",
            "stumble",
            lambda result: Verdict(str(result), result == f"succeeded at attempt {STUMBLES + 1}"),
            {"failures": STUMBLES},
        ),
    ]
    return [*jobs, _gpu_job()] if gpu else jobs


def make_csv(delimiter: str, encoding: str, seed: int, rows: int = CSV_ROWS) -> tuple[bytes, int]:
    """A CSV file of orders, and the sum of its last column, ``cents``."""
    draw = random.Random(seed)
    cities = [city for city in CITIES if _fits(city, encoding)]
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(["order", "city", "rating", "cents"])
    total = 0
    for order in range(1, rows + 1):
        cents = draw.randint(100, 99_999)
        total += cents
        writer.writerow([order, draw.choice(cities), draw.choice(["", "1.5", "4", "5"]), cents])
    return text.getvalue().encode(encoding), total


def make_photo(seed: int) -> bytes:
    """A JPEG with gradients and noise, as large as a camera's."""
    from PIL import Image

    noise = Image.effect_noise((PHOTO_SIZE[0] // 8, PHOTO_SIZE[1] // 8), 40 + seed).resize(PHOTO_SIZE)
    across = Image.linear_gradient("L").resize(PHOTO_SIZE)
    down = across.rotate(180)
    target = io.BytesIO()
    Image.merge("RGB", (across, noise, down)).save(target, "JPEG", quality=90)
    return target.getvalue()


def _fits(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _csv_job(dialect: str, delimiter: str, encoding: str, seed: int) -> Job:
    file, total = make_csv(delimiter, encoding, seed)

    def judge(result: Any) -> Verdict:
        right = (result["total_rows"], result["statistics"]["sum"], result["delimiter"]) == (CSV_ROWS, total, delimiter)
        return Verdict(f"{result['total_rows']:,} rows, cents add up to {result['statistics']['sum']:,}", right)

    return Job(f"csv: {dialect}", "csv_processing", judge, file=file, media_type="text/csv")


def _photo_job() -> Job:
    operations = [
        {"op": "resize", "width": 1_280},
        {"op": "rotate", "degrees": 15},
        {"op": "crop", "width": 1_000, "height": 600},
        {"op": "convert", "format": "webp", "quality": 80},
        {"op": "thumbnails", "sizes": [256]},
    ]

    def judge(result: Any) -> Verdict:
        outputs = result["images"][0]["outputs"]
        made = ", ".join(f"{output['width']}x{output['height']} {output['format']}" for output in outputs)
        return Verdict(made, [output["width"] for output in outputs] == [1_000, 256])

    file = make_photo(1)
    label = "image: photo, turned and cropped"
    return Job(label, "image_processing", judge, {"operations": operations}, file=file, media_type="image/jpeg")


def _pictures_job() -> Job:
    width, height = PICTURE_SIZE
    kwargs = {
        "num_images": PICTURES,
        "target_width": width,
        "target_height": height,
        "operations": [{"op": "thumbnails", "sizes": THUMBNAILS}],
    }

    def judge(result: Any) -> Verdict:
        outputs = [output for image in result["images"] for output in image["outputs"]]
        right = len(outputs) == PICTURES * (1 + len(THUMBNAILS))
        return Verdict(f"{len(outputs)} files, {result['output_bytes'] / 1e6:.1f} MB", right)

    return Job(f"image: {PICTURES} pictures and thumbnails", "image_processing", judge, kwargs)


def _gpu_job() -> Job:
    def judge(result: Any) -> Verdict:
        device = "CPU as stand-in" if result["stand_in"] else result["device_name"]
        return Verdict(f"{result['tflops']:.3f} TFLOPS on {device}", result["checksum"] > 0)

    return Job("gpu: matrix products", "gpu_check", judge, {"size": 512})
