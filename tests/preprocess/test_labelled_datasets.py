"""The four data sets from lists of their true layout and size, cut and wrong ones refused; folders; features."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from preprocess.labelled_datasets import (
    CUB,
    SOP,
    Cars,
    Count,
    Features,
    Folder,
    InShop,
    check_files,
    count_splits,
    main,
    read_cars,
    read_cub,
    read_in_shop,
    read_sop,
    unpack,
)
from preprocess.skipping import embed_good
from xmodal.data.labelled import LabelledImage, check_class_disjoint, load_index, load_labelled


def shared_among(images, classes):
    """Class numbers from 1 on, for images that are shared among classes about equally."""
    return sorted(1 + image % classes for image in range(images))


def cub_lists(folder):
    """CUB_200_2011 as it comes, without the images themselves."""
    root = folder / "CUB_200_2011"
    root.mkdir(parents=True)
    labels = shared_among(5864, 100) + [100 + label for label in shared_among(5924, 100)]
    names = [f"{label:03}.Bird_{label}/Bird_{label}_{number:04}.jpg" for number, label in enumerate(labels, 1)]
    (root / "images.txt").write_text("".join(f"{number} {name}\n" for number, name in enumerate(names, 1)))
    (root / "image_class_labels.txt").write_text(
        "".join(f"{number} {label}\n" for number, label in enumerate(labels, 1))
    )
    return root


def add_images(root, paths):
    """Empty files: that they are there is all that is looked at."""
    for parent in {Path(path).parent for path in paths}:
        (root / parent).mkdir(parents=True, exist_ok=True)
    for path in paths:
        (root / path).touch()


def cub_images(root):
    return [f"images/{line.split()[1]}" for line in (root / "images.txt").read_text().splitlines()]


CAR_LABELS = shared_among(8054, 98) + [98 + label for label in shared_among(8131, 98)]


def save_mat(path, key, names, labels):
    """Annotations as a MATLAB struct array."""
    scipy_io = pytest.importorskip("scipy.io")
    cars = np.zeros(len(names), dtype=[(key, object), ("class", object)])
    cars[key], cars["class"] = names, labels
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy_io.savemat(path, {"annotations": cars})


def sop_lists(folder):
    root = folder / "Stanford_Online_Products"
    root.mkdir()
    first = 1
    for split, images, classes in (("train", 59551, 11318), ("test", 60502, 11316)):
        lines = [
            f"{number} {first + label - 1} 1 bicycle_final/{first + label - 1}_{number}.JPG\n"
            for number, label in enumerate(shared_among(images, classes))
        ]
        (root / f"Ebay_{split}.txt").write_text("image_id class_id super_class_id path\n" + "".join(lines))
        first += classes
    return root


def in_shop_lists(folder):
    (folder / "Eval").mkdir()
    (folder / "Img" / "img").mkdir(parents=True)
    lines = [
        f"img/WOMEN/Dresses/id_{first + label:08}/{number:02}_1_front.jpg id_{first + label:08} {split}\n"
        for split, images, classes, first in (
            ("train", 25882, 3997, 0),
            ("query", 14218, 3985, 4000),
            ("gallery", 12612, 3985, 4000),
        )
        for number, label in enumerate(shared_among(images, classes))
    ]
    heading = "image_name item_id evaluation_status\n"
    (folder / "Eval" / "list_eval_partition.txt").write_text(f"{len(lines)}\n{heading}{''.join(lines)}")
    return folder


def options(folder):
    return {"input": folder, "output": folder / "index.jsonl"}


def test_cub_from_its_folder(tmp_path, capsys):
    root = cub_lists(tmp_path)
    add_images(root, cub_images(root))
    output = tmp_path / "data" / "cub.jsonl"
    main(CUB(input=root, output=output))
    assert "train, 5864 images of 100 classes" in capsys.readouterr().out
    images = load_index(output)
    assert count_splits(images) == {"train": Count(5864, 100), "test": Count(5924, 100)}
    assert images[0] == LabelledImage(
        root / "images" / "001.Bird_1" / "Bird_1_0001.jpg", class_name="001.Bird_1", split="train"
    )
    train, test = (load_labelled(output, split, transform=lambda image: torch.zeros(1)) for split in ("train", "test"))
    check_class_disjoint(train, test)
    with pytest.raises(FileExistsError, match="Pass --overwrite"):
        main(CUB(input=root, output=output))
    main(CUB(input=tmp_path, output=output, overwrite=True, dev_classes=20))
    assert count_splits(load_index(output))["dev"].classes == 20


@pytest.mark.parametrize("layout", ["one list", "devkit"])
def test_cars_in_both_layouts(layout, tmp_path):
    if layout == "one list":
        names = [f"car_ims/{number:06}.jpg" for number in range(1, len(CAR_LABELS) + 1)]
        save_mat(tmp_path / "cars_annos.mat", "relative_im_path", names, CAR_LABELS)
    else:
        names = [f"{number:05}.jpg" for number in range(1, len(CAR_LABELS) + 1)]
        devkit = tmp_path / "devkit"
        save_mat(devkit / "cars_train_annos.mat", "fname", names[::2], CAR_LABELS[::2])
        save_mat(devkit / "cars_test_annos_withlabels.mat", "fname", names[1::2], CAR_LABELS[1::2])
    images = read_cars(tmp_path, Cars(**options(tmp_path)))
    assert count_splits(images) == {"train": Count(8054, 98), "test": Count(8131, 98)}
    folders = {"one list": {"car_ims"}, "devkit": {"cars_train", "cars_test"}}[layout]
    assert {image.path.parent.name for image in images} == folders
    assert {image.class_name for image in images if image.split == "test"} == {
        f"{label:03}" for label in range(99, 197)
    }


@pytest.mark.parametrize("layout", ["torchvision", "kaggle", "kaggle with one list"])
def test_cars_as_torchvision_and_kaggle_have_them(layout, tmp_path):
    root = tmp_path / "stanford_cars"
    names = [f"{number:05}.jpg" for number in range(1, len(CAR_LABELS) + 1)]
    inner = "" if layout == "torchvision" else "{0}/"
    devkit = root / ("devkit" if layout == "torchvision" else "car_devkit/devkit")
    save_mat(devkit / "cars_train_annos.mat", "fname", names[::2], CAR_LABELS[::2])
    save_mat(root / "cars_test_annos_withlabels.mat", "fname", names[1::2], CAR_LABELS[1::2])
    for folder in ("cars_train", "cars_test"):
        (root / folder / inner.format(folder)).mkdir(parents=True)
    if layout == "kaggle with one list":
        save_mat(root / "cars_annos.mat", "relative_im_path", [f"car_ims/{name}" for name in names], CAR_LABELS)
    for given in (root, tmp_path):
        images = read_cars(given, Cars(**options(given)))
        assert count_splits(images) == {"train": Count(8054, 98), "test": Count(8131, 98)}
        assert [image.path for image in images[:1] + images[-1:]] == [
            root / "cars_train" / inner.format("cars_train") / "00001.jpg",
            root / "cars_test" / inner.format("cars_test") / names[-1 - len(names) % 2],
        ]


def test_cars_without_the_labels_of_the_test_images_are_told(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    save_mat(tmp_path / "devkit" / "cars_train_annos.mat", "fname", ["1.jpg"], [1])
    with pytest.raises(
        FileNotFoundError, match=r"has no cars_test_annos_withlabels.mat, in devkit or beside it; the lab"
    ):
        read_cars(tmp_path, Cars(**options(tmp_path)))
    unlabelled = np.zeros(3, dtype=[("fname", object)])
    unlabelled["fname"] = ["1.jpg", "2.jpg", "3.jpg"]
    scipy_io.savemat(tmp_path / "cars_test_annos_withlabels.mat", {"annotations": unlabelled})
    with pytest.raises(ValueError, match=r"does not say class of its images.*labels of the test images are in"):
        read_cars(tmp_path, Cars(**options(tmp_path)))


@pytest.mark.parametrize("content", [b"", b"not this", b"MATLAB 5.0 MAT-file" + bytes(105) + b"\0\1IM" + b"x" * 40])
def test_errors_of_mat_files_are_one_line(content, tmp_path):
    pytest.importorskip("scipy")
    (tmp_path / "cars_annos.mat").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*cars_annos\.mat: .*; is it cut off\?") as error:
        read_cars(tmp_path, Cars(**options(tmp_path)))
    assert "\n" not in str(error.value)


def test_lists_may_have_byte_order_marks_and_blank_lines(tmp_path):
    root = sop_lists(tmp_path)
    for split in ("train", "test"):
        path = root / f"Ebay_{split}.txt"
        lines = path.read_text().splitlines()
        path.write_text(
            "\ufeff" + "\r\n\r\n".join(["", *lines[:9]]) + "\n" + "\n".join(lines[9:]) + "\n\n  \n", "utf-8"
        )
    images = read_sop(tmp_path, SOP(**options(tmp_path)))
    assert count_splits(images) == {"train": Count(59551, 11318), "test": Count(60502, 11316)}
    assert images[0].path == root / "bicycle_final" / "1_0.JPG"


def test_lists_may_be_latin_1(tmp_path):
    root = cub_lists(tmp_path)
    names = (root / "images.txt").read_text().replace("001.Bird_1/", "001.Bird_\xe9/")
    (root / "images.txt").write_text(names, "latin-1")
    with pytest.raises(ValueError, match=r"images\.txt, line 1\b.*--encoding"):
        read_cub(root, CUB(**options(root)))
    assert read_cub(root, CUB(**options(root), encoding="latin-1"))[0].class_name == "001.Bird_\xe9"


def test_sop_has_a_list_a_split(tmp_path):
    root = sop_lists(tmp_path)
    images = read_sop(tmp_path, SOP(**options(tmp_path)))
    assert count_splits(images) == {"train": Count(59551, 11318), "test": Count(60502, 11316)}
    assert images[0].path == root / "bicycle_final" / "1_0.JPG"


def test_in_shop_has_queries_and_a_gallery(tmp_path):
    images = read_in_shop(in_shop_lists(tmp_path), InShop(**options(tmp_path)))
    assert count_splits(images) == {
        "train": Count(25882, 3997),
        "query": Count(14218, 3985),
        "gallery": Count(12612, 3985),
    }
    assert images[0].path.is_relative_to(tmp_path / "Img" / "img" / "WOMEN")
    assert images[0].class_name == "id_00000001"


def damage(path, change):
    path.write_text(change(path.read_text()))


def test_a_list_that_is_cut_off_is_named(tmp_path):
    root = cub_lists(tmp_path / "cub")
    labels = (root / "image_class_labels.txt").read_text()
    damage(root / "images.txt", lambda text: text[: text.index("\n9001 ") + 1])
    with pytest.raises(ValueError, match=r"images\.txt is cut off.*split test: 3136 images of .*published are 5924"):
        read_cub(root, CUB(**options(root)))
    damage(root / "images.txt", lambda text: text[:-5] + "\n7 \n")
    with pytest.raises(ValueError, match=r"images\.txt, line 9001: wanted 2 columns, found '7 '"):
        read_cub(root, CUB(**options(root)))
    (root / "image_class_labels.txt").write_text(labels[: labels.index("\n90 ") + 1])
    with pytest.raises(ValueError, match=r"image_class_labels\.txt has no line for image 90;"):
        read_cub(root, CUB(**options(root)))


def test_another_data_set_is_refused(tmp_path):
    cub = cub_lists(tmp_path)
    for read, kind, lacks in (
        (read_cars, Cars, "no cars_annos.mat, .*; nor the folder devkit"),
        (read_sop, SOP, "no Ebay_train.txt and Ebay_test.txt"),
        (read_in_shop, InShop, "no list_eval_partition.txt, nor has Eval"),
    ):
        with pytest.raises(FileNotFoundError, match=lacks):
            read(cub, kind(**options(cub)))
    for name in ("Ebay_train.txt", "Ebay_test.txt"):
        (cub / name).write_text("1 1 1 a.jpg\n")
    with pytest.raises(ValueError, match=r"Ebay_train\.txt lacks the heading 'image_id class_id"):
        read_sop(cub, SOP(**options(cub)))
    (cub / "cars_annos.mat").write_text("not this")
    with pytest.raises(ValueError, match=r"cannot read .*cars_annos\.mat"):
        read_cars(cub, Cars(**options(cub)))


def test_missing_images_are_counted_and_named(tmp_path):
    add_images(tmp_path, ["a/1.jpg", "a/3.jpg"])
    listed = [LabelledImage(tmp_path / path, "x", "train") for path in ("a/1.jpg", "a/2.jpg", "a/3.jpg", "b/1.jpg")]
    with pytest.raises(FileNotFoundError, match=r"2 of 4 images are not there, the first one .*a/2\.jpg"):
        check_files(listed)
    check_files(listed[::2])


def pack(source, archive):
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for path in sorted(source.rglob("*")):
                packed.write(path, path.relative_to(source.parent))
    else:
        with tarfile.open(archive, "w:gz") as packed:
            packed.add(source, source.name)


@pytest.mark.parametrize("suffix", [".tgz", ".zip"])
def test_archives_are_unpacked_whole_or_not_at_all(suffix, tmp_path):
    source = tmp_path / "birds"
    add_images(source, [f"images/{number}.jpg" for number in range(50)])
    (source / "noise").write_bytes(np.random.default_rng(0).bytes(50_000))
    archive = tmp_path / f"birds{suffix}"
    pack(source, archive)
    folder = unpack(archive, tmp_path / "out")
    assert len(list((folder / "birds" / "images").iterdir())) == 50
    with pytest.raises(FileExistsError, match="give it as --input"):
        unpack(archive, tmp_path / "out")
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(ValueError, match=rf"birds\{suffix} is not a tar or zip archive, or is cut off"):
        unpack(archive, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert not list(tmp_path.glob(".*partial"))


def test_an_archive_may_be_given_instead_of_its_folder(tmp_path):
    root = cub_lists(tmp_path)
    pack(root, tmp_path / "CUB_200_2011.tgz")
    output = tmp_path / "data" / "cub.jsonl"
    with pytest.raises(FileNotFoundError, match=r"11788 of 11788 images are not there, .*data/cub/CUB_200_2011/images"):
        main(CUB(input=tmp_path / "CUB_200_2011.tgz", output=output))
    assert not output.exists()


@pytest.fixture
def colors(tmp_path):
    for number, color in enumerate(("blue", "green", "red")):
        (tmp_path / "colors" / color).mkdir(parents=True)
        for shade in range(2):
            Image.new("RGB", (50 + 9 * number, 40 + shade), color).save(tmp_path / "colors" / color / f"{shade}.png")
    return tmp_path / "colors"


def test_any_folder_and_its_features(colors, tmp_path, capsys):
    index = tmp_path / "colors.jsonl"
    main(Folder(input=colors, output=index, train_classes=2, dev_classes=1))
    main(Features(input=index, output=tmp_path / "colors.h5", resize=32, crop=32))
    assert "colors.h5: 6 images, 1280 dims" in capsys.readouterr().out
    test = load_labelled(tmp_path / "colors.h5", "test")
    assert test.class_names == ["red"]
    assert test.image_id == [str(colors / "red" / f"{shade}.png") for shade in range(2)]
    everything = load_labelled(tmp_path / "colors.h5").__getitems__(range(6))
    similar = torch.nn.functional.normalize(everything.images) @ torch.nn.functional.normalize(everything.images).T
    assert (similar.fill_diagonal_(0).argmax(dim=1) // 2).tolist() == [0, 0, 1, 1, 2, 2]


def test_bad_images_are_left_out_of_features_and_listed(colors, tmp_path, capsys):
    main(Features(input=colors, output=tmp_path / "whole.h5", resize=32, crop=32, batch_size=1))
    whole = load_labelled(tmp_path / "whole.h5")
    (colors / "blue" / "0.png").write_text("no image")
    (colors / "green" / "1.png").write_bytes((colors / "green" / "1.png").read_bytes()[:60])
    main(Features(input=colors, output=tmp_path / "good.h5", resize=32, crop=32))
    assert "good.h5: 4 images, 1280 dims; 2 left out, listed in" in capsys.readouterr().out
    good, kept = load_labelled(tmp_path / "good.h5"), [1, 2, 4, 5]
    assert good.image_id == [whole.image_id[index] for index in kept]
    assert [good.class_names[label] for label in good.labels] == ["blue", "green", "red", "red"]
    torch.testing.assert_close(good.features, whole.features[kept])
    lines = (tmp_path / "good.h5.skipped.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(colors / "blue" / "0.png"), str(colors / "green" / "1.png")]
    with pytest.raises(ValueError, match=r"cannot read .*0\.png"):
        main(Features(input=colors, output=tmp_path / "strict.h5", resize=32, crop=32, strict=True))
    assert not (tmp_path / "strict.h5").exists()


class FailsOnBlue(torch.nn.Module):
    def forward(self, images):
        means = images.float().mean(dim=(2, 3))
        if (means[:, 2] > 200).any():
            raise RuntimeError("no blue")
        return means / (means[:, :1] != 0) if (means[:, 0] == 0).any() and (means[:, 0] > 0).any() else means


def test_what_a_backbone_fails_on_is_that_images(colors):
    images = load_labelled(
        colors, transform=lambda image: torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1)
    )
    kept = embed_good(FailsOnBlue(), images, batch_size=6)
    assert kept.images.class_names == ["green", "red"]
    assert kept.features.tolist() == [[0, 128, 0]] * 2 + [[255, 0, 0]] * 2
    assert set(kept.skipped.values()) == {"the backbone failed on it: no blue"}
    with pytest.raises(RuntimeError, match="no blue"):
        embed_good(FailsOnBlue(), images, strict=True)
    (colors / "red" / "0.png").unlink()
    for path in colors.rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(ValueError, match=r"no image is good; the first one is .*cannot read"):
        embed_good(FailsOnBlue(), images)


def test_arguments_that_cannot_be_are_refused(colors, tmp_path):
    folder = {"input": colors, "output": tmp_path / "index.jsonl"}
    for classes in (0, 3):
        with pytest.raises(ValueError, match=f"--train-classes is {classes} and .*colors has 3 classes"):
            main(Folder(**folder, train_classes=classes))
    with pytest.raises(ValueError, match="--dev-classes is 2; wanted fewer than the 2 training classes"):
        main(Folder(**folder, train_classes=2, dev_classes=2))
    with pytest.raises(FileNotFoundError, match="there is nothing at"):
        main(Folder(input=tmp_path / "nowhere", output=tmp_path / "index.jsonl", train_classes=1))
    assert not (tmp_path / "index.jsonl").exists()
