"""Ask a running `kdad serve` about an image: `python ask_the_server.py [ADDRESS] [IMAGE]`, with Python's own library.

Start the server with `kdad serve trained_students/cifar10/vgg-cifar10/cat`. Without an image, a grey one is sent.
"""

import json
import struct
import sys
import urllib.request
import zlib
from pathlib import Path


def grey(side: int = 32) -> bytes:
    """A grey square as a PNG file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\x80" * side) * side)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
image = Path(sys.argv[2]).read_bytes() if len(sys.argv) > 2 else grey()

with urllib.request.urlopen(f"{address}/students") as answer:
    student = json.load(answer)[0]["name"]
with urllib.request.urlopen(f"{address}/students/{student}/predict?fpr=0.05", data=image) as answer:
    print(student, json.load(answer))
with urllib.request.urlopen(f"{address}/students/{student}/heatmap", data=image) as answer:
    print(f"a heatmap of {Path('heatmap.png').write_bytes(answer.read()):,} bytes is in heatmap.png")
