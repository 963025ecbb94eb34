"""The page on the architecture: its examples are short, run, and do what the page says of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from tiny_data import DIM, make_data

from xmodal.data import Caption, RegionStore, RegionStoreWriter, Vocabulary, load_captions, save_captions
from xmodal.model import Matcher
from xmodal.training.config import DataConfig, ModelConfig, TrainConfig
from xmodal.training.trainer import train

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
EXAMPLES = dict(re.findall(r"^## (Add [^\n]+)\n.*?^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE))


def test_every_kind_of_part_has_an_example_of_at_most_fifteen_lines():
    kinds = ("a head", "an encoder", "an objective", "a source of images", "a layout of foreign features")
    assert list(EXAMPLES) == [f"Add {kind}" for kind in kinds]
    for name, code in EXAMPLES.items():
        assert len([line for line in code.splitlines() if line.strip()]) <= 15, name


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The examples in one file that another process can import."""
    python = {name: code for name, code in EXAMPLES.items() if "layout" not in name}
    (tmp_path / "my_parts.py").write_text("\n\n".join(python.values()))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    yield "my_parts"
    sys.modules.pop("my_parts", None)


def config(folder: Path, output: Path, **options) -> TrainConfig:
    image = options.pop("image", {"name": "regions", "dim": 8})
    head = options.pop("head", {"name": "scan"})
    model = ModelConfig(image=image, text={"name": "gru", "dim": 8, "word_dim": 4}, head=head)
    data = DataConfig(folder=folder, **options.pop("data", {}))
    return TrainConfig(data=data, model=model, output=output, epochs=1, batch_size=16, progress=False, **options)


def add_boxes(folder: Path) -> None:
    """The same stores with boxes, which the encoder of the page wants."""
    for split in ("train", "dev"):
        old = RegionStore(folder / f"{split}.h5")
        rows = [(name, old[index]) for index, name in enumerate(old.image_id)]
        options = {"dim": DIM, "max_regions": 6, "extractor": "by hand", "overwrite": True}
        with RegionStoreWriter(folder / f"{split}.h5", box_convention="xyxy relative", **options) as writer:
            for name, regions in rows:
                writer.write(name, regions.numpy(), boxes=[[0.1, 0.2, 0.5, 0.6]] * len(regions))


def test_the_parts_of_the_page_are_trained_together_and_loaded_again(parts, tmp_path):
    folder = make_data(tmp_path)
    add_boxes(folder)
    image, head = {"name": f"{parts}:Located", "dim": 8}, {"name": f"{parts}:MaxSim", "start": 2.0}
    objective = {"name": f"{parts}:Margin", "margin": 0.3}
    train(config(folder, tmp_path / "run", image=image, head=head, objective=objective))
    matcher = Matcher.from_pretrained(tmp_path / "run" / "best")
    assert type(matcher.head).__name__ == "MaxSim"
    dev = RegionStore(folder / "dev.h5")
    sentences = [caption.caption for caption in load_captions(folder / "captions.jsonl", "dev")]
    assert matcher.score_all(dev, sentences).shape == (len(dev), len(sentences))


def test_the_source_of_the_page_feeds_the_towers(parts, tmp_path):
    captions = [Caption(str(n), f"{split} {n}", "a dog", split) for split in ("train", "dev") for n in range(4)]
    save_captions(tmp_path / "captions.jsonl", captions)
    Vocabulary(["a", "dog"]).save(tmp_path / "vocabulary.json")
    train(config(tmp_path, tmp_path / "run", data={"source": {"name": f"{parts}:Noise"}}))


def test_the_layout_of_the_page_is_read(tmp_path):
    import base64

    import numpy as np

    from preprocess import layouts
    from preprocess.features import Config, main

    code = EXAMPLES["Add a layout of foreign features"]
    known = {name: dict(getattr(layouts, name)) for name in ("TSV_COLUMNS", "KEYS")}
    try:
        exec(compile(code, str(PAGE), "exec"), {})
        features, boxes = np.ones((2, 4), np.float32), np.ones((2, 4), np.float32)
        encoded = [base64.b64encode(array.tobytes()).decode() for array in (features, boxes)]
        (tmp_path / "mine.tsv").write_text("\t".join(["7", *encoded, "2", "9", "9"]) + "\n")
        main(Config(input=(tmp_path / "mine.tsv",), output=tmp_path / "train.h5", layout="mine", dim=4))
        assert RegionStore(tmp_path / "train.h5").batch([0]).regions.tolist() == features[None].tolist()
    finally:
        for name, table in known.items():
            getattr(layouts, name).clear()
            getattr(layouts, name).update(table)


def test_every_link_leads_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE.read_text()):
        assert (PAGE.parent / link).exists(), link
