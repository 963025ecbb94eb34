"""The evidence on ADDR: what is run in which order, what is recorded of it, and what is not done again elsewhere."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch

from scripts.experiments.addr import evidence as program
from scripts.experiments.addr.alignment import Picture
from scripts.experiments.addr.alignment import main as draw
from scripts.experiments.addr.arms import (
    ADDED,
    ARMS,
    BASELINE,
    BETAS,
    COMPARED,
    DECAYING,
    MATCHED,
    PERMANENT,
    REGIMES,
    SOURCES,
    TUNED,
    Regime,
)
from scripts.experiments.addr.plan import TUNING_SEED, Evidence, Run, minutes, plan, told
from scripts.experiments.addr.regimes import WithoutWhole, has_wholes, regime_folder, shuffled, some_images
from scripts.experiments.addr.tables import tables
from scripts.experiments.record import Record
from xmodal.data import RegionStore, RegionStoreWriter, load_captions
from xmodal.data.split import open_split
from xmodal.training.basin import STEPS


@pytest.fixture
def evidence(data, tmp_path):
    return Evidence(
        ("coco_objects",),
        ("SCAN t-i LSE",),
        seeds=2,
        dim=4,
        epochs=1,
        data=data,
        output=tmp_path / "runs",
        record=tmp_path / "results" / "runs.jsonl",
    )


@pytest.fixture
def at_once(monkeypatch):
    """Every run is finished when it begins; the longer one is the best of the tuning, and of weights the largest."""
    done = []

    def results(run, config):
        rsum = 100.0 + 10 * ("longer" in run.setting) + (run.beta or 0.0) + run.seed % 1000
        done.append((run, config))
        without = None if run.seed == 1 else {"rsum": rsum / 2}  # images of seed 1 have no such regions
        tested = {} if run.seed == TUNING_SEED else {"test": {"rsum": rsum}, "test_without_whole_image": without}
        alignment = {"mean_cosine": [-0.7, -0.75], "basin_at_step": 60 if run.arm == BASELINE else None}
        return {"dev": {"rsum": rsum}, **tested, "alignment": alignment, "seconds": 60.0 * run.length}

    monkeypatch.setattr(program, "results_of", results)
    return done


def test_the_baseline_is_tuned_first_then_the_weights_then_arms_are_compared(evidence, at_once, capsys):
    program.main(evidence)
    runs = [run for run, _ in at_once]
    tuning, weights, compared = runs[: len(TUNED)], runs[len(TUNED) : -8], runs[-8:]
    assert [(run.arm, run.setting, run.seed) for run in tuning] == [(BASELINE, name, TUNING_SEED) for name in TUNED]
    both = [run for run in weights if run.seed == TUNING_SEED] + [run for run in compared if run.seed == TUNING_SEED]
    assert Counter(run.arm for run in both) == {arm: len(betas) for arm, betas in BETAS.items()}
    of_seeds = [run for run in runs if run.seed != TUNING_SEED]
    assert Counter(run.arm for run in of_seeds) == dict.fromkeys(ARMS, 2)
    assert {run.setting for run in of_seeds} == {"longer"}
    assert {run.beta for run in of_seeds} == {None, *(max(betas) for betas in BETAS.values())}
    printed = capsys.readouterr().out
    assert "SCAN t-i LSE + ADDR decaying" in printed
    assert "**+10.0 [+10.0, +10.0]**" in printed
    assert "2 of 2" in printed
    assert "+5.0" not in printed, "one seed is no comparison"

    program.main(evidence)
    assert len(at_once) == len(runs), "what is recorded is not done again"
    lines = [json.loads(line) for line in evidence.record.read_text().splitlines()]
    assert [line["run"] for line in lines] == [asdict(run) for run in runs]
    assert not list(evidence.output.glob("*SCAN*/*.pt"))


def test_another_machine_goes_on_and_says_what_is_left(evidence, at_once, capsys):
    program.main(Evidence(**{**vars(evidence), "arms": (BASELINE,)}))
    first = len(at_once)
    capsys.readouterr()
    program.main(Evidence(**{**vars(evidence), "only_list": True}))
    listed = capsys.readouterr().out
    assert len(at_once) == first, "a list does nothing"
    assert "coco_objects, SCAN t-i LSE, all: + ADDR (longer, beta 10), seed 1000" in listed
    assert "6 runs are ready, 6 wait for what is tuned; about 0.4 hours" in listed  # 12 runs of two passes
    program.main(Evidence(**{**vars(evidence), "output": evidence.output / "elsewhere"}))
    assert len(at_once) == first + 12


def test_what_is_given_is_not_tuned_and_stands_beside_what_is(evidence, at_once, capsys):
    program.main(evidence)
    first = len(at_once)
    given = {**vars(evidence), "setting": "as it is", "beta": 7.0, "arms": (BASELINE, PERMANENT)}
    program.main(Evidence(**given))
    runs = [run for run, _ in at_once[first:]]
    assert {run.seed for run in runs} == {0, 1}
    assert [(run.arm, run.setting, run.beta) for run in runs[::2]] == [
        (BASELINE, "as it is", None),
        (PERMANENT, "as it is", 7.0),
    ]
    table = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "SCAN" in line]
    rows = {tuple(cell.strip() for cell in row[:3]): [cell.strip() for cell in row[3:]] for row in table[-4:]}
    assert rows["SCAN t-i LSE + ADDR", "as it is", "7"][2] == "**+7.0 [+7.0, +7.0]**"
    assert rows["SCAN t-i LSE + ADDR", "longer", "10"][2] == "**+10.0 [+10.0, +10.0]**"
    assert rows["SCAN t-i LSE", "as it is", ""][0] == "2"
    with pytest.raises(ValueError, match="setting: 'other' does not exist"):
        Evidence(**{**given, "setting": "other"})


def test_time_is_estimated_from_runs_alike(evidence):
    run = plan(evidence, {}).ready[0]
    assert minutes(run, {}) == pytest.approx(SOURCES["coco_objects"].minutes / SOURCES["coco_objects"].epochs)
    longer = next(run for run in plan(evidence, {}).ready if run.setting == "longer")
    assert minutes(longer, {run.key: {"seconds": 30.0}}) == pytest.approx(1.0)


def test_settings_reach_the_configuration(evidence):
    def configured(arm, setting="as it is", regime="all", head="SCAN t-i LSE", beta=None):
        return program.configure(evidence, Run("coco_objects", head, regime, arm, setting, beta, 0, 4, 6))

    plain, tuned = configured(BASELINE), configured(BASELINE, "dropout, temperature 0.1")
    assert plain.adversary == {}
    assert plain.objective["temperature"] == 0.05
    assert tuned.objective["temperature"] == 0.1
    assert (tuned.model.image["input_dropout"], tuned.model.text["word_dropout"]) == (0.2, 0.2)
    assert plain.model.text["word_dropout"] == 0
    assert configured(BASELINE, "longer").epochs == 12
    # 48 pairs make one batch, so that a step is an epoch.
    permanent, decaying, matched = (configured(arm, beta=3.0).adversary for arm in (PERMANENT, DECAYING, MATCHED))
    assert (permanent["form"], permanent["beta"], permanent["beta_warmup_steps"]) == ("ridge", 3.0, 1)
    assert "beta_decay_steps" not in permanent
    assert (decaying["name"], decaying["beta_decay_steps"]) == ("addr", 1)
    assert (matched["name"], matched["beta_decay_steps"]) == ("mean_match", 1)
    hinge = configured(BASELINE, regime="hinge").objective
    assert (hinge["name"], hinge["hardest"], hinge["warmup_steps"]) == ("hinge", 1.0, 1)
    assert configured(BASELINE, head="VSRN").model.image["normalize"] is False
    assert {configured(BASELINE, head=head).model.head["name"] for head in COMPARED} == {"scan", "bfan", "vsrn"}


def test_regimes_take_fewer_images_and_other_captions_the_same_ones_each_time(data, tmp_path):
    captions = load_captions(data / "coco_objects" / "captions.jsonl")
    few = some_images(captions, 0.25)
    assert len({caption.image_id for caption in few if caption.split == "train"}) == 6
    assert [c for c in few if c.split != "train"] == [c for c in captions if c.split != "train"]
    assert some_images(captions, 0.25) == few
    other = shuffled(captions, 0.4)
    moved = [(one, two) for one, two in zip(captions, other, strict=True) if one != two]
    assert 0.2 * 48 < len(moved) <= round(0.4 * 48)
    assert all(one.split == "train" and one.caption == two.caption for one, two in moved)
    count = [Counter(caption.image_id for caption in some) for some in (captions, other)]
    assert count[0] == count[1]
    folder = regime_folder(data / "coco_objects", Regime(share=0.25, shuffled=0.4), tmp_path / "made")
    assert load_captions(folder / "captions.jsonl") == shuffled(few, 0.4)
    assert len(RegionStore(folder / "train.h5")) == 24
    assert regime_folder(data / "coco_objects", REGIMES["all"], tmp_path / "not") == data / "coco_objects"


def test_regions_of_the_whole_image_are_left_out_but_for_those_that_are_all_there_is(data, tmp_path):
    store = RegionStore(data / "coco_objects" / "test.h5")
    source = WithoutWhole(store)
    assert has_wholes(store)
    assert not has_wholes(source)
    whole, without = store.batch(range(6)), source.batch(range(6))
    wanted = whole.region_mask.sum(dim=1) - torch.tensor([1] * 5 + [0])
    assert without.region_mask.sum(dim=1).tolist() == wanted.tolist()
    for row in range(6):
        kept = whole.regions[row][whole.region_mask[row]][-int(wanted[row]) :]
        assert torch.equal(without.regions[row][without.region_mask[row]], kept)
    with RegionStoreWriter(tmp_path / "one.h5", dim=5, extractor="by hand", box_convention="xyxy relative") as writer:
        writer.write("one", np.ones((1, 5)), boxes=[[0, 0, 1, 1]])
    assert WithoutWhole(RegionStore(tmp_path / "one.h5")).batch([0]).region_mask.tolist() == [[True]]


def test_real_runs_are_trained_tested_once_and_recorded_with_their_alignment(evidence, monkeypatch, capsys):
    for name in list(TUNED)[1:]:
        monkeypatch.delitem(TUNED, name)
    monkeypatch.setitem(BETAS, DECAYING, (1.0, 3.0))
    read = []
    monkeypatch.setattr(program, "open_split", lambda *given: read.append(given[1]) or open_split(*given))
    program.main(Evidence(**{**vars(evidence), "arms": (BASELINE, DECAYING), "regimes": ("all", "10% of the images")}))
    results = Record(evidence.record).results()
    compared = [result for result in results.values() if result["run"]["seed"] != TUNING_SEED]
    assert len(results) == 2 + 8
    assert read == ["test"] * len(compared) == ["test"] * 8
    for result in compared:
        assert 0 <= result["test"]["rsum"] <= 600
        assert 0 <= result["test_without_whole_image"]["rsum"] <= 600
        assert len(result["alignment"]["mean_cosine"]) == min(10, 5 if "10%" in result["run"]["regime"] else 1)
        assert result["alignment"]["basin_at_step"] is None
        assert result["seconds"] > 0
        assert result["config"]["model"]["image"]["dim"] == 4
        assert result["environment"]["packages"]
    assert any("test" not in result for result in results.values())
    assert "coco_objects, 10% of the images: test" in capsys.readouterr().out
    assert not [path for path in evidence.output.iterdir() if path.name != "data"], "recorded runs are removed"


def test_alignment_is_averaged_in_tenths_and_the_basin_is_found():
    steps = [
        {"step": step + 1, "loss/alignment/mean_cosine": -0.8, "loss/alignment/positive_share": 0.01 * (step // 10)}
        for step in range(100)
    ]
    found = program.alignment_over(steps)
    assert found["mean_cosine"] == [-0.8] * 10
    assert found["positive_share"] == pytest.approx([0.01 * part for part in range(10)])
    assert found["basin_at_step"] == STEPS


def _add(path, start):
    for number in range(start, start + 20):
        Record(path).add({"seed": number}, {"dev": {"rsum": 1.0}})


def test_processes_add_to_one_record_without_losing_a_line(tmp_path):
    path = tmp_path / "runs.jsonl"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_add, args=(path, start)) for start in (0, 100)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(Record(path).results()) == [(number,) for number in (*range(20), *range(100, 120))]


def test_a_damaged_record_and_wrong_names_are_refused(tmp_path):
    path = tmp_path / "runs.jsonl"
    Record(path).add({"seed": 1}, {})
    path.write_text(path.read_text() * 2)
    with pytest.raises(ValueError, match=r"runs.jsonl, line 2 is a second result of {'seed': 1}; remove one"):
        Record(path).results()
    path.write_text('{"run": {"seed": 1}}\n{"run": ')
    with pytest.raises(ValueError, match=r"runs.jsonl, line 2 is no result of a run"):
        Record(path).results()
    with pytest.raises(ValueError, match=r"heads: 'SCAN' does not exist; known: 'SCAN t-i LSE'"):
        Evidence(heads=("SCAN",))
    with pytest.raises(ValueError, match="must be at least 1"):
        Evidence(seeds=0)


def test_what_arms_gain_without_whole_images_is_told_where_it_was_measured(evidence, at_once, capsys):
    program.main(Evidence(**{**vars(evidence), "seeds": 3}))
    (header, _, baseline, first, *_) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    columns = [cell.strip() for cell in header.split("|")]
    without = columns.index("rsum without whole images")
    told = [[cell.strip() for cell in line.split("|")][without : without + 2] for line in (baseline, first)]
    assert columns[without + 1] == "over the baseline"
    assert told == [["55.5 ± 0.7", ""], ["60.5 ± 0.7", "**+5.0 [+5.0, +5.0]**"]], "of seeds 0 and 2"


def test_nothing_is_told_of_one_run(evidence):
    assert tables(evidence, {}) == "no two runs of one arm are recorded yet"
    assert "0.1 hours" in told(Evidence(**{**vars(evidence), "arms": (BASELINE,), "seeds": 1}), {})
    assert set(ADDED) | {BASELINE} == set(ARMS)


def test_the_picture_of_alignment_is_drawn_from_logs(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        lines = [
            {f"loss/alignment/{value}": 0.1 * step for value in ("mean_cosine", "positive_share", "gap")}
            for step in range(5)
        ]
        (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw(Picture((tmp_path / "one", tmp_path / "other"), tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
