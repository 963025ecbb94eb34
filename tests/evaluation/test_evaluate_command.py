"""`xmodal evaluate` writes what others need by ids, and does not depend on the order of a store."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_data import DIM, make_data

from xmodal.cli import main
from xmodal.data import RegionStore, RegionStoreWriter, Relevance, load_captions, load_relevance
from xmodal.evaluation import PROTOCOLS, evaluate_relevance, evaluate_retrieval, retrieval_ranks
from xmodal.evaluation.after import AfterScoring
from xmodal.evaluation.hubs import hubness
from xmodal.evaluation.plausible import evaluate_plausible
from xmodal.evaluation.protocols import Protocol
from xmodal.evaluation.within import as_pairs, evaluate_within, sibling_relevance, within_scorer
from xmodal.model import Matcher
from xmodal.training.config import DataConfig, ModelConfig, TrainConfig
from xmodal.training.matching import MatchingTask


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    image, text = {"name": "regions", "input_dim": DIM, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    folder = tmp_path_factory.mktemp("model")
    Matcher(image, text, {"name": "cosine"}, vocabulary=["a", "and", "cat", "dog", "car"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def permuted(data, tmp_path_factory):
    """The same data with the images of the stores in another order."""
    folder = tmp_path_factory.mktemp("permuted")
    for name in ("captions.jsonl", "vocabulary.json", "train.h5"):
        (folder / name).symlink_to(data / name)
    store = RegionStore(data / "dev.h5")
    with RegionStoreWriter(folder / "dev.h5", dim=DIM, max_regions=6, extractor="by hand") as writer:
        for image in np.random.default_rng(1).permutation(len(store)).tolist():
            writer.write(store.image_id[image], store[image])
    return folder


@pytest.fixture
def evaluate(model, tmp_path):
    def evaluate(folder, *options):
        output = tmp_path / "results.json"
        main(
            ["evaluate", str(model), "--data.folder", str(folder), "--data.split", "dev", "--json", str(output)]
            + [str(option) for option in options]
        )
        (result,) = json.loads(output.read_text()).values()
        return result

    return evaluate


def test_scores_ranks_and_judgements(data, evaluate, tmp_path, capsys):
    store, captions = RegionStore(data / "dev.h5"), load_captions(data / "captions.jsonl", "dev")
    caption_ids = [caption.caption_id for caption in captions]
    judgements = tmp_path / "judgements.jsonl"
    pairs = [(store.image_id[0], caption_ids[0], 1), (store.image_id[0], caption_ids[5], 0.5)]
    lines = [{"image_id": image, "caption_id": caption, "grade": grade} for image, caption, grade in pairs]
    judgements.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {**lines[0], "image_id": "stranger"}]))
    scores, ranks = tmp_path / "new" / "scores.npy", tmp_path / "new" / "ranks.jsonl"
    options = ["--scores", scores, "--ranks", ranks, "--relevance", judgements, "--skip-unknown"]
    result = evaluate(data, *options)

    matrix = torch.from_numpy(np.load(scores))
    image_of = [store.image_id.index(caption.image_id) for caption in captions]
    wanted = evaluate_retrieval(matrix, torch.tensor(image_of))
    assert {name: result[name] for name in wanted} == wanted
    relevance = load_relevance(judgements, store.image_id, caption_ids, skip_unknown=True)
    assert result["judged"] == evaluate_relevance(matrix, relevance)
    read = [json.loads(line) for line in ranks.read_text().splitlines()]
    assert [line["query"] for line in read] == [*store.image_id, *caption_ids]
    best = {line["query"]: line["retrieved"][0] for line in read if line["direction"] == "t2i"}
    for caption, column in zip(caption_ids, matrix.T, strict=True):
        assert best[caption]["score"] == float(column.max())
    assert "judged_rank" in read[0]
    assert "i2t mAP@R" in capsys.readouterr().out


def test_what_is_done_after_scoring(data, evaluate, tmp_path, capsys):
    store, captions = RegionStore(data / "dev.h5"), load_captions(data / "captions.jsonl", "dev")
    image_of = torch.tensor([store.image_id.index(caption.image_id) for caption in captions])
    scores, ranks = tmp_path / "scores.npy", tmp_path / "ranks.jsonl"
    after = AfterScoring("dual_softmax", 0.1, "mtfn_leak")
    options = ["--normalize", "dual_softmax", "--temperature", "0.1", "--rerank", "mtfn_leak"]
    result = evaluate(data, *options, "--scores", scores, "--ranks", ranks, "--protocol", "plain")
    matrix = after.normalized(torch.from_numpy(np.load(scores)))
    read = [json.loads(line) for line in ranks.read_text().splitlines()]
    for direction in ("i2t", "t2i"):
        reranked = after.reranked(matrix, direction, Relevance.from_caption_image(image_of, len(store)))
        assert result[direction] == evaluate_retrieval(reranked, image_of)[direction]
        assert result["hubness"][direction] == hubness(reranked)[direction]
        wanted = getattr(retrieval_ranks(reranked, image_of), direction).tolist()
        assert [line["rank"] for line in read if line["direction"] == direction] == wanted
    printed = capsys.readouterr().out
    assert "t2i skewness" in printed
    assert "t2i reads which captions of the test set describe one image" in printed


def test_plausible_matches_and_retrieval_within_a_modality(data, model, evaluate, tmp_path, capsys):
    store, captions = RegionStore(data / "dev.h5"), load_captions(data / "captions.jsonl", "dev")
    image_of = torch.tensor([store.image_id.index(caption.image_id) for caption in captions])
    numbers = [int(name.removeprefix("dev-")) for name in store.image_id]
    boxes = [{"image_id": number, "category_id": 1 + number % 3} for number in numbers]
    instances, grades, report = (tmp_path / name for name in ("instances.json", "sis.csv", "report.md"))
    instances.write_text(json.dumps({"annotations": boxes}))
    grades.write_text("image1,image2,agg_score\ndev-0.jpg,dev-1.jpg,4.5\ndev-0.jpg,dev-2.jpg,1\n")
    scores = tmp_path / "scores.npy"
    options = ["--instances", instances, "--i2i", grades, "--t2t", "siblings", "--scores", scores, "--report", report]
    result = evaluate(data, "--protocol", "pmrp,plain", *options)
    shown = torch.eye(3)[torch.tensor([number % 3 for number in numbers])].bool()
    matrix = torch.from_numpy(np.load(scores))
    for direction in ("i2t", "t2i"):
        wanted = evaluate_plausible(matrix, shown=shown, caption_image=image_of, direction=direction)
        assert result[direction] == wanted
        assert result["also"]["plain"][direction] == evaluate_retrieval(matrix, image_of)[direction]
    matcher = Matcher.from_pretrained(model)
    pairs = as_pairs({(numbers.index(0), numbers.index(1)), (numbers.index(1), numbers.index(0))}, len(store))
    images, sentences = matcher.embed_store(store), matcher.embed_captions([caption.caption for caption in captions])
    assert result["i2i"] == evaluate_within({"": within_scorer(matcher, "image", images)}, pairs)[""]
    scorer = within_scorer(matcher, "caption", sentences)
    assert result["t2t"] == evaluate_within({"": scorer}, sibling_relevance(image_of.tolist()))[""]
    printed = capsys.readouterr().out
    for corner in ("plausible", "i2i", "t2t", "hubness"):
        assert f"{corner} " in printed
        assert f"| {corner} " in report.read_text()


def test_a_split_serves_as_a_bank(data, evaluate):
    plain = evaluate(data, "--normalize", "dbsn", "--bank", "train", "--bank-images", "3")
    assert plain["i2t"] == evaluate(data)["i2t"]  # dbsn leaves what images retrieve


def test_the_order_of_the_store_changes_nothing(data, permuted, evaluate, monkeypatch):
    captions = len(load_captions(data / "captions.jsonl", "dev"))
    monkeypatch.setitem(PROTOCOLS, "tiny-5fold", Protocol("tiny-5fold", images=10, captions=captions, folds=5))
    for options in ([], ["--protocol", "tiny-5fold"]):
        assert evaluate(data, *options) == evaluate(permuted, *options)


def test_the_first_images_of_a_validation_are_those_the_captions_speak_of_first(data, permuted):
    def validated(folder):
        torch.manual_seed(0)
        model = ModelConfig({"name": "regions", "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4})
        config = TrainConfig(data=DataConfig(folder, validation_images=4), model=model, progress=False)
        task = MatchingTask(config, torch.device("cpu"))
        return set(task.validation.source.image_id), task.validate()

    images, results = validated(data)
    assert images == {f"dev-{number}" for number in range(4)}
    assert validated(permuted) == (images, results)


def test_validation_scores_pairs_within_folds_only(data, monkeypatch):
    captions = load_captions(data / "captions.jsonl", "dev")
    monkeypatch.setitem(PROTOCOLS, "tiny-5fold", Protocol("tiny-5fold", images=10, captions=len(captions), folds=5))
    model = ModelConfig({"name": "regions", "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4})
    config = TrainConfig(data=DataConfig(data), model=model, protocol="tiny-5fold", progress=False)
    task = MatchingTask(config, torch.device("cpu"))
    scored, score_all = [], Matcher.score_all

    def counted(matcher, store, captions, **options):
        scored.append((len(store), list(captions)))
        return score_all(matcher, store, captions, **options)

    monkeypatch.setattr(Matcher, "score_all", counted)
    assert len(task.validate()["folds"]) == 5
    assert [images for images, _ in scored] == [2] * 5
    assert [sentence for _, sentences in scored for sentence in sentences] == [c.caption for c in captions]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol", "coco5k"], "did you mean 'coco-5k'"),
        (["--protocol", "coco-5k"], "takes 5000 images and 25000 captions, but there are 10 x"),
        (["--protocol", "plain,eccv"], "ECCV Caption judged COCO's test split of 5000 images and 25000 captions"),
        (["--protocol", "pmrp"], "--instances, the objects of every image, go together"),
        (["--protocol", "pmrp", "--instances", "none.json"], "no file of object annotations at none.json"),
        (["--i2i", "none.csv"], "no file of judgements at none.csv"),
        (["--normalize", "dualsoftmax"], "did you mean 'dual_softmax'"),
        (["--rerank", "mtfnn"], "did you mean 'mtfn'"),
        (["--bank", "train"], "--bank train is for --normalize"),
        (["--normalize", "querybank", "--bank", "train", "--bank-images", "0"], "--bank-images is 0"),
        (["--scores", "scores.csv"], "'scores.csv'"),
        (["--ranks", "taken/ranks.jsonl"], "cannot write taken/ranks.jsonl"),
        (["--relevance", "nowhere.jsonl"], "no file of judgements at nowhere.jsonl"),
        (["--relevance", "strangers.jsonl"], "strangers.jsonl, line 1: image 'x' is not among"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_scored(
    data, evaluate, options, message, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").touch()
    (tmp_path / "strangers.jsonl").write_text('{"image_id": "x", "caption_id": "y"}')
    monkeypatch.setattr(Matcher, "score_all", None)
    with pytest.raises(SystemExit) as stopped:
        evaluate(data, *options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.bad_input
def test_a_model_is_evaluated_once(model, data, capsys):
    """However its folder is written: it would count twice in the mean, or be one model under one name."""
    for again in (model, model / ".." / model.name):
        with pytest.raises(SystemExit):
            main(["evaluate", str(model), str(again), "--data.folder", str(data), "--data.split", "dev"])
        assert f"{again} is the same model as {model}; give every model once" in capsys.readouterr().err
