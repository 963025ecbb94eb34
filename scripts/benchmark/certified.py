"""Are certified answers those of scoring everything? A run's test captions asked of an index of all its images.

    python -m scripts.demo --output demo_output
    python -m scripts.benchmark certified --model demo_output/demo_scan/best --data demo_output/data

Every answer is compared with the ten best of all scores, which the head computes of every image.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from xmodal.data import RegionStore, load_captions
from xmodal.model import Matcher
from xmodal.search.index import RESCORED, TOP, Index

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from xmodal.search.hits import Found

QUESTIONS = 500
SPLITS = ("train", "dev", "test")
EQUAL = 2e-6
"""What scores of the same pair may differ by, if it was scored beside others."""


def run(
    repetitions: int, *, model: Path = Path("demo_output/demo_scan/best"), data: Path = Path("demo_output/data")
) -> None:
    """Index, ask, compare and print; there is nothing to repeat."""
    matcher = Matcher.from_pretrained(model)
    stores = [RegionStore(data / f"{split}.h5") for split in SPLITS]
    sentences = [caption.caption for caption in load_captions(data / "captions.jsonl", "test")]
    generator = torch.Generator().manual_seed(0)
    asked = [sentences[place] for place in torch.randperm(len(sentences), generator=generator)[:QUESTIONS].tolist()]
    ids = [name for store in stores for name in store.image_id]
    scores = torch.cat([matcher.score_all(store, asked) for store in stores]).T
    with tempfile.TemporaryDirectory() as folder:
        index = Index.build(matcher, stores[0], Path(folder) / "index")
        for store in stores[1:]:
            index.add(matcher, store)
        print(f"{len(index)} images: {index.describe_bytes()}")
        for exact in (True, False):
            start = perf_counter()
            found = index.find(matcher, asked, TOP, exact=exact, words=False)
            seconds = (perf_counter() - start) / len(asked)
            print(f"{'exact' if exact else f'{RESCORED} candidates rescored'}: {1000 * seconds:.0f} ms a sentence")
            print(compared(scores, ids, found))


def compared(scores: Tensor, ids: Sequence[str], found: Sequence[Found]) -> str:
    """What answers have of the best of all scores, `(sentence, image)`, in words.

    >>> from xmodal.search.hits import Found, Hit
    >>> hits = [Hit("7", 1.0, certified=True)]
    >>> print(compared(torch.tensor([[1.0, 0.5]]), ["7", "8"], [Found(hits, 1, 2, None)]))
    1 of 1 answers have the scores of the best of all, 1 are certified; 100.00% of the best are found
    50.0% of the images scored from floats in the mean, 50.0% at most
    """
    same = certified = held = 0
    for row, each in zip(scores, found, strict=True):
        best = row.topk(len(each.hits))
        same += torch.allclose(best.values, torch.tensor([hit.score for hit in each.hits]), rtol=0, atol=EQUAL)
        certified += all(hit.certified for hit in each.hits)
        held += len({ids[place] for place in best.indices.tolist()} & {hit.image_id for hit in each.hits})
    shares = [100 * each.rescored / each.searched for each in found]
    wanted = sum(len(each.hits) for each in found)
    return (
        f"{same} of {len(found)} answers have the scores of the best of all, {certified} are certified; "
        f"{100 * held / wanted:.2f}% of the best are found\n"
        f"{sum(shares) / len(shares):.1f}% of the images scored from floats in the mean, {max(shares):.1f}% at most"
    )
