"""Several processes, or one that was killed and started again, write the store that one undisturbed process writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import mean_color
import numpy as np
import pytest
from PIL import Image

from preprocess.parts import Parts
from preprocess.regions import RegionsConfig, main
from xmodal.data import RegionStore

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "PYTHONWARNINGS": "ignore"}
HANGS = 900
"""Seconds after which a process is not slow, as on a busy machine, but hangs."""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(11):
        image = Image.fromarray(rng.integers(0, 255, (20, 10 + number, 3), np.uint8))
        image.save(folder / f"{number:02}.jpg")
    whole = (folder / "03.jpg").read_bytes()
    (folder / "03.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


def start(folder, output, *launcher, batches="", join="virtual"):
    arguments = [str(HERE / "mean_color.py"), str(folder), str(output), str(batches), join]
    return subprocess.Popen(
        [sys.executable, *launcher, *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    told, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 0, told
    return told


def contents(path):
    """Every dataset and what made them; only the time differs between two equal stores."""
    with h5py.File(path) as file:
        datasets = {name: (file[name].dtype, file[name][:].tolist()) for name in file}
        return datasets, {name: value for name, value in file.attrs.items() if name != "created"}


def test_two_processes_and_a_killed_one_write_what_one_process_writes(folder, tmp_path, capsys):
    one, two, killed = (tmp_path / f"{name}.h5" for name in ("one", "two", "killed"))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    pair = start(folder, two, *launcher, join="copy")
    mean_color.run(folder, one)
    assert "1 left out" in capsys.readouterr().out
    assert (tmp_path / "one.h5.skipped.txt").read_text().startswith("03\tcannot read")
    assert len(contents(one)[0]["image_id"][1]) == 10

    parts = tmp_path / "killed.h5.parts"
    stalled = start(folder, killed, batches=2)
    while len(list(parts.glob("*.json"))) < 2:
        assert stalled.poll() is None, stalled.communicate()[0]
        time.sleep(0.02)
    os.killpg(stalled.pid, signal.SIGKILL)
    stalled.communicate()
    assert stalled.returncode == -signal.SIGKILL
    assert not killed.exists()
    done = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.json")}
    assert len(done) == 2
    resumed = finish(start(folder, killed))
    assert f"{2 * len(done)}/11" in resumed, "the parts that were done are not done again"
    assert contents(killed) == contents(one)
    assert not list(parts.glob("*.partial*")) + list(parts.glob(".*.partial")), "nothing half-written is left"
    mean_color.run(folder, killed, overwrite=True)
    assert not parts.exists(), "the virtual store has become one file"
    assert contents(killed) == contents(one)

    told = finish(pair)
    assert "1 of 2 processes" in told
    assert contents(two) == contents(one)
    assert (tmp_path / "two.h5.skipped.txt").read_text() == (tmp_path / "one.h5.skipped.txt").read_text()


PLAN = [[{"a": 1, "x": 1, "b": 1}], [{"y": 1}], [{"c": 1}]]
OPTIONS = {"dim": 2, "max_regions": 3, "extractor": "by hand"}


@pytest.mark.parametrize("how", ["auto", "copy", "virtual"])
def test_parts_know_what_is_done_and_are_joined_in_order(tmp_path, how):
    counts = {"a": 2, "b": 3, "c": 1}
    rows = {name: {"features": np.full((count, 2), count), "image_size": (9, 8)} for name, count in counts.items()}
    parts = Parts(tmp_path / "out.h5", PLAN, {"batch": 2}, OPTIONS)
    parts.write(2, [("c", rows["c"])])
    assert parts.todo(0, 1) == [0, 1]
    assert [parts.todo(process, 2) for process in range(2)] == [[0], [1]]
    parts = Parts(tmp_path / "out.h5", PLAN, {"batch": 2}, OPTIONS)
    parts.write(0, [("a", rows["a"]), ("x", "cut off"), ("b", rows["b"])])
    parts.write(1, [("y", "not an image")])
    assert parts.join(how, overwrite=False) == {"x": "cut off", "y": "not an image"}
    datasets, _ = contents(tmp_path / "out.h5")
    assert datasets["image_id"][1] == [b"a", b"b", b"c"]
    assert datasets["num_regions"][1] == [2, 3, 1]
    assert datasets["image_size"][1] == [[9, 8]] * 3
    assert [regions.tolist() for regions in RegionStore(tmp_path / "out.h5")] == [[[c, c]] * c for c in counts.values()]
    assert parts.folder.exists() == (how == "virtual")


def test_large_stores_are_not_copied(tmp_path, monkeypatch):
    monkeypatch.setattr("preprocess.parts.LARGE", 1)
    parts = Parts(tmp_path / "out.h5", [[{"a": 1}]], {}, OPTIONS)
    parts.write(0, [("a", {"features": np.ones((2, 2))})])
    parts.join("auto", overwrite=False)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["features"].is_virtual


def test_nothing_but_bad_images_is_an_error_that_names_the_first(tmp_path):
    parts = Parts(tmp_path / "out.h5", [[{"a": 1, "b": 1}]], {}, OPTIONS)
    parts.write(0, [("a", "not an image"), ("b", "cut off")])
    with pytest.raises(ValueError, match=r"out\.h5 was not written, for no image is good\. a: not an image"):
        parts.join("copy", overwrite=False)


def test_parts_of_other_settings_are_not_mixed_in(tmp_path):
    Parts(tmp_path / "out.h5", PLAN, {"batch": 2}, OPTIONS)
    with pytest.raises(ValueError, match=r"out\.h5\.parts holds parts of an earlier run with other images or options"):
        Parts(tmp_path / "out.h5", PLAN, {"batch": 3}, OPTIONS)


@pytest.mark.parametrize(
    ("plan", "todo", "skipped"),
    [
        ([[{"a": 1, "b": 1}], [{"y": 1}], [{"c": 1}]], [2], {"y": "not an image"}),  # a bad one is gone
        ([[{"a": 1, "x": 1, "b": 1}], [{"c": 1}]], [2], {"x": "cut off"}),  # with it, all of its part
        ([[{"a": 1, "x": 2, "b": 1}], [{"y": 1}], [{"c": 1}]], [0, 2], {"y": "not an image"}),  # one was repaired
        ([[{"a": 1, "x": 1}], [{"y": 1}, {"c": 1}]], [0, 2], {"y": "not an image"}),  # a good one is gone
        ([[{"a": 1, "x": 1, "b": 1}], [{"y": 1}]], [2], {"x": "cut off", "y": "not an image"}),
    ],
)
def test_parts_that_are_not_concerned_by_a_change_are_kept(tmp_path, plan, todo, skipped):
    row = {"features": np.ones((1, 2))}
    parts = Parts(tmp_path / "out.h5", PLAN, {"batch": 2}, OPTIONS)
    parts.write(0, [("a", row), ("x", "cut off"), ("b", row)])
    parts.write(1, [("y", "not an image")])
    for _ in range(2):
        parts = Parts(tmp_path / "out.h5", plan, {"batch": 2}, OPTIONS)
        assert parts.todo(0, 1) == todo
    for number in todo:
        parts.write(number, [(image, row) for batch in parts.plan[number] for image in batch])
    assert parts.join("copy", overwrite=False) == skipped
    images = [image for part in plan for batch in part for image in batch]
    assert RegionStore(tmp_path / "out.h5").image_id == [image for image in images if image not in skipped]


@pytest.mark.parametrize("plan", [[[{"a": 1, "x": 1, "b": 1, "new": 1}]], [[{"b": 1, "a": 1}]]])
def test_parts_without_an_image_or_in_another_order_are_of_another_run(tmp_path, plan):
    Parts(tmp_path / "out.h5", PLAN, {"batch": 2}, OPTIONS)
    with pytest.raises(ValueError, match="holds parts of an earlier run with other images or options"):
        Parts(tmp_path / "out.h5", plan, {"batch": 2}, OPTIONS)


def test_an_existing_store_is_found_before_the_work(folder, tmp_path):
    config = RegionsConfig(folder, tmp_path / "out.h5")
    config.output.write_text("precious")
    with pytest.raises(FileExistsError, match=r"out\.h5 exists\. Pass --overwrite"):
        main(config)
    with pytest.raises(ValueError, match="extractor 'efficientnet-lite0-grid' has no option 'weights'"):
        main(replace(config, weights="x"))
    assert config.output.read_text() == "precious"
