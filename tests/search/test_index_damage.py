"""A damaged manifest, plan or folder of vectors is named; of a cluster only the server that has it is missing."""

from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.search.test_index import Subset, make_matcher
from tests.tiny_data import make_data
from xmodal.data import RegionStore
from xmodal.search.engines.cluster import Cluster
from xmodal.search.index import Index
from xmodal.search.segment import Segment


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return RegionStore(make_data(tmp_path_factory.mktemp("data"), train=30) / "train.h5")


@pytest.fixture(scope="module")
def index(store, tmp_path_factory):
    matcher = make_matcher({"name": "scan"})
    index = Index.build(matcher, Subset(store, range(20)), tmp_path_factory.mktemp("index") / "i", queries=["a dog"])
    index.add(matcher, Subset(store, range(20, 25)))
    index.remove(["new-3"])
    index.measure(matcher, ["a dog"])
    return index


WRONG = [
    *(({"removed": removed}) for removed in ([25], [20], [-1], [1.5], [True], ["a"], [3, 3], 3, None, {})),
    *(({"items": items}) for items in (None, "20", -1, 0, 2.5)),
    *(({"bytes": size}) for size in (None, "9", -1)),
    *(({"sha256": sha256}) for sha256 in (7, None, [])),
    *(({"file": file}) for file in (None, 7, "", "../i/segment-00000001.safetensors", "manifest.json")),
]


@pytest.mark.parametrize("values", WRONG, ids=str)
def test_a_wrong_entry_of_a_segment_is_named(values, index):
    check(index, lambda manifest: manifest["segments"][0].update(values))


@pytest.mark.parametrize(
    "values",
    [
        *({"recall": recall} for recall in ({}, [], "x", {"percent": 50.0})),
        *(
            {"recall": {"percent": 50.0, "queries": 1, "top": 10, "rescored": 50, **part}}
            for part in ({"percent": "x"}, {"percent": 101}, {"rescored": None}, {"top": 0}, {"also": 1})
        ),
        *({"model": model} for model in (None, 7, [])),
        *({"indexed": indexed} for indexed in (None, "x", 7, "image")),
        *({"bits": bits} for bits in (None, "x", 6, 8.5, True)),
        *({"dim": dim} for dim in (None, "x", -1)),
        *({"next_segment": number} for number in (None, "x", 0, 1, 2)),
        *({"data": data} for data in (None, [], "x")),
        *({"quantizer": quantizer} for quantizer in (None, 7)),
        *({"segments": segments} for segments in (None, {}, ["x"], [None])),
        {"more": 1},
    ],
    ids=str,
)
def test_a_wrong_value_of_a_manifest_is_named(values, index):
    check(index, lambda manifest: manifest.update(values))


def check(index, damage):
    path = index.path / "manifest.json"
    whole = path.read_text()
    manifest = json.loads(whole)
    damage(manifest)
    try:
        path.write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=r"manifest\.json is damaged or foreign \(.+\)\. Build the index again\."):
            Index.open(index.path)
    finally:
        path.write_text(whole)


def test_what_contradicts_itself_is_named_and_what_older_programs_wrote_is_read(index):
    def doubled(manifest):
        manifest["segments"] *= 2

    check(index, doubled)
    path = index.path / "manifest.json"
    whole = path.read_text()
    older = {"front": None, **json.loads(whole)}
    try:
        path.write_text(json.dumps(older))
        assert Index.open(index.path).ids == index.ids
        for values in ({"bits": 4}, {"dim": 7}, {"quantizer": ""}):
            path.write_text(json.dumps({**older, **values}))
            if "quantizer" in values:
                (index.path / "quantizer.safetensors").rename(index.path / "away")
            with pytest.raises(ValueError, match=r"is damaged: .* is not what manifest\.json says, or quant"):
                Index.open(index.path)
    finally:
        (index.path / "away").rename(index.path / "quantizer.safetensors")
        path.write_text(whole)


@pytest.mark.parametrize("name", ["lengths", "ids", "order", "floats", "scan", "gram"])
def test_a_segment_whose_arrays_do_not_fit_is_named(name, index, tmp_path):
    arrays = load_file(index.path / index.manifest.segments[0].file)
    for wrong in ({**arrays, name: arrays[name][:-1]}, {key: array for key, array in arrays.items() if key != name}):
        path = tmp_path / "segment"
        save_file({key: np.ascontiguousarray(array) for key, array in wrong.items()}, path)
        if name in wrong or name in ("lengths", "ids", "order"):
            with pytest.raises(ValueError, match="is damaged: no segment of an index"):
                Segment(path)


@pytest.fixture
def cluster(index, tmp_path):
    servers = [{"name": "folder", "path": str(tmp_path / f"disk{number}")} for number in range(2)]
    return Cluster.build(index, tmp_path / "c.json", servers)


def cut(folder):
    path = folder / "vectors.f32"
    path.write_bytes(path.read_bytes()[:-4])


def emptied(folder):
    (folder / "vectors.f32").write_bytes(b"")


def not_numbers(folder):
    rows = np.memmap(folder / "vectors.f32", np.float32, mode="r+")
    rows[7] = np.nan
    rows.flush()


def rewritten(change):
    def damage(folder):
        table = json.loads((folder / "items.json").read_text())
        (folder / "items.json").write_text(json.dumps(change(table)))

    return damage


def shorter(table):
    return {**table, "ids": table["ids"][:-5]}


def lengthened(table):
    return {**table, "lengths": [table["lengths"][0] + 1, *table["lengths"][1:]]}


def negative(table):
    first, second, *others = table["lengths"]
    return {**table, "lengths": [-1, first + second + 1, *others]}


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (cut, "is damaged: .*vectors"),
        (emptied, "empty file"),
        (not_numbers, "holds vectors that are no numbers"),
        (rewritten(lambda table: [table]), "items.json is damaged"),
        (rewritten(lambda table: {"ids": table["ids"]}), "items.json is damaged"),
        (rewritten(lambda table: {**table, "dim": "x"}), "items.json is damaged: dim is 'x'"),
        (rewritten(lambda table: {**table, "dim": 0}), "items.json is damaged: dim is 0"),
        (rewritten(lambda table: {**table, "ids": [7] * len(table["ids"])}), "items.json is damaged: ids"),
        (rewritten(shorter), "is damaged: .*ids"),
        (rewritten(lengthened), "is damaged: .*vectors"),
        (rewritten(negative), "items.json is damaged: lengths"),
    ],
)
def test_a_damaged_folder_is_missing_and_the_others_answer(damage, told, cluster, index):
    matcher = make_matcher({"name": "scan"})
    (folder,) = (cluster.path.parent / "disk1").iterdir()
    damage(folder)
    answer = Cluster.open(cluster.path).search(matcher, "a dog", k=5)
    (missing,) = answer.missing
    assert (missing.server, missing.items) == (f"folder {cluster.path.parent / 'disk1'}", 12)
    assert re.search(told, missing.reason)
    left = [name for number, name in enumerate(index.ids) if number % 2 == 0]
    wanted = index.search(matcher, "a dog", k=5, filter=left)
    assert [hit.image_id for hit in answer.hits] == [hit.image_id for hit in wanted]


@pytest.mark.parametrize(
    "values",
    [{"indexed": "x"}, {"model": 7}, {"items": [12, "x"]}, {"items": [12, -1]}, {"vectors": [1.5, 2]}, {"servers": 7}],
    ids=str,
)
def test_a_wrong_plan_of_a_cluster_is_named(values, cluster):
    plan = copy.deepcopy(json.loads(cluster.path.read_text()))
    cluster.path.write_text(json.dumps({**plan, **values}))
    with pytest.raises(ValueError, match=r"c\.json is damaged or foreign"):
        Cluster.open(cluster.path)
