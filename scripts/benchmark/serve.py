"""The server of an index: what the page finds, how long it takes there, and how many can ask at once.

    python -m scripts.demo --output demo_output
    python -m scripts.benchmark serve

In headless Chromium, captions of the demo's test split are typed, and the first image shown is compared with the
model's own; with copies of its images (10,000, or --images), what passes from Enter to the painted answer and to its
proof; then 32 clients ask over loopback, one question after the other, for a minute: quick answers, then exact ones.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import threading
from collections import Counter
from pathlib import Path
from statistics import median, quantiles
from time import monotonic, perf_counter
from typing import TYPE_CHECKING

from scripts.attack.requests import resident
from scripts.benchmark.index import Copies, demo_parts
from scripts.page.browser import SEARCH, open_page, serving, why_no_browser
from xmodal.data import RegionBatch, RegionStore, load_captions
from xmodal.data.image_folder import find_images
from xmodal.data.split import Split
from xmodal.model import Matcher
from xmodal.search.index import Index

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

CLIENTS = 32
SECONDS = 60.0
IMAGES = 10_000
CELLS = 156


class Placed(Copies):
    """Copies that keep the boxes of the regions."""

    def __init__(self, base: Tensor, count: int, boxes: Tensor) -> None:
        super().__init__(base, count)
        self.boxes = boxes

    def batch(self, indices: Sequence[int] | Tensor) -> RegionBatch:
        """Some of them."""
        some = super().batch(indices)
        return some._replace(boxes=self.boxes.expand(len(some.regions), -1, -1))


def run(repetitions: int, *, images: int = IMAGES, demo: Path = Path("demo_output")) -> None:
    """Build, serve, ask and print; what was built is removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="serve", dir=demo))
    try:
        _right(repetitions, demo, folder)
        arguments, sentences = _collection(images, demo, folder)
        print(f"load of the machine: {', '.join(f'{each:.1f}' for each in os.getloadavg())} on {os.cpu_count()} cores")
        with serving([*arguments, "--seconds", str(2 * SECONDS)]) as (url, _):
            if why_no_browser() is None:
                _fast(repetitions, url, sentences, images)
            for exact in (False, True):
                _many(url, sentences, exact)
    finally:
        shutil.rmtree(folder)


def _right(repetitions: int, demo: Path, folder: Path) -> None:
    """The first image that the page shows is the model's own."""
    if reason := why_no_browser():
        print(f"the page was not looked at: {reason}")
        return
    run, data = demo / "demo_scan", demo / "data"
    matcher, store = Matcher.from_pretrained(run), RegionStore(data / "test.h5")
    index = Index.build(matcher, store, folder / "test.index")
    split = Split.of(store, load_captions(data / "captions.jsonl", "test"))
    step = max(1, len(split.captions) // (30 * repetitions))
    asked = split.captions[::step]
    own = matcher.score_all(store, [caption.caption for caption in asked]).argmax(dim=0)
    models = [store.image_id[image] for image in own.tolist()]
    with (
        serving([str(index.path), "--model", str(run), "--images", str(data / "images")]) as (url, _),
        open_page(url) as (page, problems),
    ):
        shown = [page.evaluate(SEARCH, caption.caption)["ids"][0] for caption in asked]
    right = [caption.image_id for caption in asked]
    print(f"{len(asked)} held-out sentences typed, {len(store)} scenes: ", end="")
    print(f"R@1 of the page {_equal(shown, right):.1f}, of the model {_equal(models, right):.1f}; ", end="")
    print(f"the first image is the model's for {_equal(shown, models):.1f}%, problems of the page: {len(problems)}")


def _equal(names: list[str], others: list[str]) -> float:
    """The share of equal names, in percent."""
    return 100 * sum(one == other for one, other in zip(names, others, strict=True)) / len(names)


def _collection(images: int, demo: Path, folder: Path) -> tuple[list[str], list[str]]:
    """An index of copies with its model and links to photographs, as `xmodal serve` takes them, and questions."""
    matcher, copies, sentences = demo_parts(demo, images)
    store = RegionStore(demo / "data" / "test.h5")
    boxes = store.batch([0]).boxes
    assert boxes is not None, "the demo's regions have boxes"
    began = perf_counter()
    index = Index.build(matcher, Placed(copies.base, images, boxes), folder / "copies.index", cells=CELLS)  # type: ignore[arg-type]
    print(f"{images} images indexed in {perf_counter() - began:.0f} s: {index.describe_bytes()}")
    matcher.save_pretrained(folder / "model")
    photographs = list(find_images(demo / "data" / "images").values())
    (folder / "photographs").mkdir()
    for number, name in enumerate(index.ids):
        target = photographs[number % len(photographs)]
        (folder / "photographs" / f"{name}{target.suffix}").symlink_to(target.resolve())
    arguments = [str(index.path), "--model", str(folder / "model"), "--images", str(folder / "photographs")]
    return arguments, sentences


def _fast(repetitions: int, url: str, sentences: list[str], images: int) -> None:
    """What passes on the page from Enter to the painted answer, and to the proof that nothing is better."""
    asked = sentences[:: max(1, len(sentences) // (15 * repetitions))]
    with open_page(url) as (page, problems):
        page.evaluate(SEARCH, "a warm welcome")
        waited = [page.evaluate(SEARCH, sentence) for sentence in asked]
    for name, what in (("painted", "the painted answer"), ("settled", "the proof that nothing is better")):
        of_all = [each[name] for each in waited]
        told = f"p50 {median(of_all):.0f} ms, p95 {quantiles(of_all, n=20)[-1]:.0f} ms"
        print(f"{len(asked)} sentences typed, {images} images, from Enter to {what}: {told}", flush=True)
    if problems:
        raise ValueError(f"the page has problems: {problems[0]}")


def _many(url: str, sentences: list[str], exact: bool) -> None:
    """So many clients, each with a connection of its own, one question after the other."""
    seconds: list[float] = []
    errors: Counter[str] = Counter()
    until = monotonic() + SECONDS
    clients = [
        threading.Thread(target=_client, args=(url, sentences, number, exact, until, seconds, errors))
        for number in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    told = f"p50 {1000 * median(seconds):.0f} ms, p99 {1000 * quantiles(seconds, n=100)[-1]:.0f} ms"
    kind = "exact" if exact else "quick"
    print(
        f"{CLIENTS} clients for {SECONDS:.0f} s: {len(seconds)} {kind} answers, {told}, {errors.total()} errors; ",
        end="",
    )
    print(f"resident memory of the server {resident(url):.0f} MB", flush=True)
    if errors:
        raise ValueError(f"clients got errors: {dict(errors.most_common(3))}")


def _client(
    url: str, sentences: list[str], number: int, exact: bool, until: float, seconds: list[float], errors: Counter[str]
) -> None:
    import httpx

    choose = random.Random(number)
    with httpx.Client(base_url=url, timeout=SECONDS) as client:
        while monotonic() < until:
            began = perf_counter()
            try:
                params = {"text": choose.choice(sentences), "exact": exact}
                client.get("/api/search", params=params).raise_for_status()
            except httpx.HTTPError as error:
                errors[f"{type(error).__name__}: {error}"] += 1
            else:
                seconds.append(perf_counter() - began)
