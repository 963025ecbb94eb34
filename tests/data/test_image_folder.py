"""Finding photographs: what is taken, what is ignored and why, and that pictures find what extraction took."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from xmodal.data import image_folder
from xmodal.data.image_folder import find_images, list_images, locate_images


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_photographs_are_found_whatever_their_extension_and_depth(tmp_path):
    names = ["a.JPG", "b.jpeg", "c.tif", "d.TIFF", "e.avif", "f.jfif", "g.ppm", "h.pgm", "i.webp", "j.gif", "k.bmp"]
    touch(tmp_path, *names, "deep/er/l.PNG")
    assert sorted(path.stem for path in list_images(tmp_path).images) == list("abcdefghijkl")
    assert list_images(tmp_path).told() == ""


def test_what_is_ignored_is_counted_by_its_reason(tmp_path):
    touch(
        tmp_path,
        "a.jpg",
        ".hidden.jpg",
        "._a.jpg",
        ".cache/b.jpg",
        "__MACOSX/a.jpg",
        "notes.txt",
        "Thumbs.db",
        "README",
    )
    touch(tmp_path, "folder.jpg/inside.png")
    (tmp_path / "nowhere.jpg").symlink_to(tmp_path / "gone.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    listing = list_images(tmp_path)
    assert [path.name for path in listing.images] == ["a.jpg", "inside.png"]
    assert listing.ignored == {
        "hidden": 3,
        "in __MACOSX": 1,
        ".txt": 1,
        ".db": 1,
        "without an extension": 1,
        "folders named like images": 1,
        "links that lead nowhere": 1,
        "that are no regular files": 1,
    }
    assert listing.told().startswith("ignored 10 files: ")


def test_links_to_folders_are_followed_once(tmp_path):
    touch(tmp_path, "elsewhere/a.jpg", "photos/b.jpg")
    photos = tmp_path / "photos"
    (photos / "circle").symlink_to(photos)
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    (photos / "linked_again").symlink_to(tmp_path / "elsewhere")
    assert [path.relative_to(photos).as_posix() for path in list_images(photos).images] == ["b.jpg", "linked/a.jpg"]


def test_heic_counts_only_with_its_plug_in(tmp_path, monkeypatch):
    touch(tmp_path, "a.heic")
    monkeypatch.setattr(image_folder, "IMAGE_SUFFIXES", frozenset({".jpg"}))
    with pytest.raises(FileNotFoundError, match=r"no image in .*ignored 1 files: 1 \.heic \(pip install pillow-heif"):
        find_images(tmp_path)
    monkeypatch.setattr(image_folder, "IMAGE_SUFFIXES", frozenset({".jpg", ".heic"}))
    assert list(find_images(tmp_path)) == ["a"]


def test_images_are_located_as_they_were_named(tmp_path):
    touch(tmp_path, "val2014/COCO_val2014_000000391895.jpg", "more/B.JPG", "1.2.tif")
    located = locate_images(tmp_path, ["391895", "COCO_val2014_000000391895", "B", "1.2"])
    assert {image_id: path.name for image_id, path in located.items()} == {
        "391895": "COCO_val2014_000000391895.jpg",
        "COCO_val2014_000000391895": "COCO_val2014_000000391895.jpg",
        "B": "B.JPG",
        "1.2": "1.2.tif",
    }
    with pytest.raises(FileNotFoundError, match="has no image 'zebra'"):
        locate_images(tmp_path, ["B", "zebra"])


def test_two_files_of_one_image_are_named(tmp_path):
    touch(tmp_path, "a.jpg", "more/a.png", "b.jpg")
    assert locate_images(tmp_path, ["b"])["b"].name == "b.jpg"
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png are both image 'a'"):
        locate_images(tmp_path, ["a"])


def test_what_regions_takes_pictures_show(tmp_path):
    from xmodal.search.pictures import find_image

    (tmp_path / "deep").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "deep" / "a.TIF")
    assert find_image(tmp_path, "a") == find_images(tmp_path)["a"]
