"""Thousands of requests that a server must refuse or answer, and never fail: `python -m scripts.attack.requests URL`.

    xmodal serve demo_output/data/test.index --model demo_output/demo_scan --images demo_output/data/images --port 8000
    python -m scripts.attack.requests http://127.0.0.1:8000 --count 2000

What schemathesis makes of the OpenAPI document, right and wrong; pictures that are none, that are damaged, that say to
be huge, or that are of kinds which few programs read; and bytes that are no HTTP. Prints what was answered, and the
server's resident memory before and after; fails if a status is 5xx, an answer is not what the document says, or an
error has no reason.
"""

from __future__ import annotations

import argparse
import io
import random
import socket
import struct
import sys
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import httpx
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SECONDS = 60
"""Time after which a request hangs."""

MEGABYTES = 512
"""By how much the server's resident memory may grow."""


PATIENCE = 0.5
"""Seconds after which a server that says nothing waits for the rest of what is no request."""


class Trial(NamedTuple):
    """A request and what came of it."""

    what: str
    status: int
    """0 where the connection was closed without an answer."""
    wrong: str = ""
    """What is wrong with the answer; nothing if nothing is."""


def picture(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (64, 48), **options: object) -> bytes:
    """A file of a picture.

    >>> picture()[:4]
    b'\\x89PNG'
    """
    content, image = io.BytesIO(), Image.effect_noise(size, 50).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.frombytes("I;16", size, random.Random(0).randbytes(2 * size[0] * size[1]))
    image.save(content, kind, **options)  # type: ignore[arg-type]
    return content.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header tells any size, with next to no data.

    >>> len(huge_png(60_000, 60_000)) < 100
    True
    """
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(99)))]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in [*parts, (b"IEND", b"")]
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def huge_bmp(width: int, height: int) -> bytes:
    """A BMP whose header tells any size, without data.

    >>> len(huge_bmp(60_000, 60_000))
    54
    """
    file, picture = struct.pack("<2sIHHI", b"BM", 99, 0, 0, 54), struct.pack("<IiiHH", 40, width, height, 1, 24)
    return file + picture + bytes(24)


HUGE_GIF = b"GIF89a" + b"\xff" * 4 + b"\x80\0\0" + bytes(6) + b",\0\0\0\0" + b"\xff" * 4 + b"\0\x02\x02D\x01\0;"
"""It tells a side of 65535 pixels."""


def hostile_pictures() -> dict[str, bytes]:
    """Files in the place of photographs, by what they are."""
    frames = [Image.new("RGB", (64, 48), color) for color in ("red", "blue", "white")]
    animated = {"save_all": True, "append_images": frames}
    files = {
        "nothing": b"",
        "1x1": picture(size=(1, 1)),
        "16x1": picture(size=(16, 1)),
        "1x20000": picture(size=(1, 20_000)),
        "16x20000": picture(size=(16, 20_000)),
        "CMYK": picture("JPEG", "CMYK"),
        "16 bits": picture("PNG", "I;16"),
        "floating point": picture("TIFF", "F"),
        "with alpha": picture("PNG", "RGBA"),
        "palette": picture("PNG", "P"),
        "one bit": picture("TIFF", "1"),
        "YCbCr": picture("JPEG", "YCbCr"),
        "portable map": picture("PPM"),
        "animated GIF": picture("GIF", **animated),
        "animated WebP": picture("WEBP", **animated),
        "animated PNG": picture("PNG", **animated),
        "pages of TIFF": picture("TIFF", **animated),
        "SVG": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n(/etc/passwd) (r) file\n",
        "HTML": b"<html><script>alert(1)</script></html>",
        "PDF": b"%PDF-1.7\n1 0 obj\n",
        "ZIP": b"PK\x03\x04" + bytes(100),
        "zeros": bytes(10_000),
        "noise": random.Random(0).randbytes(10_000),
        "PNG of 60000x60000": huge_png(60_000, 60_000),
        "PNG of 2147483647x1": huge_png(2**31 - 1, 1),
        "PNG of 4000x4000": huge_png(4000, 4000),
        "all of one color": picture_of_zeros(3999),
        "PNG of 0x0": huge_png(0, 0),
        "BMP of 60000x60000": huge_bmp(60_000, 60_000),
        "BMP of negative size": huge_bmp(-64, -64),
        "GIF of 65535x65535": HUGE_GIF,
        "PPM of 100000x100000": b"P6 100000 100000 255\n" + bytes(99),
        "a path": b"/etc/passwd",
        "too many bytes": bytes(11_000_000),
    }
    return files


def picture_of_zeros(side: int) -> bytes:
    """A black square as large as may be, in a few kilobytes.

    >>> len(picture_of_zeros(1000)) < 5000
    True
    """
    content = io.BytesIO()
    Image.new("L", (side, side)).save(content, "PNG", optimize=True)
    return content.getvalue()


def damaged_pictures(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Pictures cut short, or with some bytes replaced.

    >>> [what for what, _ in damaged_pictures(2, 0)]
    ['JPEG cut short', 'PNG with other bytes']
    """
    choose = random.Random(seed)
    whole = {kind: picture(kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM")}
    for number in range(count):
        kind = list(whole)[number % len(whole)]
        content = bytearray(whole[kind])
        if number % 2 == 0:
            yield f"{kind} cut short", bytes(content[: choose.randrange(len(content))])
            continue
        for _ in range(choose.randint(1, 20)):
            content[choose.randrange(len(content) if choose.random() < 0.5 else min(64, len(content)))] = (
                choose.randrange(256)
            )
        yield f"{kind} with other bytes", bytes(content)


RAW = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "zeros": bytes(2000),
    "a path": b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an encoded path": b"GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a full address": b"GET http://localhost/etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a zero byte": b"GET /api/photograph?id=%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "half a letter": b"GET /api/search?text=%ff%c3 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "half an escape": b"GET /api/search?text=%&k=%2 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "letters beyond ASCII": "GET /api/search?text=ä HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
    "a long address": b"GET /api/search?text=" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a long header": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
    "many headers": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 20_000 + b"\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: elsewhere\r\n\r\n",
    "a foreign host": b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "a version that is none": b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "a negative length": b"POST /api/photograph HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    "a length in words": b"POST /api/photograph HTTP/1.1\r\nHost: localhost\r\nContent-Length: many\r\n\r\n",
    "a length beyond all": (
        b"POST /api/photograph HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n"
    ),
    "a chunk that is none": (
        b"POST /api/photograph HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n"
    ),
    "a chunk beyond all": (
        b"POST /api/photograph HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n\r\n"
    ),
    "a method that is none": b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n",
}
"""Bytes that are sent as they are."""


def send_raw(url: str, content: bytes) -> int:
    """The status that the server answers bytes with; 0 if it closes the connection, or waits for more."""
    place = urlsplit(url)
    with socket.create_connection((str(place.hostname), place.port or 80), timeout=PATIENCE) as connection:
        try:
            connection.sendall(content)
            first = connection.recv(64)
        except (TimeoutError, ConnectionError):
            return 0
    return int(first.split()[1]) if first.startswith(b"HTTP/") else 0


def checked(what: str, answer: httpx.Response) -> Trial:
    """What is wrong with an answer.

    >>> checked("nothing", httpx.Response(404, json={"reason": "nothing"})).wrong
    ''
    >>> checked("nothing", httpx.Response(502, json={"detail": "nothing"})).wrong
    'the status is 502'
    """
    if answer.status_code >= 500:
        return Trial(what, answer.status_code, f"the status is {answer.status_code}")
    if answer.status_code >= 400:
        content = answer.json() if answer.headers.get("content-type") == "application/json" else None
        if not (isinstance(content, dict) and set(content) == {"reason"} and content["reason"]):
            return Trial(what, answer.status_code, f"the error has no reason: {answer.text[:200]}")
    return Trial(what, answer.status_code)


def pictures(url: str, count: int, seed: int) -> Iterator[Trial]:
    """Send every hostile picture, and so many damaged ones."""
    with httpx.Client(base_url=url, timeout=SECONDS) as client:
        for what, content in [*hostile_pictures().items(), *damaged_pictures(count, seed)]:
            headers = {"content-type": "image/jpeg"}
            try:
                answer = client.post("/api/photograph", content=content, headers=headers)
            except httpx.TransportError:
                yield Trial(what, 0)
                continue
            yield checked(what, answer)


def raw(url: str) -> Iterator[Trial]:
    """Send what is no HTTP, or hardly."""
    for what, content in RAW.items():
        status = send_raw(url, content)
        yield Trial(what, status, f"the status is {status}" if status >= 500 else "")


def described(url: str, count: int, seed: int) -> Iterator[Trial]:
    """Send what schemathesis makes of the server's OpenAPI document, about so many right and wrong requests."""
    import hypothesis
    import schemathesis
    from schemathesis.checks import load_all_checks, not_a_server_error
    from schemathesis.specs.openapi import checks

    load_all_checks()
    asked = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    found: list[Any] = [result.ok() for result in schema.get_all_operations()]  # type: ignore[union-attr]
    # Requests without arguments can be made in one way only.
    operations = [one for one in found if one.query or one.body]
    modes: list[Any] = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
    # Any bytes are a right body, so that wrong ones cannot be made: those are `hostile_pictures`.
    kinds = [(one, mode) for one in operations for mode in modes if one.query or mode is modes[0]]
    each = -(-count // len(kinds))
    settings = hypothesis.settings(
        max_examples=each,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list[Any](hypothesis.HealthCheck),
    )
    for operation, mode in kinds:
        cases = _made(hypothesis.seed(seed), settings, hypothesis.given(operation.as_strategy(generation_mode=mode)))
        for case in cases[:each]:
            answer = case.call(timeout=SECONDS)
            yield Trial(f"{operation.label}, {mode.value}", answer.status_code, _failed(case, answer, asked))


def _made(*decorators: Any) -> list[Any]:
    """What hypothesis makes by its decorators."""
    cases = []

    def keep(case: Any) -> None:
        cases.append(case)

    for decorate in reversed(decorators):
        keep = decorate(keep)
    keep()  # type: ignore[call-arg]
    return cases


def _failed(case: Any, answer: Any, asked: Sequence[Any]) -> str:
    """What an answer is not as the document says."""
    try:
        case.validate_response(answer, checks=asked)
    except Exception as error:  # schemathesis has groups of failures of its own
        return " ".join(str(error).split())[:300]
    return ""


def resident(url: str) -> float:
    """Megabytes that the server's process has in memory, as it says."""
    lines = httpx.get(f"{url}/metrics", timeout=SECONDS).text.splitlines()
    (line,) = [line for line in lines if line.startswith("process_resident_memory_bytes ")]
    return float(line.split()[1]) / 2**20


def attack(url: str, count: int, seed: int) -> Iterator[Trial]:
    """Everything, with about so many requests altogether."""
    yield from raw(url)
    fixed = len(RAW) + len(hostile_pictures())
    yield from pictures(url, max(0, (count - fixed) // 4), seed)
    yield from described(url, max(8, 3 * (count - fixed) // 4), seed)


def main(arguments: Sequence[str] | None = None) -> None:
    """Attack, print what was answered, and fail if anything is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.attack.requests",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", help="where the server is")
    parser.add_argument("--count", type=int, default=2000, help="about how many requests")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    url, most = options.url.rstrip("/"), 0.0
    before, trials = resident(url), []
    for trial in attack(url, options.count, options.seed):
        trials.append(trial)
        if len(trials) % 50 == 0:
            most = max(most, resident(url))
    after = resident(url)
    most = max(most, after)
    counts = sorted(Counter(trial.status for trial in trials).items())
    answered = ", ".join(f"{count} x {status or 'closed'}" for status, count in counts)
    print(f"{len(trials)} requests: {answered}")
    print(f"resident memory: {before:.0f} MB before, at most {most:.0f} MB seen, {after:.0f} MB after")
    wrong = [f"{trial.what}: {trial.wrong}" for trial in trials if trial.wrong]
    if most - before > MEGABYTES:
        wrong.append(f"memory grew by {most - before:.0f} MB; at most {MEGABYTES} are allowed")
    print(*wrong[:20], sep="\n")
    if wrong:
        sys.exit(f"{len(wrong)} of {len(trials)} were not answered as they should be")


if __name__ == "__main__":
    main()
