"""Objects become regions the same way from COCO's own files and from the compact form."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from preprocess.coco_annotations import Compact, Official, main
from xmodal.data import RegionStore, Vocabulary, load_captions
from xmodal.data.atomic import locked

# image 7: two objects, the smaller one first; image 8: no object; image 9: one object.
OBJECTS = {7: [(90, [10, 20, 30, 40]), (1, [0, 0, 200, 50])], 8: [], 9: [(1, [50, 0, 50, 100])]}
SIZE = (200, 100)


@pytest.fixture
def official(tmp_path):
    instances = {
        "images": [{"id": i, "width": SIZE[0], "height": SIZE[1]} for i in (9, 8, 7, 6)],  # nobody describes 6
        "categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}, {"id": 44, "name": "bottle"}],
        "annotations": [
            {"image_id": image, "category_id": category, "bbox": box}
            for image, objects in OBJECTS.items()
            for category, box in objects
        ],
    }
    captions = {
        "annotations": [{"image_id": i, "id": 10 * i + n, "caption": "A cat."} for i in OBJECTS for n in (0, 1)]
    }
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    return tmp_path


def options(folder, **changes):
    files = {"instances": (folder / "instances.json",), "captions": (folder / "captions.json",)}
    return Official(**{**files, "output": folder / "out", "dev": 0, "test": 0, **changes})


def test_features_are_class_and_geometry_largest_first(official, capsys):
    main(options(official))
    store = RegionStore(official / "out" / "train.h5")
    assert store.image_id == ["7", "9"]
    assert store.dim == 3 + 5
    expected = [[1, 0, 0, 0, 0, 1, 0.5, 0.5], [0, 0, 1, 0.05, 0.2, 0.2, 0.6, 0.06]]
    np.testing.assert_allclose(store[0], expected, atol=1e-6)
    np.testing.assert_array_equal(store.boxes(0), store[0][:, 3:7])
    assert store.attributes["box_convention"] == "xyxy relative"
    assert store.validate() == []
    assert [c.caption_id for c in load_captions(official / "out" / "captions.jsonl")] == ["70", "71", "90", "91"]
    assert Vocabulary.load(official / "out" / "vocabulary.json").words[4:] == [".", "a", "cat"]
    printed = capsys.readouterr().out
    assert "4 images in the instances, 3 in the captions, 3 in both" in printed
    assert "left out for want of an object: 1 images with 2 captions" in printed


def test_only_the_largest_are_kept(official):
    main(options(official, max_regions=1))
    store = RegionStore(official / "out" / "train.h5")
    assert store[0][:, :3].tolist() == [[1, 0, 0]]


def test_the_whole_image_is_a_region_of_class_counts(official):
    main(options(official, whole_image=True, max_regions=1))
    store = RegionStore(official / "out" / "train.h5")
    counts = [np.log(2), 0, 0]  # one person; the toothbrush is not among the largest
    np.testing.assert_allclose(store[0], [[*counts, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 1, 0.5, 0.5]], atol=1e-6)
    np.testing.assert_array_equal(store.boxes(0)[0], [0, 0, 1, 1])
    assert store.validate() == []


def test_splits_are_drawn_and_do_not_overlap(official):
    instances = json.loads((official / "instances.json").read_text())
    instances["annotations"].append({"image_id": 8, "category_id": 1, "bbox": [0, 0, 9, 9]})
    (official / "instances.json").write_text(json.dumps(instances))
    drawn = []
    for seed in (0, 0, 1, 2, 3, 4):
        main(options(official, dev=1, test=1, seed=seed, overwrite=True))
        drawn.append(
            {split: RegionStore(official / "out" / f"{split}.h5").image_id for split in ("train", "dev", "test")}
        )
        assert sorted(itertools.chain(*drawn[-1].values())) == ["7", "8", "9"]
        captions = load_captions(official / "out" / "captions.jsonl")
        assert all(caption.image_id in drawn[-1][caption.split] for caption in captions)
    assert drawn[0] == drawn[1]
    assert len({str(draw) for draw in drawn}) > 1


def test_the_compact_form_gives_the_same_store(official):
    main(options(official))
    folder = official / "compact"
    folder.mkdir()
    (folder / "classes.json").write_text('["person", "bottle", "toothbrush"]')
    number = {1: 0, 44: 1, 90: 2}
    with (folder / "images.jsonl").open("w") as file:
        for image, objects in OBJECTS.items():
            record = {
                "image_id": image,
                "split": "train",
                "captions": [{"id": 10 * image + n, "caption": "A cat."} for n in (0, 1)],
                "class_id": [number[category] for category, _ in objects],
                "boxes": [[x / 200, y / 100, (x + w) / 200, (y + h) / 100] for _, (x, y, w, h) in objects],
            }
            file.write(json.dumps(record) + "\n")
    main(Compact(input=folder, output=official / "same"))
    one, other = (RegionStore(official / name / "train.h5") for name in ("out", "same"))
    np.testing.assert_array_equal(one.batch(range(len(one))).regions, other.batch(range(len(other))).regions)
    assert one.image_id == other.image_id
    for name in ("captions.jsonl", "vocabulary.json"):
        assert (official / "out" / name).read_text() == (official / "same" / name).read_text()


def test_bad_input_is_named(official):
    with pytest.raises(ValueError, match="3 images are too few for 2 dev and 2 test"):
        main(options(official, dev=2, test=2))
    with pytest.raises(ValueError, match=r"captions\.json lacks \['images', 'categories'\]"):
        main(options(official, instances=(official / "captions.json",)))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        main(options(official, captions=(official / "nowhere.json",)))
    (official / "captions.json").write_text("{")
    with pytest.raises(ValueError, match=r"captions\.json is not JSON"):
        main(options(official))
    (official / "classes.json").write_text('["person"]')
    (official / "images.jsonl").write_text('{"image_id": 1}')
    with pytest.raises(ValueError, match=r"images\.jsonl, line 1: KeyError\('split'\)"):
        main(Compact(input=official, output=official / "out"))


COMPACT = {
    "image_id": 7,
    "split": "val",
    "captions": [{"id": number, "caption": "a dog"} for number in range(4)],
    "class_id": [1],
    "boxes": [[0, 0, 0.5, 0.5]],
}


@pytest.fixture
def compact(tmp_path):
    """Makes the stores of one image of the compact form, with three classes."""

    def made(**change):
        (tmp_path / "classes.json").write_text('["cat", "dog", "owl"]')
        (tmp_path / "images.jsonl").write_text(json.dumps({**COMPACT, **change}) + "\n")
        main(Compact(input=tmp_path, output=tmp_path / "out"))

    return made


def test_the_compact_form_has_splits_by_our_names(compact, tmp_path):
    compact()
    assert [path.name for path in (tmp_path / "out").glob("*.h5")] == ["dev.h5"]
    assert load_captions(tmp_path / "out" / "captions.jsonl", "dev")[0].image_id == "7"
    assert RegionStore(tmp_path / "out" / "dev.h5")[0].tolist() == [[0, 1, 0, 0, 0, 0.5, 0.5, 0.25]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_id": [-1]}, "class_id has -1, wanted whole numbers from 0 to 2"),
        ({"class_id": [3]}, "class_id has 3, wanted"),
        ({"class_id": [0.5]}, "class_id has 0.5, wanted"),
        ({"class_id": [True]}, "class_id has True, wanted"),
        ({"class_id": [1, 2]}, "wanted two lists of the same length"),
        ({"class_id": "1"}, "wanted two lists of the same length"),
        ({"boxes": [[0, 0, 1]]}, r"the box \[0, 0, 1\] is not x1 y1 x2 y2"),
        ({"boxes": [[0, 0, float("nan"), 1]]}, r"the box \[0, 0, nan, 1\] is not"),
        ({"boxes": [[0, 0, 10**400, 1]]}, "the box .* is not"),
        ({"boxes": [[0, 0, "1", 1]]}, "the box .* is not"),
        ({"captions": "A dog."}, "string indices"),
        ({"captions": [{"id": 1, "caption": ["a", "dog"]}]}, "is no text"),
        ({"split": "../val"}, "is no name for a file"),
        ({"split": None}, "AttributeError"),
    ],
)
def test_what_the_compact_form_says_is_not_believed(compact, tmp_path, change, message):
    with pytest.raises(ValueError, match=rf"images\.jsonl, line 1: .*{message}"):
        compact(**change)
    assert not (tmp_path / "out").exists()


def test_classes_are_a_list(compact, tmp_path):
    compact()
    (tmp_path / "classes.json").write_text('"cat"')
    with pytest.raises(ValueError, match=r"classes\.json holds 'cat', wanted a list"):
        main(Compact(input=tmp_path, output=tmp_path / "other"))


def test_a_second_program_is_told_who_writes(official):
    with locked(official / "out" / "captions.jsonl"), pytest.raises(BlockingIOError, match="is being written by"):
        main(options(official))
    main(options(official))
    assert (official / "out" / "vocabulary.json").is_file()
