"""Image towers of every kind train, and are evaluated and searched with: from pixels, from boxes, over padding."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from torch import nn

from scripts.attack.kills import run_until_event
from xmodal.cli import main
from xmodal.data import Caption, RegionBatch, RegionStore, RegionStoreWriter, Vocabulary, save_captions
from xmodal.encoders.base import EncodedSet, ImageEncoder
from xmodal.entry import ends_in_one_line
from xmodal.model import IMAGE_ENCODERS, Matcher
from xmodal.training.config import DataConfig, ModelConfig, TrainConfig, to_dict
from xmodal.training.matching import MatchingTask
from xmodal.training.trainer import train

COLORS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230), "white": (250, 250, 250)}
PIXELS = {"name": "pixels", "size": 32, "resize": 32}
TOWER = {"name": "pixels", "dim": 8, "network": "mobilenet_v3_small", "weights": None}
TEXT = {"name": "gru", "dim": 8, "word_dim": 4}


@pytest.fixture
def photographs(tmp_path):
    """Photographs of one color in a folder of their own, captions that name it, and no region store."""
    folder = tmp_path / "data"
    (folder / "photos").mkdir(parents=True)
    captions = []
    for split in ("train", "dev"):
        for name, color in COLORS.items():
            Image.new("RGB", (48, 40), color).save(folder / "photos" / f"{split}-{name}.jpg")
            captions.append(Caption(f"{split}-{name}", f"{split} {name}", f"a {name} wall", split))
    save_captions(folder / "captions.jsonl", captions)
    Vocabulary(["a", "wall", *COLORS]).save(folder / "vocabulary.json")
    return folder


@pytest.fixture
def pixels(photographs, tmp_path):
    return TrainConfig(
        output=tmp_path / "run",
        data=DataConfig(photographs, source={**PIXELS, "folder": str(photographs / "photos")}),
        model=ModelConfig(TOWER, TEXT, {"name": "scan"}),
        epochs=1,
        batch_size=4,
        progress=False,
    )


def test_from_pixels_a_matcher_is_trained_evaluated_and_searched_with(pixels, photographs, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(json.dumps(to_dict(pixels)))
    main(["train", "--recipe", str(tmp_path / "recipe.yaml"), "--data.source.resize", "40"])
    run, data = str(pixels.output), ["--data.folder", str(photographs), "--data.split", "dev"]
    assert Matcher.from_pretrained(run).extractor == {"name": "pixels", "size": 32, "resize": 40, "square": False}
    best = [json.loads(line) for line in (pixels.output / "log.jsonl").read_text().splitlines()][-1]["validation"]
    main(["evaluate", run, *data, "--json", str(tmp_path / "results.json")])
    assert json.loads((tmp_path / "results.json").read_text())[run]["rsum"] == best["rsum"]
    photos = str(photographs / "photos")
    main(
        ["search", run, "a red wall", *data, "--images", photos, "--output", str(tmp_path / "found.png"), "--top", "2"]
    )
    assert (tmp_path / "found.png").exists()
    alone = str(pixels.output / "best")
    main(["evaluate", alone, *data, "--data.images", photos, "--json", str(tmp_path / "alone.json")])
    assert json.loads((tmp_path / "alone.json").read_text())[alone]["rsum"] == best["rsum"]
    assert "R@1" in capsys.readouterr().out


def test_the_command_line_turns_a_recipe_for_regions_into_one_for_pixels(pixels, photographs, change, tmp_path):
    regions = change(pixels, data=DataConfig(photographs), model__image={"name": "regions", "dim": 8})
    (tmp_path / "recipe.yaml").write_text(json.dumps(to_dict(regions)))
    source = ["--data.source.name", "pixels", "--data.source.folder", str(photographs / "photos")]
    source += ["--data.source.size", "32"]
    tower = ["--model.image.name", "pixels", "--model.image.network", "mobilenet_v3_small"]
    main(["train", "--recipe", str(tmp_path / "recipe.yaml"), *source, *tower, "--model.image.weights", "None"])
    assert Matcher.from_pretrained(pixels.output).image_encoder.dim == 8


def test_photographs_and_pixels_score_as_their_folder_does(pixels, photographs):
    task = MatchingTask(pixels, torch.device("cpu"))
    source, files = task.validation.source, sorted((photographs / "photos").glob("dev-*"))
    wanted = task.model.score_all(source, ["a red wall", "a wall"])
    by_name = dict(zip(source.image_id, wanted, strict=True))
    scores = task.model.score(files, ["a red wall", "a wall"])
    torch.testing.assert_close(scores, torch.stack([by_name[file.stem] for file in files]), atol=1e-5, rtol=0)
    arrays = source.batch(range(4)).pixels
    torch.testing.assert_close(task.model.score(arrays, ["a red wall", "a wall"]), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(task.model.score(arrays[1].numpy(), "a wall"), wanted[1:2, 1:], atol=1e-5, rtol=0)


def test_workers_read_the_same_pixels(pixels, change, read_log):
    runs = [change(pixels, output=pixels.output / str(n), data__workers=n) for n in (0, 1)]
    for run in runs:
        train(run)
    assert read_log(runs[0].output) == read_log(runs[1].output)


def test_a_damaged_photograph_ends_a_program_in_one_line_whoever_reads_it(pixels, change, photographs, capfd):
    path = photographs / "photos" / "train-blue.jpg"
    path.write_bytes(path.read_bytes()[:200])

    with pytest.raises(ValueError, match=r"train-blue\.jpg") as alone:
        train(pixels)

    def program():
        with ends_in_one_line("xmodal train", []):
            train(change(pixels, data__workers=2))

    assert run_until_event(program, pixels.output, seconds=300)[0] == 2
    told = [line for line in capfd.readouterr().err.splitlines() if "xmodal" in line or "Traceback" in line]
    assert told == [f"xmodal train: {' '.join(str(alone.value).split())}"]


def test_regions_cannot_be_dropped_from_pixels(pixels, change):
    with pytest.raises(ValueError, match=r"data.drop_regions is 0.2, but PixelFolder gives no regions"):
        train(change(pixels, data__drop_regions=0.2))


def test_a_source_without_its_folder_is_refused(pixels, change):
    with pytest.raises(ValueError, match="image source 'pixels' needs the option 'folder'"):
        train(change(pixels, data__source=PIXELS))


class Located(ImageEncoder):
    """Regions that know where they are."""

    def __init__(self, input_dim: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.look, self.place = nn.Linear(input_dim, dim), nn.Linear(4, dim)

    def forward(self, batch: RegionBatch) -> EncodedSet:
        return EncodedSet(self.look(batch.regions) + self.place(batch.boxes), batch.region_mask)


class Contextual(ImageEncoder):
    """A transformer over regions."""

    def __init__(self, input_dim: int, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.look = nn.Linear(input_dim, dim)
        self.among = nn.TransformerEncoderLayer(dim, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, batch: RegionBatch) -> EncodedSet:
        items = self.among(self.look(batch.regions), src_key_padding_mask=~batch.region_mask)
        return EncodedSet(items, batch.region_mask)


@pytest.fixture
def boxed(photographs):
    """The same captions about images that differ in nothing but where their regions are, and in how many there are."""
    for split in ("train", "dev"):
        with RegionStoreWriter(photographs / f"{split}.h5", dim=4, extractor="by hand") as writer:
            for number, name in enumerate(COLORS):
                corner = [10.0 * number, 0.0, 10.0 * number + 10, 20.0]
                count = 1 + number
                writer.write(f"{split}-{name}", [[1.0] * 4] * count, [corner] * count, image_size=(40, 20))
    return photographs


def test_boxes_reach_an_encoder_of_ones_own_and_train_it(boxed, change, pixels):
    config = change(
        pixels,
        data=DataConfig(boxed),
        model=ModelConfig({"name": f"{__name__}:Located", "dim": 8}, TEXT, {"name": "scan"}),
        batch_size=2,
    )
    before = {name: value.clone() for name, value in MatchingTask(config, torch.device("cpu")).model.named_parameters()}
    train(config)
    matcher = Matcher.from_pretrained(config.output)
    assert type(matcher.image_encoder) is Located
    store = RegionStore(boxed / "dev.h5")
    scores = matcher.score_all(store, ["a red wall"])
    assert len(scores.unique()) == len(store), "nothing but the boxes tells these images apart"
    assert not torch.equal(matcher.image_encoder.place.weight, before["image_encoder.place.weight"])


def test_a_transformer_over_regions_does_not_see_its_neighbors_padding(boxed, monkeypatch):
    monkeypatch.setitem(IMAGE_ENCODERS, "contextual", Contextual)
    torch.manual_seed(0)
    matcher = Matcher({"name": "contextual", "input_dim": 4, "dim": 8}, TEXT, {"name": "scan"}, ["a", "red", "wall"])
    store = RegionStore(boxed / "dev.h5")
    together = matcher.score_all(store, ["a red wall", "a wall"])
    for image in range(len(store)):
        alone = matcher.score_all(store, ["a red wall", "a wall"], images=range(image, image + 1))
        torch.testing.assert_close(alone, together[image : image + 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(matcher.score(store[image], ["a red wall", "a wall"]), alone, atol=1e-5, rtol=0)
    batch = store.batch(range(len(store)))
    tokens, word_mask = matcher.tokenizer(["a red wall", "a wall"])
    with torch.no_grad():
        matcher.eval()
        torch.testing.assert_close(matcher(batch.regions, tokens, batch.region_mask, word_mask), together)


def test_boxes_reach_an_encoder_from_wherever_images_come(boxed, tmp_path, monkeypatch):
    """From a store, from a photograph by an extractor, for a picture of where words look."""
    from xmodal.encoders import extractors
    from xmodal.search.photograph import describe_scores
    from xmodal.search.retrieve import explain_pair

    found = extractors.Regions(torch.ones(2, 4), torch.tensor([[10.0, 0.0, 20.0, 20.0]] * 2))

    class Extractor:
        def __call__(self, images):
            return [found for _ in images]

    monkeypatch.setitem(extractors.EXTRACTORS, "by hand", Extractor)
    torch.manual_seed(0)
    image = {"name": f"{__name__}:Located", "input_dim": 4, "dim": 8}
    matcher = Matcher(image, TEXT, {"name": "scan"}, ["a", "red", "wall"], extractor="by hand")
    store = RegionStore(boxed / "dev.h5")
    green = store.index("dev-green")
    wanted = matcher.score_all(store, ["a wall"])[[green]]
    torch.testing.assert_close(matcher.score(store.batch([green]), "a wall"), wanted)
    Image.new("RGB", (40, 20)).save(tmp_path / "7.png")
    torch.testing.assert_close(matcher.score(tmp_path / "7.png", "a wall"), wanted)
    torch.testing.assert_close(
        matcher.score([store.batch([0, green]), tmp_path / "7.png"], "a wall")[1:], wanted[[0, 0]]
    )
    assert describe_scores(matcher, found, (40, 20), ["a wall"]) == [f"{wanted.item():8.4f}  a wall"]
    explain_pair(matcher, store, "dev-green", tmp_path / "7.png", "a wall", tmp_path / "attention.png")
    assert (tmp_path / "attention.png").exists()
