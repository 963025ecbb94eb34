"""Several servers answer as one, and say what is missing when one of them does not answer."""

from __future__ import annotations

import json
import logging
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.search.servers import check_server, matcher_of
from tests.tiny_data import make_data
from xmodal.cli import main
from xmodal.data import RegionStore, load_captions
from xmodal.heads import Head
from xmodal.search.candidates import CandidateEngine
from xmodal.search.engines.cluster import Cluster
from xmodal.search.engines.folder import Folder
from xmodal.search.engines.nomination import merged, nominated
from xmodal.search.engines.roster import make_servers
from xmodal.search.engines.server import Near, Unavailable
from xmodal.search.index import Index

HEADS = {
    "scan t2i": {"name": "scan"},
    "scan i2t": {"name": "scan", "direction": "i2t", "temperature": 4.0, "aggregation": "mean"},
    "bfan": {"name": "bfan"},
    "cosine": {"name": "cosine"},
}
QUERIES = ["a dog", "a cat and a boat", "a lamp and a bird and a car"]


class Own(Head):
    def compare(self, images, captions, region_mask=None, word_mask=None):
        return images.sum(dim=(1, 2))[:, None] + captions.sum(dim=(1, 2))


class Forgetful(Folder):
    """Finds what it does not give."""

    def vectors(self, collection, items):
        raise Unavailable(self.address, "lost its disk")


class Full(Folder):
    """Takes nothing."""

    def insert(self, *rows):
        raise Unavailable(self.address, "no space is left")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), train=90)


@pytest.fixture(scope="module")
def store(data):
    return RegionStore(data / "train.h5")


@pytest.fixture(scope="module")
def scan(store, tmp_path_factory):
    matcher = matcher_of(HEADS["scan t2i"])
    return matcher, Index.build(matcher, store, tmp_path_factory.mktemp("index") / "index")


def folders(path, count):
    return [{"name": "folder", "path": str(path / f"disk{number}")} for number in range(count)]


def assert_same(hits, wanted):
    assert [hit.image_id for hit in hits] == [hit.image_id for hit in wanted]
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in wanted], abs=1e-6)


@pytest.mark.parametrize("indexed", ["images", "captions"])
@pytest.mark.parametrize("head", HEADS)
def test_several_servers_answer_as_one_does_and_as_an_index(head, indexed, store, data, tmp_path):
    matcher, queries = matcher_of(HEADS[head]), QUERIES
    items = store
    if indexed == "captions":
        different = {caption.caption: caption for caption in load_captions(data / "captions.jsonl", "train")}
        items = list(different.values())  # where equal ones are cut, one server may keep another than three do
        queries = [store[number] for number in range(3)]
    index = Index.build(matcher, items, tmp_path / "index", segment_items=40)
    one = Cluster.build(index, tmp_path / "one.json", folders(tmp_path / "one", 1))
    three = Cluster.build(index, tmp_path / "three.json", folders(tmp_path / "three", 3))
    assert len(one) == len(three) == len(index)
    for near, rescored in ((5, 1), (24, 12), (10_000, 10_000)):  # few enough for the cut to matter, and all
        options = {"k": 8, "near": near, "rescored": rescored}
        singly, jointly = one.find(matcher, queries, **options), three.find(matcher, queries, **options)
        for alone, together in zip(singly, jointly, strict=True):
            assert_same(together.hits, alone.hits)
            assert together.rescored == alone.rescored
            assert together.whole
            assert together.searched == len(index)
            sure = rescored == 10_000 or (head == "cosine" and rescored == 12)  # 8 of 8: the next may be as good
            assert [hit.certified for hit in together.hits] == [sure] * 8
    exact = index.search(matcher, queries, k=8, words=False)
    for answer, wanted in zip(three.search(matcher, queries, k=8, near=10_000, rescored=10_000), exact, strict=True):
        scores = {hit.image_id: hit.score for hit in wanted}
        assert [hit.score for hit in answer.hits] == pytest.approx([hit.score for hit in wanted], abs=1e-5)
        assert len(scores.keys() & {hit.image_id for hit in answer.hits}) >= 7  # the last two may be equal


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=24, max_size=24), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 12),
)
def test_merging_does_not_depend_on_the_servers(products, servers, count):
    """Lists of 24 products of items with two vectors each, dealt to servers that know their own alone."""
    chosen = []
    for parts in (1, servers):
        by_word = []
        for row in products:
            lists = {}
            for server in range(parts):
                mine = [(-row[2 * n + place], n) for n in range(server, 12, parts) for place in (0, 1)]
                best = sorted(mine)[:count]
                lists[server] = [Near(str(n), n // parts, 2, -product / 9) for product, n in best]
            by_word.append(merged(lists, parts, count))
        chosen.append([nominee.number for nominee in nominated(by_word, 5)])
    assert chosen[0] == chosen[1]


@given(st.lists(st.lists(st.integers(-9, 9), min_size=6, max_size=6), min_size=1, max_size=4), st.integers(1, 6))
def test_items_are_nominated_by_their_mean_products(products, count):
    lists = []
    for row in products:
        nearest = sorted(range(6), key=lambda n: -row[n])[:3]
        lists.append(merged({0: [Near(str(n), n, 1, float(row[n])) for n in nearest]}, 1, 3))
    named = {nominee.number for nominees in lists for nominee in nominees}
    worth = {}
    for number in named:
        known = [{x.number: x.near.product for x in nominees} for nominees in lists]
        worth[number] = sum(each.get(number, min(each.values())) for each in known) / len(known)
    chosen = [nominee.number for nominee in nominated(lists, count)]
    assert len(chosen) == min(count, len(named)) == len(set(chosen))
    assert [worth[n] for n in chosen] == pytest.approx(sorted(worth.values(), reverse=True)[:count])


def test_a_server_that_is_gone_is_missed_until_it_is_back(scan, tmp_path, caplog):
    matcher, index = scan
    cluster = Cluster.build(index, tmp_path / "c.json", folders(tmp_path, 3))
    cluster = Cluster.open(tmp_path / "c.json", retry_after=0)
    whole = cluster.search(matcher, QUERIES, k=5)
    (tmp_path / "disk1").rename(tmp_path / "elsewhere")
    with caplog.at_level(logging.WARNING):
        answers = cluster.search(matcher, QUERIES, k=5)
    left = [name for number, name in enumerate(index.ids) if number % 3 != 1]
    for query, answer in zip(QUERIES, answers, strict=True):
        assert not answer.whole
        assert [(each.server, each.items) for each in answer.missing] == [(f"folder {tmp_path / 'disk1'}", 30)]
        assert answer.searched == 60
        assert_same(answer.hits, index.search(matcher, query, k=5, filter=left))
        assert not any(hit.certified for hit in answer.hits)
    told = "degraded: 30 of 90 items were not looked at, those of folder"
    assert answers[0].describe().startswith(told)
    assert told in caplog.text
    with pytest.raises(Unavailable, match="its 30 items were not looked at"):
        index.search(matcher, "a dog", engine=cluster)
    (tmp_path / "elsewhere").rename(tmp_path / "disk1")
    again = cluster.search(matcher, QUERIES, k=5)
    for answer, wanted in zip(again, whole, strict=True):
        assert answer == wanted


def test_a_server_that_failed_is_left_alone_for_a_while(scan, tmp_path, monkeypatch):
    matcher, index = scan
    cluster = Cluster.build(index, tmp_path / "c.json", folders(tmp_path, 2))
    shutil.rmtree(tmp_path / "disk0")
    assert not cluster.search(matcher, "a dog").whole
    monkeypatch.setattr(Folder, "count", lambda *_: pytest.fail("asked"))
    assert cluster.search(matcher, "a dog").missing[0].items == 45


def test_nothing_that_answers_is_an_error(scan, tmp_path):
    matcher, index = scan
    cluster = Cluster.build(index, tmp_path / "c.json", folders(tmp_path, 2))
    for number in range(2):
        shutil.rmtree(tmp_path / f"disk{number}")
    with pytest.raises(Unavailable, match=r"folder .*disk0.* no server of .*c\.json answers"):
        cluster.search(matcher, "a dog")


def test_a_server_that_fails_between_finding_and_giving_is_missed(scan, tmp_path):
    matcher, index = scan
    servers = folders(tmp_path, 3)
    servers[2] = {"name": "tests.search.test_cluster:Forgetful", "path": servers[2]["path"]}
    answer = Cluster.build(index, tmp_path / "c.json", servers).search(matcher, "a dog", k=5)
    left = [name for number, name in enumerate(index.ids) if number % 3 != 2]
    assert_same(answer.hits, index.search(matcher, "a dog", k=5, filter=left))
    assert [each.reason for each in answer.missing] == ["lost its disk"]
    assert answer.searched == 60


def test_a_server_that_lost_vectors_is_missed_as_a_whole(scan, tmp_path):
    matcher, index = scan
    Cluster.build(index, tmp_path / "c.json", folders(tmp_path, 2))
    (file,) = (tmp_path / "disk0").rglob("vectors.f32")
    file.write_bytes(file.read_bytes()[: -16 * 4])
    (table,) = (tmp_path / "disk0").rglob("items.json")
    values = json.loads(table.read_text())
    values["lengths"][-1] -= 1
    table.write_text(json.dumps(values))
    (missing,) = Cluster.open(tmp_path / "c.json").search(matcher, "a dog").missing
    assert re.match(r"holds \d+ of the \d+ vectors of xmodal_", missing.reason)


def test_a_cluster_names_candidates_for_an_index(scan, tmp_path):
    matcher, index = scan
    cluster = Cluster.build(index, tmp_path / "c.json", folders(tmp_path, 2))
    assert isinstance(cluster, CandidateEngine)
    assert_same(index.search(matcher, "a dog", engine=cluster), index.search(matcher, "a dog"))


def test_a_build_that_fails_leaves_nothing(scan, tmp_path):
    _, index = scan
    servers = [*folders(tmp_path, 1), {"name": "tests.search.test_cluster:Full", "path": str(tmp_path / "full")}]
    with pytest.raises(Unavailable, match="full: no space is left"):
        Cluster.build(index, tmp_path / "c.json", servers)
    assert not (tmp_path / "c.json").exists()
    assert not list((tmp_path / "disk0").iterdir())
    assert not list((tmp_path / "full").iterdir())


def test_building_again_replaces_what_was_there(scan, tmp_path):
    matcher, index = scan
    Cluster.build(index, tmp_path / "c.json", folders(tmp_path, 2))
    with pytest.raises(FileExistsError):
        Cluster.build(index, tmp_path / "c.json", folders(tmp_path, 2))
    cluster = Cluster.build(index, tmp_path / "c.json", folders(tmp_path, 2), overwrite=True)
    assert cluster.search(matcher, "a dog").whole
    assert [len(list((tmp_path / f"disk{n}").iterdir())) for n in range(2)] == [1, 1]
    (tmp_path / "c.json").write_text("{")
    assert (
        Cluster.build(index, tmp_path / "c.json", folders(tmp_path, 2), overwrite=True).search(matcher, "a dog").whole
    )


def test_a_folder_is_a_server(tmp_path):
    check_server(Folder(str(tmp_path / "disk")))


def test_what_cannot_be_is_refused(scan, store, tmp_path):
    matcher, index = scan
    cluster = Cluster.build(index, tmp_path / "c.json", folders(tmp_path, 2))
    with pytest.raises(ValueError, match="was built with another model"):
        cluster.search(matcher_of(HEADS["bfan"]), "a dog")
    with pytest.raises(ValueError, match="near"):
        cluster.search(matcher, "a dog", near=0)
    own = matcher_of({"name": "tests.search.test_cluster:Own"})
    other = Cluster.build(Index.build(own, store, tmp_path / "own"), tmp_path / "o.json", folders(tmp_path / "o", 1))
    with pytest.raises(ValueError, match="in a way of its own"):
        other.search(own, "a dog")
    with pytest.raises(ValueError, match=r"disk0 is named twice"):
        make_servers(folders(tmp_path, 1) * 2)
    with pytest.raises(ValueError, match="at least one"):
        make_servers([])
    with pytest.raises(ValueError, match="did you mean 'folder'"):
        make_servers([{"name": "foldr", "path": "a"}])
    with pytest.raises(ValueError, match="fewer than there are servers"):
        Cluster.build(index, tmp_path / "many.json", folders(tmp_path / "many", 91))
    with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
        Cluster.open(tmp_path / "nothing.json")
    for text in ("", "[]", "{}", (tmp_path / "c.json").read_text().replace('"version": 1', '"version": 7')):
        (tmp_path / "d.json").write_text(text)
        with pytest.raises(ValueError, match=r"d\.json is damaged or foreign"):
            Cluster.open(tmp_path / "d.json")


@pytest.mark.parametrize(
    ("name", "options", "secret"),
    [
        ("milvus", {"uri": "http://me:secret@10.0.0.7:19530"}, "XMODAL_MILVUS_TOKEN"),
        ("postgres", {"dsn": "postgresql://me:secret@10.0.0.7/photos"}, "PGPASSWORD"),
        ("postgres", {"dsn": "host=10.0.0.7 password=secret"}, "PGPASSWORD"),
    ],
)
def test_passwords_are_kept_in_no_file(name, options, secret):
    pytest.importorskip({"milvus": "pymilvus", "postgres": "psycopg2"}[name])
    with pytest.raises(ValueError, match=secret):
        make_servers([{"name": name, **options}])


def test_a_cluster_is_built_and_searched_from_the_command_line(scan, tmp_path, capsys):
    matcher, index = scan
    matcher.save_pretrained(tmp_path / "model")
    (tmp_path / "servers.yaml").write_text("".join(f"- {json.dumps(each)}\n" for each in folders(tmp_path, 2)))
    file = tmp_path / "photos.json"
    main(["cluster", str(index.path), str(tmp_path / "servers.yaml"), "--output", str(file)])
    assert capsys.readouterr().out.splitlines() == [
        f"{file}: 90 images",
        *(f"  45 on folder {tmp_path}/disk{number}" for number in range(2)),
    ]
    ask = ["search", str(tmp_path / "model"), "a dog", "--index", str(file), "--top", "3"]
    main(ask)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "a dog  (90 of 90 scored; whole: all 90 items were searched)"
    wanted = index.search(matcher, "a dog", k=3)
    assert [line.split()[-1] for line in lines] == [hit.image_id for hit in wanted]
    shutil.rmtree(tmp_path / "disk1")
    main(ask)
    assert "degraded: 45 of 90 items were not looked at, those of folder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "there is no file"),
        ("folder", "wanted a list"),
        ("- folder", "wanted a list"),
        ("- {name: foldr}", "did you mean 'folder'"),
        ("- {name: folder}", "needs the option 'path'"),
        ("- {name: folder, path: a, speed: 3}", "no option 'speed'"),
        ("[]", "at least one"),
    ],
)
def test_wrong_lists_of_servers_are_told_in_a_line(text, told, scan, tmp_path, capsys):
    file = tmp_path / "servers.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["cluster", str(scan[1].path), str(file), "--output", str(tmp_path / "photos.json")])
    assert stop.value.code == 2
    assert told in capsys.readouterr().err
