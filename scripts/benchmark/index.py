"""An index of a million images: how long exact and inexact answers take, how many are right, and what it all occupies.

    python -m scripts.demo --output demo_output
    python -m scripts.benchmark index --images 1000000

The images are copies of the demo's real embeddings (36 regions, 256 dims), each with noise of its own: differences of
other real regions, so that it varies as they do. They are made block by block, and made again when one is scored, so
that no float is on the disk. Questions are captions of the demo's test split.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from scripts.benchmark.measure import in_fresh_process, memory
from xmodal.data import RegionBatch, RegionStore, load_captions
from xmodal.encoders.base import EncodedSet, ImageEncoder
from xmodal.model import Matcher
from xmodal.search import native
from xmodal.search.embed import query_vectors
from xmodal.search.index import RESCORED, TOP, Index

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from xmodal.search.hits import Found

NOISE = 0.3
"""Length of the noise that is added to a vector of length one."""
POOL = 1 << 16
"""Different noises; which of them a region gets depends on the image and the region."""
SEGMENT = 1 << 15
CELLS = 1024
BYTES = 12_100
SECONDS = 6e-4
"""What an image takes on the disk, and in building, on two cores that nobody else uses."""


class Passed(ImageEncoder):
    """Takes embeddings for what they are."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, batch: RegionBatch) -> EncodedSet:
        """Nothing is left to be done."""
        return EncodedSet(batch.regions, batch.region_mask)


class Copies:
    """So many copies of some embedded images, with noise.

    Args:
        base: `(image, region, dim)`, of length one.
        count: how many copies.
    """

    extractor = None

    def __init__(self, base: Tensor, count: int) -> None:
        self.base, self.count, self.image_id = base, count, [f"{number:07}" for number in range(count)]
        self.sizes = {"dim": base.shape[2]}
        rows = base.flatten(0, 1)
        generator = torch.Generator().manual_seed(0)
        first, second = torch.randint(len(rows), (2, POOL), generator=generator)
        self.noise = NOISE * torch.nn.functional.normalize(rows[first] - rows[second] + 1e-6, dim=1)

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Sequence[int] | Tensor) -> RegionBatch:
        """Some of them."""
        images = torch.as_tensor(indices)
        base = self.base[images % len(self.base)]
        # Two odd numbers without a common divisor spread the noises; the same image gets the same ones again.
        which = (images[:, None] * 7919 + torch.arange(base.shape[1]) * 104_729 + images[:, None] // 8) % POOL
        regions = torch.nn.functional.normalize(base + self.noise[which], dim=2)
        return RegionBatch(regions, torch.ones(regions.shape[:2], dtype=torch.bool))


def run(repetitions: int, *, images: int = 1_000_000, demo: Path = Path("demo_output")) -> None:
    """Build, search and print; the index is removed afterwards."""
    print(f"{images} images: about {images * BYTES / 1e9:.1f} GB of disk and {images * SECONDS / 60:.0f} minutes")
    folder = Path(tempfile.mkdtemp(prefix="index", dir=demo))
    if shutil.disk_usage(folder).free < 1.2 * images * BYTES:
        folder.rmdir()
        raise OSError(f"{demo} has no room for {images * BYTES / 1e9:.1f} GB; ask for fewer --images")
    try:
        start = perf_counter()
        built = in_fresh_process(_build, demo, folder, images)
        print(f"built in {perf_counter() - start:.0f} s: {built}")
        print(*in_fresh_process(_search, demo, folder, images, repetitions), sep="\n")
    finally:
        shutil.rmtree(folder)


def demo_parts(demo: Path, images: int) -> tuple[Matcher, Copies, list[str]]:
    """The demo's matcher for embeddings, copies of its images, and questions."""
    run, data = demo / "demo_scan" / "best", demo / "data"
    trained = Matcher.from_pretrained(run)
    options: dict[str, Any] = json.loads((run / "config.json").read_text())
    dim = trained.image_encoder.dim
    image = {"name": "scripts.benchmark.index:Passed", "dim": dim}
    matcher = Matcher(image, options["text"], options["head"], vocabulary=options["vocabulary"])
    matcher.text_encoder = trained.text_encoder
    stores = [RegionStore(data / f"{split}.h5") for split in ("train", "dev", "test")]
    base = torch.cat([trained.embed_store(store).items for store in stores])
    captions = load_captions(data / "captions.jsonl", "test")
    return matcher.eval(), Copies(base, images), [caption.caption for caption in captions]


def _build(demo: Path, folder: Path, images: int) -> str:
    matcher, copies, _ = demo_parts(demo, images)
    index = Index.build(
        matcher,
        copies,  # type: ignore[arg-type]
        folder / "index",
        floats=False,
        cells=min(CELLS, images // 64),
        segment_items=SEGMENT,
        progress=True,
    )
    return f"{index.describe_bytes()}; peak of resident memory {memory('VmHWM') / 2**20:.2f} GB"


def _search(demo: Path, folder: Path, images: int, repetitions: int) -> list[str]:
    matcher, copies, sentences = demo_parts(demo, images)
    start = perf_counter()
    index = Index.open(folder / "index", source=copies)  # type: ignore[arg-type]
    lines = [f"opened in {1000 * (perf_counter() - start):.1f} ms"]
    asked = sentences[:: len(sentences) // (3 * repetitions)][: 3 * repetitions]
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    answers = {}
    for exact in (True, False):  # which reads all of the files, so that the system has them at hand afterwards
        line, answers[exact] = _timed(index, matcher, asked, exact)
        lines.append(line)
    pairs = zip(answers[False], answers[True], strict=True)
    right = sum(len({h.image_id for h in a.hits} & {h.image_id for h in b.hits}) for a, b in pairs)
    lines.append(f"inexact answers hold {100 * right / (TOP * len(asked)):.1f}% of the exact top {TOP}")
    certain = sum(hit.certified for each in answers[True] for hit in each.hits)
    lines.append(f"{certain} of {TOP * len(asked)} exact hits are certified")
    return [*lines, *_stages(index, matcher, asked)]


def _timed(index: Index, matcher: Matcher, asked: list[str], exact: bool) -> tuple[str, list[Found]]:
    """How long answers take, in words, and the answers."""
    index.find(matcher, asked[:1], exact=exact, words=False)  # what is read for the first time
    name, seconds, answers, began = "exact" if exact else "inexact", [], [], process_time()
    for sentence in tqdm(asked, name, unit="sentence", leave=False):
        start = perf_counter()
        answers += index.find(matcher, [sentence], exact=exact, words=False)
        seconds.append(perf_counter() - start)
    computed = (process_time() - began) / len(asked)
    rescored = 100 * sum(each.rescored for each in answers) / sum(each.searched for each in answers)
    line = (
        f"{name}: p50 {median(seconds):.3f} s, p90 {quantiles(seconds, n=10)[-1]:.3f} s, {computed:.3f} s of the "
        f"processors; {rescored:.4f}% scored from floats; resident at most {memory('VmHWM') / 2**20:.2f} GB"
    )
    return line, answers


def _stages(index: Index, matcher: Matcher, asked: list[str]) -> list[str]:
    """What an exact answer spends its time on."""
    stages: dict[str, list[float]] = {}
    ranking, items = index.ranking(matcher), index.collection.admitted(None)
    for sentence in tqdm(asked, "stages", unit="sentence", leave=False):
        start = perf_counter()

        def done(stage: str) -> None:
            nonlocal start
            stages.setdefault(stage, []).append(perf_counter() - start)
            start = perf_counter()

        (query,) = query_vectors(matcher, matcher.embed_captions([sentence]), "images")
        done("embedding the sentence")
        (few,) = ranking.candidates([query], items, RESCORED)
        done("candidates")
        least = float(ranking.scores(query, few).topk(TOP).values[-1])
        done("their scores")
        reached = ranking.reaching(query, items, least)
        done("bounds")
        ranking.scores(query, reached)
        done("scores of what is left")
    each = {stage: median(seconds) for stage, seconds in stages.items()}
    arrays = [segment.arrays for segment in index.collection.segments]
    read = sum(a[name].nbytes for a in arrays for name in ("lead", "rest", "steps", "errors", "tails", "reach"))
    made = "compiled" if native.library() is not None else "by torch: there is no C++ compiler"
    return [
        "an exact answer: " + ", ".join(f"{stage} {seconds:.3f} s" for stage, seconds in each.items()),
        f"bounds ({made}): {1e6 * each['bounds'] / len(items):.2f} microseconds an image by "
        f"{torch.get_num_threads()} threads; of {read / 1e9:.1f} GB they read what it takes to exclude an image",
        f"most of the time goes into {max(each, key=each.__getitem__)}",
    ]
