"""An index answers as scoring everything does, holds what was put into it, and refuses what is not its own."""

from __future__ import annotations

import random
import signal

import pytest
import torch

from scripts.attack.kills import run_until_event
from tests.tiny_data import THINGS, make_data
from xmodal.data import RegionStore, RegionStoreWriter, load_captions
from xmodal.heads import Head
from xmodal.model import Matcher
from xmodal.search.candidates import CandidateEngine
from xmodal.search.index import Index
from xmodal.search.quantize import Quantizer

HEADS = {
    "scan t2i": {"name": "scan"},
    "scan i2t": {"name": "scan", "direction": "i2t", "temperature": 4.0, "aggregation": "mean"},
    "bfan": {"name": "bfan"},
    "cosine": {"name": "cosine"},
    "own": {"name": "tests.search.test_index:MaxSim"},
}


class MaxSim(Head):
    """A head that says nothing of how it compares."""

    def compare(self, images, captions, region_mask=None, word_mask=None):
        products = torch.einsum("ird,cwd->icwr", images, captions)
        best = products.masked_fill(~region_mask[:, None, None], -1e4).amax(dim=-1)
        return (best * word_mask[None]).sum(dim=-1)


class Subset:
    """Some images of a store under other names."""

    def __init__(self, store, positions, prefix="new"):
        self.store, self.positions = store, positions
        self.image_id = [f"{prefix}-{n}" for n in positions]
        self.sizes, self.extractor = store.sizes, store.extractor

    def __len__(self):
        return len(self.positions)

    def batch(self, indices):
        return self.store.batch([self.positions[int(i)] for i in indices])


def make_matcher(head, dim=16, seed=0):
    torch.manual_seed(seed)
    image, text = {"name": "regions", "input_dim": 8, "dim": dim}, {"name": "gru", "dim": dim, "word_dim": 8}
    return Matcher(image, text, head, vocabulary=["a", "and", *THINGS]).eval()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"), train=150)


@pytest.fixture(scope="module")
def store(data):
    return RegionStore(data / "train.h5")


@pytest.fixture(scope="module")
def captions(data):
    return load_captions(data / "captions.jsonl", "train")


@pytest.fixture(scope="module")
def scan(store, tmp_path_factory):
    matcher = make_matcher(HEADS["scan t2i"])
    return matcher, Index.build(matcher, store, tmp_path_factory.mktemp("index") / "index")


def names(hits):
    return [hit.image_id for hit in hits]


def best(scores, ids, k):
    found = scores.topk(k)
    return [ids[i] for i in found.indices.tolist()], found.values


@pytest.fixture
def by_torch(monkeypatch):
    """As on a machine without a compiler."""
    monkeypatch.setattr("xmodal.search.native.library", lambda: None)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("indexed", ["images", "captions"])
def test_exact_answers_are_those_of_scoring_everything(head, indexed, store, captions, tmp_path):
    matcher = make_matcher(HEADS[head])
    sentences = [caption.caption for caption in captions]
    # What BFAN makes of an image of one region depends on rounding: is the attention of a word above that of another?
    several = Subset(store, [n for n in range(len(store)) if len(store[n]) > 1])
    if indexed == "images":
        index = Index.build(matcher, several, tmp_path / "i", segment_items=40)
        queries, ids = sentences[:5], several.image_id
        scores = matcher.score_all(several, queries).T
    else:
        index = Index.build(matcher, captions, tmp_path / "i", segment_items=100)
        queries, ids = [store[n] for n in several.positions[:3]], [caption.caption_id for caption in captions]
        scores = matcher.score_all(several, sentences)[:3]
    for row, found in zip(scores, index.find(matcher, queries, k=10, rescored=12), strict=True):
        wanted, values = best(row, ids, 10)
        assert torch.allclose(torch.tensor([hit.score for hit in found.hits]), values, atol=1e-5)
        sure = values[:-1] - values[1:] > 1e-5  # equal scores may come in either order
        if bool(sure.all()):
            assert names(found.hits) == wanted
        assert all(hit.certified for hit in found.hits)
        assert 10 <= found.rescored <= found.searched == len(ids)


def test_answers_without_a_compiler_are_the_same(scan, request):
    matcher, index = scan
    both = []
    for _ in range(2):
        both.append(index.find(matcher, ["a dog and a cat", "a lamp"], rescored=10, words=False))
        request.getfixturevalue("by_torch")
    for compiled, plain in zip(*both, strict=True):
        assert names(compiled.hits) == names(plain.hits)
        assert [hit.score for hit in compiled.hits] == pytest.approx([hit.score for hit in plain.hits], abs=1e-6)
        assert abs(compiled.rescored - plain.rescored) <= 3  # bounds differ in how queries are rounded


def test_a_batch_of_queries_is_answered_as_each_alone(scan):
    matcher, index = scan
    sentences = ["a dog and a cat", "a lamp", "a car and a boat and a bird"]
    together = index.search(matcher, sentences)
    for sentence, hits in zip(sentences, together, strict=True):
        alone = index.search(matcher, sentence)
        assert names(alone) == names(hits)
        assert [hit.score for hit in alone] == pytest.approx([hit.score for hit in hits], abs=1e-6)


def test_inexact_answers_say_so_until_everything_was_scored(scan):
    matcher, index = scan
    (found,) = index.find(matcher, ["a dog"], k=3, exact=False, rescored=5)
    assert found.rescored == 5
    assert found.recall is None
    assert not any(hit.certified for hit in found.hits)
    assert all(hit.certified for hit in index.search(matcher, "a dog", exact=False, rescored=500))


def test_recall_is_measured_and_kept(scan, captions):
    matcher, index = scan
    recall = index.measure(matcher, [caption.caption for caption in captions[:20]], rescored=20)
    assert 50 < recall <= 100
    again = Index.open(index.path)
    assert again.manifest.recall == {"percent": recall, "queries": 20, "top": 10, "rescored": 20}
    assert again.find(matcher, ["a dog"], exact=False)[0].recall == recall


def test_words_share_the_score_and_have_boxes(tmp_path):
    with RegionStoreWriter(tmp_path / "s.h5", dim=8, extractor="x", box_convention="xyxy relative") as writer:
        for name in ("one", "two"):
            writer.write(name, torch.randn(3, 8), boxes=torch.rand(3, 4), image_size=(40, 20))
    matcher, store = make_matcher({"name": "scan"}), RegionStore(tmp_path / "s.h5")
    index = Index.build(matcher, store, tmp_path / "i")
    for hit in index.search(matcher, "a dog"):
        assert [word.word for word in hit.words] == matcher.token_words("a dog")
        assert sum(word.share for word in hit.words) == pytest.approx(1, abs=1e-5)
        weights = matcher.attention(store[store.index(hit.image_id)], "a dog").weights[0]
        boxes = store.boxes(store.index(hit.image_id))
        for word, row in zip(hit.words, weights, strict=True):
            assert word.box == pytest.approx(boxes[row.argmax()].tolist())


def test_filters_narrow_what_may_be_found(store, tmp_path):
    matcher = make_matcher({"name": "scan"})
    metadata = {name: {"license": "CC0" if number % 3 else "CC BY"} for number, name in enumerate(store.image_id)}
    index = Index.build(matcher, store, tmp_path / "i", metadata=metadata, segment_items=40)
    scores = matcher.score_all(store, ["a dog"])[:, 0]
    free = [n for n in range(len(store)) if n % 3]
    wanted, _ = best(scores[free], [store.image_id[n] for n in free], 5)
    assert names(index.search(matcher, "a dog", k=5, filter={"license": "CC0"})) == wanted
    assert names(index.search(matcher, "a dog", k=5, filter={"license": ["CC0", "other"]})) == wanted
    few = store.image_id[5:9]
    assert set(names(index.search(matcher, "a dog", filter=few))) == set(few)
    assert index.metadata(few[0]) == metadata[few[0]]
    assert index.search(matcher, "a dog", filter={"license": "none"}) == []
    with pytest.raises(KeyError, match="zebra"):
        index.search(matcher, "a dog", filter=["zebra"])
    with pytest.raises(KeyError, match=r"no item has metadata 'color'; known: license"):
        index.search(matcher, "a dog", filter={"color": "red"})
    with pytest.raises(ValueError, match="wanted a list of ids"):
        index.search(matcher, "a dog", filter="zebra")


class Some(CandidateEngine):
    def __init__(self, ids):
        self.ids = ids

    def candidates(self, query_words, k):
        assert query_words.ndim == 2
        return [*self.ids, "of another collection"]


def test_another_engine_may_name_the_candidates(scan, store):
    matcher, index = scan
    ids = store.image_id[3:8]
    found = index.search(matcher, "a dog", engine=Some(ids))
    wanted = index.search(matcher, "a dog", filter=ids)
    assert names(found) == names(wanted)
    assert not any(hit.certified for hit in found)
    (exported,) = index.embedded(size=1000)
    assert sorted(exported.ids) == sorted(store.image_id)
    assert exported.vectors.shape[2] == 16


def test_what_is_added_is_found_and_what_is_removed_is_not(store, tmp_path):
    matcher = make_matcher({"name": "scan"})
    index = Index.build(matcher, Subset(store, range(20), "old"), tmp_path / "i")
    holds = {f"old-{n}": n for n in range(20)}
    scores = matcher.score_all(store, ["a dog and a boat"])[:, 0]
    random.seed(0)
    for step in range(24):
        if step % 2:
            gone = random.sample(sorted(holds), random.randint(1, 3))
            index.remove(gone)
            for name in gone:
                del holds[name]
        else:
            positions = random.sample(range(len(store)), 3)
            index.add(matcher, Subset(store, positions, f"step{step}"))
            holds |= {f"step{step}-{n}": n for n in positions}
        assert len(index) == len(holds)
    for opened in (index, Index.open(index.path)):
        assert set(opened.ids) == set(holds)
        assert len(opened.collection.segments) < 20
        hits = opened.search(matcher, "a dog and a boat", k=len(holds))
        found = {hit.image_id: hit.score for hit in hits}
        assert found == pytest.approx({name: float(scores[n]) for name, n in holds.items()}, abs=1e-5)
        few = opened.search(matcher, "a dog and a boat", k=5, rescored=5)
        assert [hit.score for hit in few] == pytest.approx([hit.score for hit in hits[:5]], abs=1e-6)
    files = {path.name for path in index.path.iterdir()}
    assert files == {"manifest.json", "quantizer.safetensors", *(each.file for each in index.manifest.segments)}


def test_indexes_made_before_tails_were_kept_answer_and_merge_with_new_segments(store, tmp_path, monkeypatch):
    matcher = make_matcher({"name": "scan"}, dim=96)  # more than lead: there are tails
    encode = Quantizer.encode
    with monkeypatch.context() as before:
        before.setattr(Quantizer, "encode", lambda *args, **how: encode(*args, **how)._replace(tails=None))
        index = Index.build(matcher, Subset(store, range(30)), tmp_path / "i")
    assert "tails" not in index.collection.segments[0].arrays
    for position in range(30, 44):
        index.add(matcher, Subset(store, [position]))
    index.remove([f"new-{n}" for n in range(16)])  # most of the old segment, which is then written anew
    index.add(matcher, Subset(store, [44]))
    assert {"tails" in segment.arrays for segment in index.collection.segments} == {True, False}
    scores = matcher.score_all(Subset(store, range(16, 45)), ["a dog and a boat"])[:, 0]
    hits = index.search(matcher, "a dog and a boat", k=5, rescored=5)
    assert [hit.score for hit in hits] == pytest.approx(scores.topk(5).values.tolist(), abs=1e-5)


def test_an_emptied_index_answers_nothing_and_takes_more(store, tmp_path):
    matcher = make_matcher({"name": "scan"})
    index = Index.build(matcher, Subset(store, range(3)), tmp_path / "i")
    index.remove(index.ids)
    assert index.search(matcher, "a dog") == []
    index.add(matcher, Subset(store, range(2)))
    assert len(index.search(matcher, "a dog")) == 2


def test_others_are_refused(store, captions, data, tmp_path):
    matcher, other = make_matcher({"name": "scan"}), make_matcher({"name": "scan"}, seed=1)
    warmer = make_matcher({"name": "scan", "temperature": 10.0})
    index = Index.build(matcher, Subset(store, range(9)), tmp_path / "i")
    for stranger in (other, warmer):
        with pytest.raises(ValueError, match="was built with another model"):
            index.search(stranger, "a dog")
        with pytest.raises(ValueError, match="was built with another model"):
            index.add(stranger, store)
    matcher.save_pretrained(tmp_path / "m")
    assert index.search(Matcher.from_pretrained(tmp_path / "m"), "a dog")
    with pytest.raises(ValueError, match=r"'new-0' is in .* already"):
        index.add(matcher, Subset(store, [50, 0]))
    with pytest.raises(ValueError, match="whose vectors would mean something else"):
        index.add(matcher, captions)
    foreign = Subset(store, [60])
    foreign.extractor = {"name": "another"}
    with pytest.raises(ValueError, match="whose vectors would mean something else"):
        index.add(matcher, foreign)
    with pytest.raises(KeyError, match="zebra"):
        index.remove(["new-0", "zebra"])
    assert len(Index.open(index.path)) == 9
    with pytest.raises(FileExistsError, match="overwrite"):
        Index.build(matcher, store, index.path)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        index.search(matcher, "a dog", k=0)


def test_four_bits_certify_nothing_and_say_so(store, tmp_path):
    matcher = make_matcher({"name": "scan"})
    index = Index.build(matcher, store, tmp_path / "i", bits=4)
    assert len(index.search(matcher, "a dog", exact=False)) == 10
    with pytest.raises(ValueError, match="keeps 4 bits, which certify nothing"):
        index.search(matcher, "a dog")
    with pytest.raises(ValueError, match="bits is 6"):
        Index.build(matcher, store, tmp_path / "j", bits=6)


def test_damage_is_named(store, tmp_path, monkeypatch):
    matcher = make_matcher({"name": "scan"})
    with pytest.raises(FileNotFoundError, match="holds no index"):
        Index.open(tmp_path)
    index = Index.build(matcher, Subset(store, range(5)), tmp_path / "i")
    segment = index.path / index.manifest.segments[0].file
    whole = segment.read_bytes()
    for damaged in (whole[:-8], whole[:100], b"", b"\xff" * 50):
        segment.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"segment-00000001.safetensors is damaged"):
            Index.open(index.path)
    other = bytearray(whole)
    other[len(whole) // 2] ^= 1
    segment.write_bytes(other)
    with pytest.raises(ValueError, match=r"segment-00000001.safetensors is damaged: its sha256 is"):
        Index.open(index.path)
    with monkeypatch.context() as large:  # files that are not read whole when an index is opened
        large.setattr("xmodal.search.index.SMALL", 0)
        opened = Index.open(index.path)
        with pytest.raises(ValueError, match=r"segment-00000001.safetensors is damaged: its sha256 is"):
            opened.verify()
        segment.write_bytes(whole)
        opened.verify()
    quantizer = index.path / "quantizer.safetensors"
    kept = quantizer.read_bytes()
    quantizer.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"quantizer.safetensors is damaged: its sha256 is"):
        Index.open(index.path)
    quantizer.write_bytes(kept)
    segment.unlink()
    with pytest.raises(ValueError, match="missing"):
        Index.open(index.path)
    for text in ("{", "[]", '{"format": "other"}', '{"format": "xmodal index", "version": 99}'):
        (index.path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest.json is damaged or foreign"):
            Index.open(index.path)


def test_a_killed_change_is_there_whole_or_not_at_all(store, tmp_path):
    """Killed at its file events, one after another, with seven segments before it, so that it compacts as well."""
    matcher = make_matcher({"name": "scan"})
    index = Index.build(matcher, Subset(store, range(4), "old"), tmp_path / "i")
    for n in range(7):
        index.add(matcher, Subset(store, [n], f"more{n}"))

    def change(number):
        return run_until_event(
            lambda: Index.open(index.path).add(matcher, Subset(store, range(30 + number, 33 + number))),
            index.path,
            number,
        )

    outcomes, number = set(), 1
    while True:
        before = set(Index.open(index.path).ids)
        code, _ = change(number)
        after = set(Index.open(index.path).ids)
        added = {f"new-{n}" for n in range(30 + number, 33 + number)}
        assert after in (before, before | added)
        if code == 0:
            assert after == before | added
            break
        assert code == -signal.SIGKILL
        outcomes.add(after == before)
        if after != before:
            Index.open(index.path).remove(sorted(added))
        number += 1
    assert outcomes == {True, False}
    assert not [path for path in index.path.iterdir() if path.name.startswith(".")]


def test_an_index_without_floats_embeds_again_and_notices_other_images(store, tmp_path):
    matcher = make_matcher({"name": "scan"})
    index = Index.build(matcher, store, tmp_path / "i", floats=False, segment_items=60)
    with_floats = Index.build(matcher, store, tmp_path / "j")
    wanted = with_floats.search(matcher, "a dog and a cat", rescored=10)
    for opened in (index, Index.open(index.path, source=store)):
        hits = opened.search(matcher, "a dog and a cat", rescored=10)
        assert names(hits) == names(wanted)
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in wanted], abs=1e-6)
    assert index.bytes_each()["floats"] == 0 < with_floats.bytes_each()["floats"]
    with pytest.raises(ValueError, match="open it with the source of its images"):
        Index.open(index.path).search(matcher, "a dog")
    with pytest.raises(ValueError, match="gives other images"):
        Index.open(index.path, source=Subset(store, [*range(1, len(store)), 0])).search(matcher, "a dog")
    with pytest.raises(ValueError, match="built of more images"):
        Index.open(index.path, source=Subset(store, range(3))).search(matcher, "a dog")
    with pytest.raises(ValueError, match="keeps no float vectors"):
        index.add(matcher, Subset(store, range(3)))


def test_cells_find_candidates_and_stay_with_the_items(store, captions, tmp_path, monkeypatch):
    monkeypatch.setattr("xmodal.search.ranking.SHORTLIST", 60)
    matcher = make_matcher({"name": "scan"})
    index = Index.build(matcher, Subset(store, range(100)), tmp_path / "i", cells=12, segment_items=30)
    for n in range(100, 108):
        index.add(matcher, Subset(store, [n]))
    index.remove(["new-3", "new-103"])
    sentences = [caption.caption for caption in captions[:6]]
    assert index.measure(matcher, sentences, rescored=50) > 80
    exact = index.search(matcher, sentences, words=False)
    scores = matcher.score_all(Subset(store, [n for n in range(108) if n not in (3, 103)]), sentences).T
    for row, hits in zip(scores, exact, strict=True):
        assert [hit.score for hit in hits] == pytest.approx(row.topk(10).values.tolist(), abs=1e-5)
    with pytest.raises(ValueError, match="cells are for heads with cross attention"):
        Index.build(make_matcher({"name": "cosine"}), store, tmp_path / "j", cells=4)
    with pytest.raises(ValueError, match="ask for fewer"):
        Index.build(matcher, Subset(store, range(3)), tmp_path / "j", cells=4000)


def test_what_was_read_can_be_forgotten(scan, monkeypatch):
    matcher, index = scan
    before = index.search(matcher, "a dog and a cat", words=False)
    monkeypatch.setattr("xmodal.search.collection.RESIDENT", 0)
    monkeypatch.setattr("xmodal.search.compressed.FEW", 0)
    torch.set_num_threads(2)
    try:
        assert names(index.search(matcher, "a dog and a cat", words=False)) == names(before)
    finally:
        torch.set_num_threads(1)
