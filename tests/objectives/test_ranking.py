"""The ranking objectives against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xmodal.objectives import HingeRanking, InfoNCE, hinge_ranking_loss, info_nce_loss


def slow_hinge(scores, margin, hardest, reduction, caption_image):
    """Every triplet by hand."""
    pairs = range(len(scores))
    loss = 0.0
    for i in pairs:
        negatives = [j for j in pairs if caption_image[j] != caption_image[i]]
        for costs in (
            [max(0.0, margin + scores[i][j] - scores[i][i]) for j in negatives],  # captions for image i
            [max(0.0, margin + scores[j][i] - scores[i][i]) for j in negatives],  # images for caption i
        ):
            loss += (1 - hardest) * sum(costs) + hardest * max(costs, default=0.0)
    return loss if reduction == "sum" else loss / len(scores)


def slow_info_nce(scores, temperature, caption_image):
    """Cross entropy of every row and every column by hand."""
    pairs = range(len(scores))
    loss = 0.0
    for i in pairs:
        kept = [j for j in pairs if j == i or caption_image[j] != caption_image[i]]
        for row in ([scores[i][j] for j in kept], [scores[j][i] for j in kept]):
            loss += math.log(sum(math.exp(x / temperature) for x in row)) - scores[i][i] / temperature
    return loss / (2 * len(scores))


@st.composite
def problems(draw):
    """Scores in float64 and the image of every caption, repeated images among them."""
    count = draw(st.integers(1, 6))
    scores = torch.randn(count, count, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31)))).double()
    return scores, torch.tensor(draw(st.lists(st.integers(0, 9), min_size=count, max_size=count)))


mixes = st.sampled_from([True, False, 0.0, 0.3, 1.0])


@given(problems(), mixes, st.sampled_from(["sum", "mean"]), st.booleans())
def test_hinge_equals_the_slow_oracle(problem, hardest, reduction, masked):
    scores, images = problem
    loss = hinge_ranking_loss(
        scores, margin=0.4, hardest=hardest, reduction=reduction, caption_image=images if masked else None
    )
    expected = slow_hinge(scores.tolist(), 0.4, hardest, reduction, images.tolist() if masked else range(len(scores)))
    assert loss.item() == pytest.approx(expected)


@given(problems(), st.booleans())
def test_info_nce_equals_the_slow_oracle(problem, masked):
    scores, images = problem
    loss = info_nce_loss(scores, temperature=0.7, caption_image=images if masked else None)
    expected = slow_info_nce(scores.tolist(), 0.7, images.tolist() if masked else range(len(scores)))
    assert loss.item() == pytest.approx(expected, abs=1e-12)


losses = st.sampled_from([hinge_ranking_loss, info_nce_loss])


@given(problems(), losses, st.randoms(use_true_random=False))
def test_the_order_of_pairs_changes_nothing(problem, loss, random):
    scores, images = problem
    order = torch.tensor(random.sample(range(len(scores)), len(scores)))
    shuffled = loss(scores[order][:, order], caption_image=images[order])
    torch.testing.assert_close(shuffled, loss(scores, caption_image=images))


@given(problems(), losses, st.floats(-5, 5))
def test_a_constant_added_to_all_scores_changes_nothing(problem, loss, constant):
    scores, images = problem
    torch.testing.assert_close(loss(scores + constant, caption_image=images), loss(scores, caption_image=images))


@given(problems(), losses)
def test_images_and_captions_are_treated_alike(problem, loss):
    scores, images = problem
    torch.testing.assert_close(loss(scores.T, caption_image=images), loss(scores, caption_image=images))


@pytest.mark.parametrize("loss", [hinge_ranking_loss, info_nce_loss])
def test_false_negatives_get_no_gradient(loss):
    scores = torch.zeros(3, 3, requires_grad=True)
    loss(scores, caption_image=torch.tensor([7, 4, 7])).backward()
    assert scores.grad[0, 2] == scores.grad[2, 0] == 0
    assert scores.grad[0, 1] > 0
    assert scores.grad[1, 2] > 0


@pytest.mark.parametrize("loss", [hinge_ranking_loss, info_nce_loss])
def test_a_batch_of_one_image_costs_nothing(loss):
    scores = torch.randn(3, 3, requires_grad=True)
    value = loss(scores, caption_image=torch.zeros(3, dtype=torch.long))
    value.backward()
    assert value.item() == pytest.approx(0.0)
    assert (scores.grad == 0).all()


@pytest.mark.parametrize("hardest", [False, 0.5, True])
def test_hinge_gradients_equal_finite_differences(hardest):
    scores = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: hinge_ranking_loss(s, hardest=hardest), scores)


def test_info_nce_gradients_equal_finite_differences():
    scores = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    images = torch.tensor([0, 1, 0, 2, 3])
    assert torch.autograd.gradcheck(
        lambda s, t: info_nce_loss(s, temperature=t, caption_image=images), (scores, temperature)
    )


def test_the_gradient_of_a_tie_reaches_one_negative():
    scores = torch.zeros(3, 3, requires_grad=True)
    hinge_ranking_loss(scores, hardest=True).backward()
    captions_of_image = scores.grad.clone().fill_diagonal_(0)
    assert captions_of_image.sum() == 6  # one negative for each of three rows and three columns
    assert (scores.grad.diag() == -2).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", [hinge_ranking_loss, info_nce_loss])
def test_half_precision_is_computed_in_float32(loss, dtype):
    scores = (torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) * 20).to(dtype).requires_grad_()
    value = loss(scores)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(scores.float()))
    assert scores.grad.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss(scores), value)


def test_warm_up_grows_linearly_from_all_negatives_to_the_hardest():
    scores = torch.randn(6, 6, generator=torch.Generator().manual_seed(0))
    objective = HingeRanking(margin=0.3, hardest=0.8, warmup_steps=10)
    for step, hardest in ((0, 0.0), (5, 0.4), (10, 0.8), (1000, 0.8)):
        expected = hinge_ranking_loss(scores, margin=0.3, hardest=hardest)
        torch.testing.assert_close(objective(scores, step=step)["total"], expected)
    torch.testing.assert_close(HingeRanking()(scores, step=0)["total"], hinge_ranking_loss(scores))


@pytest.mark.parametrize("objective", [HingeRanking, InfoNCE])
def test_false_negatives_are_masked_unless_asked_not_to(objective):
    scores, images = torch.zeros(3, 3), torch.tensor([0, 1, 0])
    scores[0, 2] = 1.0
    unmasked = objective(mask_false_negatives=False)(scores, images, step=0)["total"]
    assert unmasked == objective()(scores, step=0)["total"]
    assert unmasked > objective()(scores, images, step=0)["total"]


def test_info_nce_temperature_is_learned_only_when_asked():
    scores = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    assert not list(InfoNCE().parameters())
    learned = InfoNCE(temperature=0.1, learn_temperature=True)
    value = learned(scores, step=0)["total"]
    torch.testing.assert_close(value.detach(), info_nce_loss(scores, temperature=0.1))
    value.backward()
    assert learned.log_temperature.grad != 0


def slow_pairs(scores, positives):
    """Every right pair: its score, and the scores of the wrong captions and of the wrong images."""
    images, captions = range(len(scores)), range(len(scores[0]))
    for i in images:
        for c in captions:
            if positives[i][c]:
                wrong_captions = [scores[i][other] for other in captions if not positives[i][other]]
                wrong_images = [scores[other][c] for other in images if not positives[other][c]]
                yield scores[i][c], (wrong_captions, wrong_images)


def slow_hinge_of_pairs(scores, positives, margin, hardest, reduction):
    costs = [
        [max(0.0, margin + wrong - right) for wrong in side]
        for right, sides in slow_pairs(scores, positives)
        for side in sides
    ]
    loss = sum((1 - hardest) * sum(side) + hardest * max(side, default=0.0) for side in costs)
    return loss if reduction == "sum" else loss / (len(costs) / 2)


def slow_info_nce_of_pairs(scores, positives, temperature):
    terms = [
        math.log(sum(math.exp(x / temperature) for x in [right, *side])) - right / temperature
        for right, sides in slow_pairs(scores, positives)
        for side in sides
    ]
    return sum(terms) / len(terms)


@st.composite
def batches(draw):
    """Scores in float64 of any shape, and which pairs belong together: one at least."""
    images, captions = draw(st.integers(1, 4)), draw(st.integers(1, 7))
    seed = draw(st.integers(0, 2**31))
    scores = torch.randn(images, captions, generator=torch.Generator().manual_seed(seed)).double()
    flat = draw(st.lists(st.booleans(), min_size=images * captions, max_size=images * captions).filter(any))
    return scores, torch.tensor(flat).reshape(images, captions)


@given(batches(), mixes, st.sampled_from(["sum", "mean"]))
def test_hinge_of_any_right_pairs_equals_the_slow_oracle(batch, hardest, reduction):
    scores, positives = batch
    loss = hinge_ranking_loss(scores, margin=0.4, hardest=hardest, reduction=reduction, positives=positives)
    expected = slow_hinge_of_pairs(scores.tolist(), positives.tolist(), 0.4, hardest, reduction)
    assert loss.item() == pytest.approx(expected)


@given(batches())
def test_info_nce_of_any_right_pairs_equals_the_slow_oracle(batch):
    scores, positives = batch
    expected = slow_info_nce_of_pairs(scores.tolist(), positives.tolist(), 0.7)
    assert info_nce_loss(scores, temperature=0.7, positives=positives).item() == pytest.approx(expected, abs=1e-12)


@given(batches(), losses)
def test_images_and_captions_are_treated_alike_in_any_shape(batch, loss):
    scores, positives = batch
    torch.testing.assert_close(loss(scores.T, positives=positives.T), loss(scores, positives=positives))


@given(problems(), losses)
def test_the_diagonal_as_positives_is_the_square_form(problem, loss):
    scores, _ = problem
    positives = torch.eye(len(scores), dtype=torch.bool)
    torch.testing.assert_close(loss(scores, positives=positives), loss(scores), rtol=0, atol=0)


@pytest.mark.parametrize("loss", [hinge_ranking_loss, info_nce_loss])
def test_eight_images_and_forty_captions(loss):
    scores = torch.randn(8, 40, generator=torch.Generator().manual_seed(0)).double()
    rows = torch.arange(40) % 8
    value = loss(scores, caption_image=rows)
    assert value == loss(scores, positives=torch.arange(8)[:, None] == rows)
    positives = (torch.arange(8)[:, None] == rows).tolist()
    hinge = slow_hinge_of_pairs(scores.tolist(), positives, 0.2, 1.0, "sum")
    slow = {hinge_ranking_loss: hinge, info_nce_loss: slow_info_nce_of_pairs(scores.tolist(), positives, 0.05)}
    assert value.item() == pytest.approx(slow[loss])


@pytest.mark.parametrize("loss", [hinge_ranking_loss, info_nce_loss])
def test_gradients_of_many_right_pairs_equal_finite_differences(loss):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 7, dtype=torch.float64, generator=generator).requires_grad_()
    positives = torch.rand(3, 7, generator=generator) < 0.4
    assert torch.autograd.gradcheck(lambda s: loss(s, positives=positives), scores)
    assert torch.autograd.gradcheck(lambda s: loss(s, caption_image=torch.arange(7) % 3), scores)


@pytest.mark.parametrize("objective", [HingeRanking(warmup_steps=9), InfoNCE(mask_false_negatives=False)])
def test_objectives_without_a_step_are_the_whole_loss_on_any_batch(objective):
    square, wide = torch.randn(4, 4), torch.randn(2, 6)
    rows = torch.arange(6) % 2
    loss = hinge_ranking_loss if isinstance(objective, HingeRanking) else info_nce_loss
    torch.testing.assert_close(objective(square)["total"], loss(square))
    torch.testing.assert_close(objective(wide, rows)["total"], loss(wide, caption_image=rows))
    torch.testing.assert_close(objective(wide, positives=wide > 0)["total"], loss(wide, positives=wide > 0))


SQUARE = torch.zeros(3, 3)
WIDE = torch.zeros(2, 3)


@pytest.mark.bad_input
@pytest.mark.parametrize("loss", [hinge_ranking_loss, info_nce_loss])
@pytest.mark.parametrize(
    ("scores", "images", "message"),
    [
        (torch.zeros(3, 4), None, r"scores must be \(pair, pair\).*got \(3, 4\)"),
        (torch.zeros(3), None, r"scores must be \(pair, pair\).*got \(3,\)"),
        (SQUARE, torch.zeros(2, dtype=torch.long), r"caption_image must have shape \(3,\), got \(2,\)"),
        (WIDE, torch.zeros(2, dtype=torch.long), r"caption_image must have shape \(3,\), got \(2,\)"),
        (WIDE, torch.tensor([0, 1, 2]), r"caption_image\[2\] is 2; .* 2 images and 3 captions .* from 0 to 1"),
        (WIDE, torch.tensor([0, -1, 1]), r"caption_image\[1\] is -1"),
    ],
)
def test_bad_shapes(loss, scores, images, message):
    with pytest.raises(ValueError, match=message):
        loss(scores, caption_image=images)


@pytest.mark.bad_input
@pytest.mark.parametrize("loss", [hinge_ranking_loss, info_nce_loss])
def test_bad_positives(loss):
    with pytest.raises(ValueError, match=r"positives must be booleans .* \(2, 3\); got torch.bool of shape \(3, 2\)"):
        loss(WIDE, positives=torch.ones(3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"positives must be booleans .* got torch.int64"):
        loss(WIDE, positives=torch.ones(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="positives has no pair"):
        loss(WIDE, positives=torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="give one of them"):
        loss(WIDE, positives=torch.ones(2, 3, dtype=torch.bool), caption_image=torch.zeros(3, dtype=torch.long))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hinge_ranking_loss(SQUARE, hardest=1.5), "hardest must be at least 0 and at most 1, got 1.5"),
        (lambda: hinge_ranking_loss(SQUARE, hardest=float("nan")), "hardest must be at least 0 and at most 1, got nan"),
        (lambda: hinge_ranking_loss(SQUARE, reduction="none"), "reduction must be one of sum, mean; got 'none'"),
        (lambda: info_nce_loss(SQUARE, temperature=0.0), "temperature must be positive, got 0.0"),
        (lambda: InfoNCE(temperature=-1.0), "temperature must be positive, got -1.0"),
    ],
)
def test_bad_options(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@given(problems(), st.floats(0.05, 2))
def test_left_out_pairs_are_not_there(problem, temperature):
    """DP-RNN gives minus infinity to pairs that it does not compare; a learned temperature sees none of them."""
    scores, images = problem
    left_out = torch.rand(scores.shape, generator=torch.Generator().manual_seed(len(scores))) < 0.4
    left_out.fill_diagonal_(False)
    given = scores.masked_fill(left_out, -math.inf).requires_grad_()
    objective = InfoNCE(temperature, learn_temperature=True).double()
    objective.log_temperature.data.fill_(math.log(temperature))
    loss = objective(given, images)["total"]
    loss.backward()

    def slow(temperature):  # exp(-inf) is 0
        return slow_info_nce(given.tolist(), temperature, images.tolist())

    assert loss.item() == pytest.approx(slow(temperature))
    step = 1e-6
    slope = (slow(temperature * math.exp(step)) - slow(temperature * math.exp(-step))) / (2 * step)
    assert objective.log_temperature.grad.item() == pytest.approx(slope, rel=1e-4, abs=1e-6)
    assert given.grad.isfinite().all()
    assert not given.grad[left_out].any()


def test_a_fixed_temperature_has_all_the_digits_of_its_scores():
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)).double()
    objective = InfoNCE(0.05).double()
    assert objective(scores)["total"].item() == pytest.approx(slow_info_nce(scores.tolist(), 0.05, range(5)), rel=1e-14)
    objective.load_state_dict({"log_temperature": torch.tensor(0.05).log()})  # as checkpoints used to have it
    assert objective(scores.float())["total"] == info_nce_loss(scores.float(), temperature=0.05)
