"""Image, zip and parquet files that are damaged, misleading or hostile."""

import io
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pillow_heif
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

from benchmarks.attacks.tally import Tally
from kdad.data.archives import unpack_images
from kdad.data.decoding import MAX_PIXELS, read_image
from kdad.data.images import images_below
from kdad.data.masks import read_mask
from kdad.data.sources import ParquetSource
from kdad.detection.detector import Detector

SIDE = 48  # of an image, in pixels
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "HEIF", "AVIF", "JPEG2000")
LITTER = ("__MACOSX/._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "._b.png", ".ipynb_checkpoints/a.png")
LEADING_OUT = ("../a.png", "/a.png", "a/../../b.png", "C:\\a.png", "..\\a.png", "//host/share/a.png")
ODD_NAMES = (
    "a\nb.png", "a\x1b[31mb.png", "a\u202egnp.exe.png", " .png", f"{'a' * 180}.png", f"{'a' * 300}.png", "CON.png",
    "toy/good/0.png/b.png", "toy/good/0.png", "a\0.png",
)  # fmt: skip


def picture(rng: np.random.Generator) -> Image.Image:
    """Image with an edge and some noise."""
    values = rng.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
    values[:, SIDE // 2 :] += 120
    return Image.fromarray(values)


def encoded(rng: np.random.Generator, kind: str) -> bytes:
    """Encode an image in one of `FORMATS`, in a random mode."""
    mode = str(rng.choice(["RGB", "L", "RGBA" if kind in ("PNG", "WEBP", "TIFF") else "L"]))
    file, drawn = io.BytesIO(), picture(rng).convert(mode)
    if kind == "HEIF":
        pillow_heif.from_pillow(drawn).save(file)  # kdad's HEIF reader cannot write
    else:
        drawn.save(file, kind)
    return file.getvalue()


def mutated(rng: np.random.Generator, content: bytes) -> bytes:
    """Damage a file's bytes: flip a bit; delete, repeat, zero or randomise some; or truncate."""
    damaged = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(damaged)))
        end = min(len(damaged), at + int(rng.integers(1, 40)))
        match int(rng.integers(6)):
            case 0:
                damaged[at] ^= 1 << int(rng.integers(8))
            case 1:
                del damaged[at:end]
            case 2:
                damaged[at:at] = damaged[at:end]
            case 3:
                damaged[at:end] = bytes(end - at)
            case 4:
                damaged[at:end] = rng.bytes(end - at)
            case 5:
                damaged = damaged[: max(at, 1)]
    return bytes(damaged)


def png_of(width: int, height: int) -> bytes:
    """PNG that declares this size but contains almost no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def bombs() -> Iterator[tuple[str, bytes]]:
    """Yield small files that decode to large images, with their names."""
    yield "a PNG of 60,000 × 60,000", png_of(60_000, 60_000)
    yield "a PNG of 2³¹ − 1 squared", png_of(2**31 - 1, 2**31 - 1)
    yield "an empty PNG just below the size limit", png_of(8000, 7999)
    for kind in ("GIF", "PNG", "TIFF"):
        file = io.BytesIO()
        Image.new("1", (20_000, 20_000)).save(file, kind, **({"compression": "group4"} if kind == "TIFF" else {}))
        yield f"a black {kind} of 20,000 × 20,000", file.getvalue()
    heif = encoded(np.random.default_rng(0), "HEIF")
    size = struct.Struct(">4xII")  # of the box that declares an image's size, after its name
    at = heif.index(b"ispe") + len(b"ispe")
    yield "a HEIC of 60,000 × 60,000", heif[:at] + size.pack(60_000, 60_000) + heif[at + size.size :]
    frames, file = [Image.new("L", (64, 64), i % 256) for i in range(3000)], io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    yield "a GIF of 3,000 frames", file.getvalue()


def images(detector: Detector, work: Path, tries: int, seed: int = 0) -> dict[str, Tally]:
    """Decode and score mutated files of every format: each must be refused, or be an image with finite scores."""
    tallies = {}
    for number, kind in enumerate(FORMATS):
        rng, tally = np.random.default_rng([seed, number]), Tally()
        for attempt in range(tries):
            suffix = str(rng.choice([kind.lower(), kind.lower(), "jpg"]))  # suffixes may be wrong
            file = work / f"{attempt}.{suffix}"
            file.write_bytes(mutated(rng, encoded(rng, kind)))
            tally.attempt(f"{kind} {attempt}", lambda file=file: _judged(detector, file))
            file.unlink()
        tallies[kind] = tally
    tally = Tally()
    for name, content in bombs():
        file = work / "bomb.png"
        file.write_bytes(content)
        tally.attempt(name, lambda file=file: _judged(detector, file))
        file.unlink()
    tallies["bombs"] = tally
    return tallies


def _judged(detector: Detector, file: Path) -> bool:
    """Whether a file is an image with finite scores, and a mask of the same size."""
    image = read_image(file)
    assert read_mask(file).shape == image.shape[1:]
    height, width = image.shape[1:]
    assert image.dtype == torch.uint8 and image.shape[0] == 3 and 0 < height * width <= MAX_PIXELS
    prediction = detector.predict(image[None, :, :256, :256])
    return all(np.isfinite(values).all() for values in (prediction.score, prediction.p_value, prediction.heatmap))


def zipped(members: dict[str, bytes]) -> bytes:
    """Zip file of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def zips(work: Path, tries: int, seed: int = 0) -> Tally:
    """Unpack mutated zip files, some with path traversal: each must be refused, or write only inside the folder."""
    rng, tally = np.random.default_rng([seed, 77]), Tally()
    good = {f"toy/good/{i}.png": encoded(rng, "PNG") for i in range(3)}
    for attempt in range(tries):
        content = _odd_zip(rng, good, attempt)
        place = work / "around"
        place.mkdir()
        tally.attempt(f"zip {attempt}", lambda content=content, place=place: _unpacked(content, place))
        if {path.name for path in place.iterdir()} - {"images"}:
            tally.broken.append(f"zip {attempt}: something is left outside the folder")
        shutil.rmtree(place)
    return tally


def _odd_zip(rng: np.random.Generator, good: dict[str, bytes], attempt: int) -> bytes:
    """Malformed or hostile zip file; the kind depends on `attempt`."""
    match attempt % 6:
        case 0:
            return zipped({**good, str(rng.choice(LEADING_OUT)): b"x"})
        case 1:
            return zipped({**good, str(rng.choice(ODD_NAMES)): next(iter(good.values()))})
        case 2:
            return zipped({**good, **dict.fromkeys(LITTER, b"x")})
        case 3:
            return zipped({**good, "zeros.png": bytes(1 << 22)})
        case _:
            return mutated(rng, zipped(good))


def _unpacked(content: bytes, place: Path) -> bool:
    """Whether the unpacked images can be listed, contain no junk files, and are in the right place."""
    folder = place / "images"
    count = unpack_images(io.BytesIO(content), folder).images
    found = [path for path in folder.rglob("*") if path.is_file()]
    return len(found) == count and not any(path.name.startswith(".") for path in found) and bool(images_below(folder))


def parquets(work: Path, tries: int, seed: int = 0) -> Tally:
    """Read mutated parquet files of a data set: each must be refused, or contain valid images only."""
    rng, tally = np.random.default_rng([seed, 88]), Tally()
    source = ParquetSource("cifar10")
    content = _parquet_of([encoded(rng, "PNG") for _ in range(8)], source.layout.image_column)
    file = work / "cifar10" / source.layout.file("test")
    file.parent.mkdir(parents=True)
    with patch.dict(os.environ, {"KDAD_DATA": str(work)}):
        for attempt in range(tries):
            file.write_bytes(_odd_parquet(rng, content, source.layout.image_column, attempt))
            tally.attempt(f"parquet {attempt}", _read_all)
    return tally


def _odd_parquet(rng: np.random.Generator, content: bytes, column: str, attempt: int) -> bytes:
    match attempt % 6:
        case 0:
            return _parquet_of([mutated(rng, encoded(rng, "PNG")), None], column)
        case 1:
            labels = ([0, int(rng.integers(10, 2**31))], [-1, 0], [0.5, 1.0], [None, 1], ["cat", "dog"], [[0], [1]])
            return _parquet_of([encoded(rng, "PNG")] * 2, column, labels=labels[rng.integers(len(labels))])
        case 2:
            return _parquet_of([encoded(rng, "PNG"), png_of(7, 5)], column)
        case _:
            return mutated(rng, content)


def _parquet_of(files: list[bytes | None], column: str, labels: list | None = None) -> bytes:
    table = pyarrow.table(
        {
            column: [{"bytes": file, "path": None} for file in files],
            "label": labels or [i % 10 for i in range(len(files))],
        }
    )
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, write_page_checksum=True)
    return sink.getvalue()


def _read_all() -> bool:
    source = ParquetSource("cifar10")
    labels = source.labels("test")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(source.classes):
        raise AssertionError("labels out of range")
    images = source.images("test", torch.arange(len(labels)))
    return images.dtype == torch.uint8
