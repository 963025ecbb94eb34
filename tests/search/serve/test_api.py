"""The API answers as the index does, refuses with a reason what it must, and opens no file that a request names."""

from __future__ import annotations

import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from tests.search.serve.world import Tiles, as_file, make_world, picture
from tests.search.test_index import MaxSim  # noqa: F401  # named by the matcher of a test
from xmodal.data import Caption, RegionStore, RegionStoreWriter
from xmodal.encoders.extractors import EXTRACTORS
from xmodal.evaluation.calibration import LIKELY, Calibration
from xmodal.model import Matcher
from xmodal.search.composed import find_composed
from xmodal.search.index import Index
from xmodal.search.queries import Query
from xmodal.search.serve import app as application
from xmodal.search.serve.app import make_app
from xmodal.search.serve.guard import Limits
from xmodal.search.serve.photographs import Photographs
from xmodal.search.serve.searcher import SENT, Question, Searcher
from xmodal.search.serve.server import allowed_hosts, listen, open_app

HOST = "http://localhost"


@pytest.fixture(scope="module")
def searcher(world):
    return Searcher(world.index, world.matcher, world.calibration)


@pytest.fixture(scope="module")
def client(world, searcher):
    limits = Limits(body_bytes=100_000, pixels=50_000)
    app = make_app(searcher, Photographs(world.images, world.index.ids), limits=limits)
    with TestClient(app, base_url=HOST) as client:
        yield client


def found(client, **parameters):
    answer = client.get("/api/search", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def reason(answer, status):
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"reason"}
    return answer.json()["reason"]


def test_a_sentence_finds_what_scoring_everything_finds(client, world):
    for text in ("a red tile", "a green tile and a blue tile", "white"):
        scores = world.matcher.score_all(world.store, [text])[:, 0]
        best = scores.topk(5)
        answer = found(client, text=text, k=5)
        assert [hit["id"] for hit in answer["hits"]] == [world.store.image_id[i] for i in best.indices]
        assert torch.tensor([hit["score"] for hit in answer["hits"]]).allclose(best.values, atol=1e-5)
        assert answer["certified"]
        assert answer["searched"] == len(world.store)
        assert answer["words"] == world.matcher.token_words(text)


def test_scores_are_calibrated(client, world):
    answer = found(client, text="a red tile", k=6)
    scores = torch.tensor([hit["score"] for hit in answer["hits"]])
    right = world.calibration.probability(scores, images=len(world.store))
    assert torch.tensor([hit["probability"] for hit in answer["hits"]]).allclose(right, atol=1e-6)
    assert answer["no_good_match"] == bool(right.max() < LIKELY)
    one = found(client, text="a red tile", k=1)["hits"]
    assert one == answer["hits"][:1]  # the second is found all the same, to know how far the first leads
    other = found(client, text="a red tile NOT a blue tile")
    assert other["no_good_match"] is None
    assert all(hit["probability"] is None for hit in other["hits"])


def test_excluded_images_are_not_shown_and_others_take_their_place(client):
    shown = [hit["id"] for hit in found(client, text="a red tile", k=8)["hits"]]
    rest = found(client, text="a red tile", k=5, exclude=[shown[0], shown[2], "unknown"])
    assert [hit["id"] for hit in rest["hits"]] == [shown[n] for n in (1, 3, 4, 5, 6)]


def test_more_like_this(client, world):
    answer = found(client, like="scene-3", k=3)
    text, like = "a red tile NOT a blue tile", ["scene-3", "scene-4"]
    both = found(client, text=text, like=like, exclude="scene-3", k=3)
    queries = [Query(like=("scene-3",)), Query.parse(text, like)]
    answers = find_composed(world.index, world.matcher, queries, len(world.store))
    right = [[hit.image_id for hit in each.hits] for each in answers]
    assert [hit["id"] for hit in answer["hits"]] == right[0][:3]
    assert [hit["id"] for hit in both["hits"]] == [name for name in right[1] if name != "scene-3"][:3]
    assert answer["words"] == []
    assert both["words"] == ["<start>", "a", "red", "tile", "<end>"]


def test_a_photograph_that_is_sent_finds_itself(client, world):
    content = (world.images / "scene-7.png").read_bytes()
    sent = client.post("/api/photograph", content=content)
    assert sent.status_code == 200
    assert {**sent.json(), "id": ""} == {"id": "", "width": 64, "height": 64, "regions": 4}
    answer = found(client, like=sent.json()["id"], k=3)
    again = found(client, like="scene-7", k=3)
    assert [hit["id"] for hit in answer["hits"]] == [hit["id"] for hit in again["hits"]]


def test_words_look_where_the_index_says(client, world):
    text, ids = "a red tile and a blue tile", ["scene-1", "scene-2"]
    answer = client.get("/api/explain", params={"text": text, "id": ids}).json()
    hits = {hit.image_id: hit for hit in world.index.search(world.matcher, text, k=len(world.store))}
    assert answer["words"] == world.matcher.token_words(text)
    for look in answer["images"]:
        words = hits[look["id"]].words
        weights = torch.tensor(look["weights"])
        assert torch.tensor(look["shares"]).allclose(torch.tensor([word.share for word in words]), atol=1e-5)
        assert weights.sum(dim=1).allclose(torch.ones(len(words)), atol=1e-5)
        assert [tuple(look["boxes"][region]) for region in weights.argmax(dim=1)] == [word.box for word in words]


def test_many_questions_at_once_are_answered_as_one_by_one(client, searcher):
    texts = ["a red tile", "a blue tile", "white", "a green tile NOT a red tile"] * 8
    alone = {text: found(client, text=text, k=4) for text in set(texts)}
    batches = []
    answer = searcher.answer
    searcher.answer = lambda questions: batches.append(len(questions)) or answer(questions)
    try:
        with ThreadPoolExecutor(32) as threads:
            together = list(threads.map(lambda text: found(client, text=text, k=4), texts))
    finally:
        del searcher.answer
    assert sum(batches) == 32
    assert max(batches) > 1
    for text, answer in zip(texts, together, strict=True):
        assert [hit["id"] for hit in answer["hits"]] == [hit["id"] for hit in alone[text]["hits"]]


def test_one_bad_question_does_not_spoil_its_batch(searcher):
    good, bad = Question(Query.parse("a red tile"), k=2), Question(Query(like=("gone",)), k=2)
    answers = searcher.answer([good, bad, good])
    alone = [hit.id for hit in searcher.answer([good])[0].hits]
    assert [hit.id for hit in answers[0].hits] == [hit.id for hit in answers[2].hits] == alone
    assert isinstance(answers[1], KeyError)


@pytest.mark.parametrize(
    ("parameters", "status", "told"),
    [
        ({}, 422, "a sentence of the query is empty"),
        ({"text": "red NOT "}, 422, "a sentence of the query is empty"),
        ({"text": "r" * 501}, 422, "text: String should have at most 500 characters"),
        ({"text": "red", "k": 0}, 422, "k: Input should be greater than or equal to 1"),
        ({"text": "red", "k": 101}, 422, "k: Input should be less than or equal to 100"),
        ({"text": "red", "k": "many"}, 422, "k: Input should be a valid integer"),
        ({"text": "red", "exact": "perhaps"}, 422, "exact: Input should be a valid boolean"),
        ({"like": "elsewhere"}, 404, "there is no image 'elsewhere' among the 60 images"),
        ({"like": "../../etc/passwd"}, 404, "there is no image '../../etc/passwd'"),
        ({"like": ["scene-1"] * 9}, 422, "like: List should have at most 8 items"),
        ({"text": "a" + " NOT a" * 8}, 422, "more than 8 sentences and images"),
        ({"text": "red", "exclude": "x" * 1001}, 422, "exclude.0: String should have at most 1000 characters"),
        ({"text": "red", "exclude": ["x"] * 201}, 422, "exclude: List should have at most 200 items"),
    ],
)
def test_what_cannot_be_asked(client, parameters, status, told):
    assert told in reason(client.get("/api/search", params=parameters), status)


def test_what_cannot_be_explained(client):
    assert "id: Field required" in reason(client.get("/api/explain", params={"text": "red"}), 422)
    assert "no image '7'" in reason(client.get("/api/explain", params={"text": "red", "id": "7"}), 404)
    assert "is empty" in reason(client.get("/api/explain", params={"text": " ", "id": "scene-1"}), 422)


def test_photographs_are_shrunk_and_lose_what_else_their_files_told(client, world, tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "where I live"
    picture(["red"] * 4).resize((900, 600)).save(tmp_path / "scene-0.jpg", exif=exif)
    photographs = Photographs(tmp_path, ["scene-0"])
    small = photographs.jpeg("scene-0", 320)
    assert b"where I live" not in small
    assert Image.open(io.BytesIO(small)).size == (320, 213)
    assert photographs.jpeg("scene-0", 320) is small
    answer = client.get("/api/photograph", params={"id": "scene-1", "size": "large"})
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)


def test_few_shrunk_photographs_are_kept(world):
    photographs = Photographs(world.images, world.index.ids, kept=3000)
    first = photographs.jpeg("scene-0", 320)
    for name in world.index.ids:
        photographs.jpeg(name, 320)
    assert sum(map(len, photographs._kept.values())) == photographs._bytes <= 3000
    assert photographs.jpeg("scene-0", 320) == first


@pytest.mark.parametrize("name", ["../all.h5", "scene-1.png", "/etc/passwd", "scene-1\0", "..%2fall.h5", "."])
def test_no_name_becomes_a_path(client, name):
    assert "there is no photograph" in reason(client.get("/api/photograph", params={"id": name}), 404)


def test_a_photograph_that_is_gone_or_damaged_is_told_without_its_path(tmp_path):
    for name in ("a", "b"):
        picture(["red"] * 4).save(tmp_path / f"{name}.png")
    photographs = Photographs(tmp_path, ["a", "b"])
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").write_text("<svg/>")
    for name in ("a", "b"):
        with pytest.raises(ValueError, match=f"^the file of the photograph '{name}' cannot be read$"):
            photographs.jpeg(name, 320)


def test_photographs_of_all_images_must_be_there(world, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no image"):
        Photographs(tmp_path, world.index.ids)


@pytest.mark.parametrize(
    ("content", "status", "told"),
    [
        (b"", 422, "it is not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "it is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422, "it is not an image"),
        (as_file(Image.new("RGB", (1, 1))), 422, "it has 1 x 1 pixels; at least 16 a side are wanted"),
        (as_file(Image.new("L", (300, 300))), 422, "it has 300 x 300 pixels; at most 50000 are wanted"),
        (as_file(Image.new("RGB", (64, 64)))[:60], 422, "cannot read the image"),
        (bytes(100_001), 413, "more is sent than 100000 bytes"),
    ],
)
def test_what_cannot_be_sent(client, content, status, told):
    assert told in reason(client.post("/api/photograph", content=content), status)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "CMYK"), ("PNG", "I;16"), ("TIFF", "F"), ("WEBP", "RGBA"), ("PNG", "1"), ("GIF", "P")],
)
def test_photographs_of_all_kinds_can_be_sent(client, kind, mode):
    image = Image.new(mode, (40, 30))
    more = {"save_all": True, "append_images": [Image.new("P", (40, 30), 1)]} if kind == "GIF" else {}
    sent = client.post("/api/photograph", content=as_file(image, kind, **more))
    assert sent.status_code == 200
    assert (sent.json()["width"], sent.json()["height"]) == (40, 30)


def test_chunks_are_counted_too(client):
    def chunks():
        for _ in range(20):
            yield bytes(10_000)

    assert "more is sent than 100000 bytes" in reason(client.post("/api/photograph", content=chunks()), 413)


def test_what_was_sent_is_kept_for_a_while(searcher, world):
    content = as_file(picture(["red", "green", "blue", "white"]))
    first = searcher.take(content, 10_000).id
    for _ in range(SENT):
        searcher.take(content, 10_000)
    assert len(searcher.sent) == SENT
    with pytest.raises(KeyError, match="is kept for a while only"):
        searcher.check(Query(like=(first,)))


def test_few_may_send_at_once(world, searcher):
    app = make_app(searcher)
    with TestClient(app, base_url=HOST) as client, pytest.MonkeyPatch.context() as patch:
        patch.setattr(application, "SENDING", 0)
        assert "are being sent already" in reason(client.post("/api/photograph", content=b"x"), 429)


def test_strangers_names_for_this_machine_are_refused(client):
    assert "not called 'evil.example'" in reason(client.get("/health", headers={"host": "evil.example:8000"}), 400)
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert client.get("/health", headers={"host": host}).status_code == 200
    assert allowed_hosts("0.0.0.0") is None


def test_time_is_limited(world):
    slow = Searcher(world.index, world.matcher)
    answer, slow.answer = slow.answer, lambda questions: __import__("time").sleep(0.5) or answer(questions)
    with TestClient(make_app(slow, limits=Limits(seconds=0.1)), base_url=HOST) as client:
        assert "took longer than 0.1 seconds" in reason(client.get("/api/search", params={"text": "red"}), 503)
        assert client.get("/health").status_code == 200


def test_our_own_errors_are_in_the_log_and_nowhere_else(world, caplog):
    broken = Searcher(world.index, world.matcher)
    broken.answer = lambda questions: 1 / 0
    with TestClient(make_app(broken), base_url=HOST, raise_server_exceptions=False) as client:
        told = reason(client.get("/api/search", params={"text": "red"}), 500)
    assert told == "the server failed; its log says why"
    assert "division by zero" in caplog.text


@pytest.mark.parametrize("error", [ValueError, KeyError])
def test_what_goes_wrong_with_an_answer_is_not_the_fault_of_who_asks(world, caplog, error):
    broken = Searcher(world.index, world.matcher)

    def fail(*_):
        raise error("/secret/index has no array 'floats'")

    broken.answer = broken.explain = fail
    with TestClient(make_app(broken), base_url=HOST, raise_server_exceptions=False) as client:
        for address, more in (("search", {}), ("explain", {"id": "scene-1"})):
            told = reason(client.get(f"/api/{address}", params={"text": "red", **more}), 500)
            assert told == "the server failed; its log says why"
    assert "/secret/index" in caplog.text


def other_matcher(world):
    torch.manual_seed(1)
    image, text = {"name": "regions", "input_dim": 3, "dim": 16}, {"name": "gru", "dim": 16, "word_dim": 8}
    return Matcher(image, text, {"name": "scan"}, vocabulary=world.matcher.tokenizer.words[4:], extractor="tiles")


BREAKS = {
    "damaged": lambda world, path: (path / "manifest.json").write_text("{"),
    "gone": lambda world, path: shutil.rmtree(path),
    "another": lambda world, path: Index.build(other_matcher(world), world.store, path, overwrite=True),
    "captions": lambda world, path: Index.build(
        world.matcher, [Caption("7", "0", "a red tile", "test")], path, overwrite=True
    ),
}


@pytest.mark.parametrize(
    ("how", "told"), zip(BREAKS, ["damaged", "no such file", "another model", "captions"], strict=True)
)
def test_an_index_that_goes_wrong_is_the_fault_of_the_server(world, tmp_path, caplog, how, told):
    """Everybody gets 503 with a reason without paths, the health check too; once the index is right again, all is."""
    path = tmp_path / "served.index"
    shutil.copytree(world.index.path, path)
    with TestClient(make_app(Searcher(Index.open(path), world.matcher)), base_url=HOST) as client:
        before = found(client, text="red", k=3)["hits"]
        BREAKS[how](world, path)
        for address in ("/health", "/api/search?text=red", "/api/explain?text=red&id=scene-1", "/health"):
            answer = client.get(address)
            assert reason(answer, 503) == "the index cannot be searched at present; the server's log says why"
            assert answer.headers["retry-after"] == "1"
        assert reason(client.get("/api/search", params={"text": " "}), 422)
        (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert str(path) in line
        assert told in line.lower()
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(world.index.path, path)
        assert client.get("/health").status_code == 200
        assert found(client, text="red", k=3)["hits"] == before


def test_only_what_is_shown_can_be_a_good_match(world):
    """The first of the sentence is likely, the others are not: without it, nothing that is shown is a good match."""
    scores = world.matcher.score_all(world.store, ["a red tile"])[:, 0]
    first, second = scores.topk(2).values.tolist()
    calibration = Calibration(score_weight=20 / (first - second), lead_weight=0.0, size_weight=0.0, bias=0.0)
    calibration = replace(calibration, bias=-calibration.score_weight * (first + second) / 2)
    with TestClient(make_app(Searcher(world.index, world.matcher, calibration)), base_url=HOST) as client:
        best = world.store.image_id[int(scores.argmax())]
        assert found(client, text="a red tile", k=4)["no_good_match"] is False
        assert found(client, text="a red tile", k=4, exclude=best)["no_good_match"] is True
        assert found(client, text="a red tile", k=4, exclude=world.store.image_id)["no_good_match"] is None


def test_errors_of_addresses_and_methods_are_json_too(client):
    assert reason(client.get("/nothing"), 404) == "Not Found"
    assert reason(client.post("/api/search"), 405) == "Method Not Allowed"
    assert reason(client.get("/docs"), 404) == "Not Found"


def test_the_page_asks_nobody_else(client):
    for path in ("/", "/page.js", "/page.css"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        addresses = answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in addresses
        assert "//" not in addresses.replace("// ", "")  # comments


def test_openapi_describes_every_answer(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/api/about", "/api/search", "/api/explain", "/api/photograph", "/health"}
    for path, methods in paths.items():
        for method, about in methods.items():
            assert {"200", "400", "404", "408", "413", "422", "429", "503"} <= set(about["responses"]), (path, method)


def test_health_and_metrics(client):
    assert client.get("/health").json() == {"status": "ok", "images": 60}
    found(client, text="red")
    text = client.get("/metrics").text
    assert 'xmodal_requests_total{path="/api/search",status="200"}' in text
    assert "xmodal_images 60.0" in text
    assert "xmodal_batch_questions_count" in text


def test_what_is_served_is_told(client):
    about = client.get("/api/about").json()
    assert (about["images"], about["photographs"], about["calibrated"]) == (60, True, True)
    assert about["why_not_sent"] is about["why_not_like"] is about["why_not_explained"] is None


@pytest.mark.parametrize(
    ("head", "why_not_like"), [("cosine", None), ("tests.search.test_index:MaxSim", "in a way of its own")]
)
def test_what_other_heads_cannot_do_is_told(tmp_path, head, why_not_like):
    why_not_explained = "words look nowhere"
    other = make_world(tmp_path, images=6, head={"name": head})
    with TestClient(make_app(Searcher(other.index, other.matcher)), base_url=HOST) as client:
        about = client.get("/api/about").json()
        assert why_not_explained in about["why_not_explained"]
        assert why_not_explained in reason(client.get("/api/explain", params={"text": "red", "id": "scene-1"}), 422)
        assert len(found(client, text="red", k=3)["hits"]) == 3
        assert len(found(client, text="red NOT blue", k=3)["hits"]) == 3
        answer = client.get("/api/search", params={"like": "scene-1"})
        if why_not_like is None:
            assert len(answer.json()["hits"]) == 6
        else:
            assert why_not_like in about["why_not_like"]
            assert why_not_like in reason(answer, 422)
            assert why_not_like in reason(client.post("/api/photograph", content=b"x"), 422)
        assert "without photographs" in reason(client.get("/api/photograph", params={"id": "scene-1"}), 404)


def test_photographs_of_a_foreign_extractor_cannot_be_sent(world, monkeypatch):
    monkeypatch.delitem(EXTRACTORS, Tiles.name)
    with TestClient(make_app(Searcher(world.index, world.matcher)), base_url=HOST) as client:
        assert "extractor 'tiles'" in client.get("/api/about").json()["why_not_sent"]
        assert "extractor 'tiles'" in reason(client.post("/api/photograph", content=b"x"), 422)


def test_what_others_add_and_remove_is_seen(tmp_path):
    mine = make_world(tmp_path, images=6)
    with TestClient(make_app(Searcher(Index.open(mine.index.path), mine.matcher)), base_url=HOST) as client:
        assert found(client, text="red")["searched"] == 6
        mine.index.remove(["scene-2", "scene-3"])
        assert found(client, text="red")["searched"] == 4
        with RegionStoreWriter(tmp_path / "more.h5", dim=3, extractor="tiles") as writer:
            writer.write("new", torch.rand(4, 3), boxes=torch.rand(4, 4), image_size=(1, 1))
        mine.index.add(mine.matcher, RegionStore(tmp_path / "more.h5"))
        assert "new" in [hit["id"] for hit in found(client, text="red")["hits"]]


def test_ids_that_are_no_text_do_not_stop_an_answer(tmp_path):
    mine = make_world(tmp_path, images=3)
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    with RegionStoreWriter(tmp_path / "more.h5", dim=3, extractor="tiles") as writer:
        writer.write(name, torch.rand(4, 3), boxes=torch.rand(4, 4), image_size=(1, 1))
    mine.index.add(mine.matcher, RegionStore(tmp_path / "more.h5"))
    with TestClient(make_app(Searcher(mine.index, mine.matcher)), base_url=HOST) as client:
        assert "caf\ufffd" in [hit["id"] for hit in found(client, text="red")["hits"]]


def test_captions_are_not_served(world, tmp_path):
    captions = Index.build(world.matcher, [Caption("scene-1", "0", "a red tile", "test")], tmp_path / "captions.index")
    with pytest.raises(ValueError, match="holds captions; what is served is an index of images"):
        Searcher(captions, world.matcher)


def test_everything_is_checked_before_the_first_request(world, tmp_path):
    world.matcher.save_pretrained(tmp_path / "model")
    app = open_app(world.index.path, tmp_path / "model", world.images)
    with TestClient(app, base_url=HOST) as client:
        assert client.get("/api/about").json()["calibrated"] is False
        assert found(client, text="red")["no_good_match"] is None
    with pytest.raises(FileNotFoundError, match="holds no index"):
        open_app(tmp_path, tmp_path / "model", None)
    other = make_world(tmp_path, images=3, head={"name": "cosine"})
    with pytest.raises(ValueError, match="was built with another model"):
        open_app(other.index.path, tmp_path / "model", None)


def test_an_address_that_is_taken_is_told():
    with listen("127.0.0.1", 0) as first:
        first.listen()
        with pytest.raises(OSError, match=r"cannot listen on 127.0.0.1, port \d+: .*Choose another --port"):
            listen("127.0.0.1", first.getsockname()[1])
