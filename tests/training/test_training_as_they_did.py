"""How the released code of the later heads trains: Adamax, schedules, corrupted captions, views, patience."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_data import DIM

from xmodal.data import PairBatch
from xmodal.model import Matcher
from xmodal.training.augmentation import Corruption, repeated
from xmodal.training.config import OptimizerConfig, load_recipe
from xmodal.training.matching import MatchingTask
from xmodal.training.optimizer import make_optimizer, make_schedule
from xmodal.training.trainer import train


def rates_of(recipe, per_epoch, steps):
    """Learning rates of some steps under a recipe's schedule."""
    config = load_recipe(recipe).optimizer
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    (factor,) = make_schedule(optimizer, config, per_epoch, epochs=200).lr_lambdas
    return [config.learning_rate * factor(step) for step in steps]


def test_mtfn_changes_its_rate_by_epochs_as_released():
    """MTFN-RR, train.py: adjust_learning_rate, written plainly."""

    def released(epoch):
        return 1e-4 / 10 * (epoch // 8 + 4) if epoch < 50 else 1e-4 if epoch < 100 else 1e-4 / 10

    found = rates_of("mtfn_f30k", 3, range(360))
    assert found == pytest.approx([released(step // 3) for step in range(360)])


@pytest.mark.parametrize(
    ("recipe", "lr", "warmup", "decays"),
    [
        ("adapt_t2i_f30k", 1e-3, 4000, range(10000, 20000, 3000)),
        ("adapt_i2t_coco", 7e-4, 16000, range(40000, 80000, 8000)),
    ],
)
def test_adapt_changes_its_rate_by_steps_as_released(recipe, lr, warmup, decays):
    """gradual_warmup_steps is a linspace from half to twice the rate; every step of lr_decay_epochs takes a quarter."""
    gradual = (lr * torch.linspace(0.5, 2.0, warmup, dtype=torch.float64)).tolist()
    steps = [*range(0, 100_000, 977), warmup - 1, warmup, *decays, *(step - 1 for step in decays)]
    expected = [
        gradual[step] if step < warmup else 2.0 * lr * 0.25 ** sum(step >= decay for decay in decays) for step in steps
    ]
    assert rates_of(recipe, 1133, steps) == pytest.approx(expected, rel=1e-6)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "factors"}, "schedule is 'factors' and factors are not given"),
        ({"factors": {"epoch 1": 0.1}}, "schedule is 'step' and factors are {'epoch 1': 0.1}"),
        ({"schedule": "factors", "factors": {"8": 0.1}}, "factors: '8' does not say when; wanted 'epoch 8', 'step 1"),
        ({"schedule": "factors", "factors": {"step 8": -1.0}}, "factors.step 8 is -1.0; wanted a finite number"),
    ],
)
def test_factors_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**options)


def test_adamax_is_torchs():
    one, other = (torch.nn.Linear(3, 4) for _ in range(2))
    other.load_state_dict(one.state_dict())
    ours = make_optimizer(one, OptimizerConfig("adamax", 0.1, weight_decay=0.01))
    theirs = torch.optim.Adamax(other.parameters(), lr=0.1, weight_decay=0.01)
    for batch in torch.randn(5, 6, 3):
        for module, optimizer in ((one, ours), (other, theirs)):
            optimizer.zero_grad()
            module(batch).square().sum().backward()
            optimizer.step()
    assert torch.equal(one.weight, other.weight)


def batch_of(tokens, lengths):
    mask = torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None]
    return PairBatch(torch.rand(len(tokens), 2), tokens * mask, mask, *[torch.arange(len(tokens))] * 2)


def test_words_are_masked_replaced_and_left_out_in_the_released_shares():
    torch.manual_seed(0)
    tokens = torch.arange(1000, 1050).repeat(400, 1)
    changed = Corruption(share=0.2, mask=999, words=900, keep_ends=False)(batch_of(tokens, [50] * 400))
    real = changed.tokens[changed.word_mask]
    assert 0.07 < 1 - len(real) / 20_000 < 0.09
    assert 0.09 < (real == 999).sum() / 20_000 < 0.11
    assert 0.014 < (real < 900).sum() / 20_000 < 0.024
    for row, mask in zip(changed.tokens, changed.word_mask, strict=True):
        left = [token for token in row[mask].tolist() if token >= 1000]
        assert left == sorted(set(left))
        assert not (mask[1:] & ~mask[:-1]).any(), "real words come first"


@pytest.mark.parametrize("keep_ends", [False, True])
def test_ends_stay_where_they_are_no_words_and_no_caption_loses_all(keep_ends):
    torch.manual_seed(0)
    tokens = torch.full((300, 6), 7)
    tokens[:, 0] = 1
    lengths = [2 + number % 5 for number in range(300)]
    tokens[torch.arange(300), torch.tensor(lengths) - 1] = 2
    changed = Corruption(share=0.999, mask=3, words=5, keep_ends=keep_ends)(batch_of(tokens, lengths))
    assert changed.word_mask.any(dim=1).all()
    ends = changed.tokens.gather(1, changed.word_mask.sum(dim=1, keepdim=True) - 1)
    if keep_ends:
        assert (changed.tokens[:, 0] == 1).all()
        assert (ends == 2).all()
    else:
        assert (changed.tokens[:, 0] != 1).any()


def test_what_masks_is_told_by_the_tokenizer():
    assert Corruption.of(0.1, ["[PAD]", "[UNK]", "[MASK]"], subwords=True) == Corruption(0.1, 2, 3, keep_ends=True)
    with pytest.raises(ValueError, match="the tokenizer has none of <mask>, "):
        Corruption.of(0.1, ["dog"], subwords=False)


def test_views_of_a_pair_stand_side_by_side_and_are_corrupted_apart(config, change, data_folder):
    data = dataclasses.replace(config.data, views=3, corrupt_words=0.5)
    task = MatchingTask(change(config, data=data, objective={"name": "esa"}), torch.device("cpu"))
    assert task.step_module.objective.views == 3
    assert task.step_module.objective.hardness.steps_per_epoch == -(-len(task.dataset) // 16)
    batch = task.dataset.__getitems__([0, 5])
    prepared = task.prepare(batch)
    assert prepared.caption.tolist() == [0, 0, 0, 5, 5, 5]
    assert torch.equal(prepared.images.regions[0], prepared.images.regions[2])
    assert repeated(batch, 2).images.regions.shape[0] == 4
    assert torch.unique(prepared.tokens[:3], dim=0).shape[0] > 1
    assert task.step_module(prepared, step=0)["total"].isfinite()


def test_views_that_the_objective_takes_for_pairs_are_refused(config, change):
    data = dataclasses.replace(config.data, views=2)
    with pytest.raises(ValueError, match=r"data\.views is 2, but the objective 'hinge' takes every row for a pair"):
        MatchingTask(change(config, data=data), torch.device("cpu"))
    with pytest.raises(ValueError, match="views is stated as 2, but it is 1 here"):
        MatchingTask(change(config, objective={"name": "esa", "views": 2}), torch.device("cpu"))


def small(config, recipe, folder=None):
    """A published recipe on little data, at a size for it."""
    published = load_recipe(recipe)
    image, text = published.model.image, published.model.text
    image = {**image, "dim": 16, **({"hidden_dim": 8} if "hidden_dim" in image else {})}
    text = {**text, "word_dim": 4, **({"fixed_dim": 3} if "fixed_dim" in text else {})}
    sizes = {"hidden_dim": 8, "fused_dim": 8, "rank": 2, "relation_dim": 4}
    head = {option: sizes.get(option, value) for option, value in published.model.head.items()}
    model = dataclasses.replace(published.model, image=image, text=text, head=head, word_vectors=folder)
    data = dataclasses.replace(published.data, folder=config.data.folder, validation_images=0)
    return dataclasses.replace(
        published, model=model, data=data, output=config.output, epochs=1, batch_size=16, progress=False
    )


@pytest.fixture
def vectors(tmp_path):
    """Vectors of 3 and of 4 numbers for two words of the vocabulary."""

    def write(dim):
        path = tmp_path / f"vectors{dim}.txt"
        path.write_text("".join(f"{word} {' '.join(['0.5'] * dim)}\n" for word in ("dog", "cat")))
        return path

    return write


def test_esa_trains_as_published_on_little_data(config, vectors, read_log):
    run = small(config, "esa_f30k", vectors(4))
    train(run)
    losses = [line["loss/total"] for line in read_log(run.output) if "loss/total" in line]
    assert losses
    assert all(0 < loss < 1e6 for loss in losses)
    best = Matcher.from_pretrained(run.output / "best")
    assert best.head.image_pooler.drop == 0.2
    assert best.score([torch.rand(5, DIM)], ["a dog"]).shape == (1, 1)


@pytest.mark.parametrize("recipe", ["adapt_t2i_f30k", "adapt_i2t_coco", "chan_coco", "rdan_style_f30k", "mtfn_f30k"])
def test_recipes_of_the_later_heads_train_on_little_data(config, recipe, vectors, read_log):
    published = load_recipe(recipe)
    folder = None if published.model.word_vectors is None else vectors(3 if "fixed_dim" in published.model.text else 4)
    run = small(config, recipe, folder)
    train(run)
    losses = [line["loss/total"] for line in read_log(run.output) if "loss/total" in line]
    assert losses
    assert all(torch.tensor(loss).isfinite() for loss in losses)
    assert Matcher.from_pretrained(run.output / "best").score([torch.rand(5, DIM)], ["a dog"]).isfinite().all()


def test_fixed_vectors_stay_as_they_are_beside_learned_ones(config, change, vectors):
    run = small(config, "adapt_t2i_f30k", vectors(3))
    train(run)
    encoder = Matcher.from_pretrained(run.output / "best").text_encoder
    words = Matcher.from_pretrained(run.output / "best").tokenizer.words
    expected = torch.zeros(len(words), 3)
    expected[[words.index("dog"), words.index("cat")]] = 0.5
    assert torch.equal(encoder.fixed.weight, expected)
    assert encoder.rnn.input_size == 7
    with pytest.raises(ValueError, match="fixed_dim is 3, but there are no vectors for it"):
        MatchingTask(change(run, model__word_vectors=None), torch.device("cpu"))
    with pytest.raises(ValueError, match="set the text encoder's fixed_dim to 4"):
        MatchingTask(change(run, model__word_vectors=vectors(4)), torch.device("cpu"))


def test_training_ends_after_so_many_validations_without_a_better_result(config, change, monkeypatch, read_log):
    """Also where it is resumed; ADAPT gives up after 20."""
    way = {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0}
    remaining = iter([100.0, 300.0, 200.0, 250.0, 290.0, 999.0])
    monkeypatch.setattr(MatchingTask, "validate", lambda _: {"i2t": way, "t2i": way, "rsum": next(remaining)})
    config = change(config, epochs=20, validate_every=2, patience=3)
    best = train(config)
    assert (best["rsum"], best["step"]) == (300.0, 4)
    assert [line["step"] for line in read_log(config.output) if "validation" in line] == [2, 4, 6, 8, 10]
    assert train(change(config, resume=True)) == best


LATER = {
    "chan": (5e-4, "adamw", 0.01, 25, 384),
    "chan_bert": (5e-4, "adamw", 1e-4, 25, 128),
    "gpo": (5e-4, "adamw", 1e-4, 25, 128),
    "esa": (5e-4, "adamw", 0.01, 25, 128),
}


@pytest.mark.parametrize("dataset", ["f30k", "coco"])
@pytest.mark.parametrize("name", LATER)
def test_recipes_hold_the_released_arguments(name, dataset):
    """The commands and defaults of the released code of CHAN, vse_infty and ESA."""
    config, (rate, kind, decay, epochs, batch_size) = load_recipe(f"{name}_{dataset}"), LATER[name]
    rates = {"matcher.text_encoder.transformer": 0.1} if config.model.text["name"] == "bert" else {}
    assert config.optimizer == OptimizerConfig(kind, rate, rates=rates, weight_decay=decay, clip_norm=2.0)
    assert (config.optimizer.schedule, config.optimizer.decay_epochs, config.optimizer.decay) == ("step", 15, 0.1)
    assert (config.epochs, config.batch_size, config.best_at) == (epochs, batch_size, "epoch_ends")
    assert config.objective["margin"] == (0.05 if name.startswith("chan") else 0.2)
    assert (config.objective["all_negatives_epochs"], config.objective["mask_false_negatives"]) == (1, False)
    assert config.data.corrupt_words == 0.2
    assert (config.data.views, config.data.drop_regions) == ((2, 0.0) if name == "esa" else (1, 0.2))


@pytest.mark.parametrize("dataset", ["f30k", "coco"])
@pytest.mark.parametrize("way", ["t2i", "i2t"])
def test_recipes_of_adapt_hold_the_released_options(way, dataset):
    config = load_recipe(f"adapt_{way}_{dataset}")
    assert config.model.head == {"name": "adapt", "direction": way, "pooling": "mean",
                                 "temperature": 10.0 if dataset == "f30k" else 5.0}  # fmt: skip
    assert config.batch_size == (105 if (way, dataset) == ("t2i", "f30k") else 128)
    assert (config.validate_every, config.patience, config.best_at) == (500, 20, "every_validation")
    assert config.objective["curriculum"] == 0.991
    assert (config.optimizer.name, config.optimizer.clip_norm, config.epochs) == ("adamax", 2.0, 30)
