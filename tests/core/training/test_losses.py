"""Each loss by hand on a few pixels, against the libraries that have it, and at its edges."""

import math

import pytest
import segmentation_models_pytorch as smp
import torch
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from segray.config import load
from segray.core.training import losses
from segray.core.training.losses import LOSSES, LossOptions


def two_pixels(p, q):
    """Logits of two classes for which the true class 1 has the probabilities p and q; [1, 2, 1, 2] and masks."""
    logits = torch.tensor([[[[0.0, 0.0]], [[math.log(p / (1 - p)), math.log(q / (1 - q))]]]])
    return logits, torch.ones(1, 1, 2, dtype=torch.long)


def batch(classes=4, seed=0, void=True):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 9, 7, generator=generator)
    masks = torch.randint(classes, (2, 9, 7), generator=generator)
    if void:
        masks[:, :2] = 255
    return logits, masks


def test_cross_entropy_is_the_mean_of_minus_log_p():
    assert LOSSES["cross_entropy"](*two_pixels(0.25, 0.5)).item() == pytest.approx((math.log(4) + math.log(2)) / 2)


def test_focal_weighs_by_what_is_missing_to_certainty():
    expected = (0.75**2 * math.log(4) + 0.5**2 * math.log(2)) / 2
    assert LOSSES["focal"](*two_pixels(0.25, 0.5)).item() == pytest.approx(expected)
    plain = LOSSES["focal"](*two_pixels(0.25, 0.5), LossOptions(focal_gamma=0.0))
    assert plain.item() == pytest.approx(LOSSES["cross_entropy"](*two_pixels(0.25, 0.5)).item())


def test_ohem_keeps_hard_pixels_and_at_least_its_share():
    options = LossOptions(ohem_threshold=0.4, ohem_min_share=0.0)
    assert LOSSES["ohem"](*two_pixels(0.25, 0.5), options).item() == pytest.approx(math.log(4))
    options = LossOptions(ohem_threshold=0.1, ohem_min_share=0.5)  # none is hard: the harder half is kept
    assert LOSSES["ohem"](*two_pixels(0.25, 0.5), options).item() == pytest.approx(math.log(4))
    options = LossOptions(ohem_threshold=0.1, ohem_min_share=1.0)
    both = (math.log(4) + math.log(2)) / 2
    assert LOSSES["ohem"](*two_pixels(0.25, 0.5), options).item() == pytest.approx(both)


def test_ohem_keeps_one_pixel_at_least_and_easy_ones_get_no_gradient():
    options = LossOptions(ohem_threshold=0.1, ohem_min_share=0.0)
    logits, masks = two_pixels(0.25, 0.5)
    logits.requires_grad_()
    loss = LOSSES["ohem"](logits, masks, options)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(4))
    assert logits.grad[..., 0].any()
    assert not logits.grad[..., 1].any()


def test_class_weights_weigh_the_pixels_and_divide_the_sum():
    logits, masks = two_pixels(0.25, 0.5)
    masks[0, 0, 1] = 0  # of probability 1 − 0.5
    first, second = math.log(4), math.log(2)
    options = LossOptions(torch.tensor([3.0, 1.0]), ohem_threshold=1.0)
    assert LOSSES["cross_entropy"](logits, masks, options).item() == pytest.approx((first + 3 * second) / 4)
    assert LOSSES["ohem"](logits, masks, options).item() == pytest.approx((first + 3 * second) / 4)
    expected = (0.75**2 * first + 3 * 0.5**2 * second) / 4
    assert LOSSES["focal"](logits, masks, options).item() == pytest.approx(expected)


def test_dice_is_one_minus_twice_the_overlap_over_the_sum():
    # class 1 alone is there: hit 0.25 + 0.5, probabilities 0.75, truth 2
    assert LOSSES["dice"](*two_pixels(0.25, 0.5)).item() == pytest.approx(1 - 2 * 0.75 / (0.75 + 2))


def test_lovasz_of_certain_masks_is_one_minus_iou():
    logits, masks = batch(classes=3)
    sure = functional.one_hot(logits.argmax(1), 3).movedim(-1, 1) * 1000.0
    pred, keep = logits.argmax(1), masks != 255
    ious = [((pred == c) & (masks == c) & keep).sum() / (((pred == c) | (masks == c)) & keep).sum() for c in range(3)]
    assert LOSSES["lovasz"](sure, masks).item() == pytest.approx(1 - sum(ious).item() / 3, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_libraries_agree(seed):
    logits, masks = batch(seed=seed)
    lovasz = smp.losses.LovaszLoss("multiclass", ignore_index=255)
    assert LOSSES["lovasz"](logits, masks).item() == pytest.approx(lovasz(logits, masks).item(), abs=1e-5)
    dice = smp.losses.DiceLoss("multiclass", ignore_index=255)
    assert LOSSES["dice"](logits, masks).item() == pytest.approx(dice(logits, masks).item(), abs=1e-5)
    weights = torch.tensor([1.0, 2.0, 0.5, 0.0])
    theirs = functional.cross_entropy(logits, masks, weight=weights, ignore_index=255)
    assert LOSSES["cross_entropy"](logits, masks, LossOptions(weights)).item() == pytest.approx(theirs.item())


def test_one_logit_is_torchs_binary_cross_entropy_and_torchvisions_focal_loss():
    z, truth = torch.randn(2, 1, 5, 5), torch.randint(2, (2, 5, 5))
    logits = torch.cat([torch.zeros_like(z), z], 1)
    theirs = functional.binary_cross_entropy_with_logits(z[:, 0], truth.float())
    assert LOSSES["cross_entropy"](logits, truth).item() == pytest.approx(theirs.item(), rel=1e-5)
    theirs = sigmoid_focal_loss(z[:, 0], truth.float(), alpha=-1, gamma=2, reduction="mean")
    assert LOSSES["focal"](logits, truth).item() == pytest.approx(theirs.item(), rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_void_pixels_have_no_part(name):
    logits, masks = batch()
    logits.requires_grad_()
    loss = LOSSES[name](logits, masks)
    loss.backward()
    assert loss > 0
    assert not logits.grad[:, :, :2].any()
    other = logits.detach().clone()
    other[:, :, :2] = 77.0
    assert LOSSES[name](other, masks).item() == pytest.approx(loss.item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", ["void", "one class", "certain", "wrong"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses_and_gradients_are_finite_at_the_edges(name, case, dtype):
    logits, masks = batch(void=False)
    if case == "void":
        masks.fill_(255)
    elif case == "one class":
        masks.fill_(2)
    else:
        sign = 1 if case == "certain" else -1
        logits = sign * 1e4 * functional.one_hot(masks, 4).movedim(-1, 1).float()
    logits = logits.to(dtype).requires_grad_()
    loss = LOSSES[name](logits, masks, LossOptions(torch.ones(4)))
    loss.backward()
    assert math.isfinite(loss.item())
    assert logits.grad.isfinite().all()
    if case in ("void", "certain"):
        assert loss.item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_down_the_gradient_lowers_the_loss(name):
    logits, masks = batch()
    logits.requires_grad_()
    before = LOSSES[name](logits, masks)
    (gradient,) = torch.autograd.grad(before, logits)
    assert LOSSES[name](logits.detach() - gradient * 0.1 / gradient.norm(), masks) < before


def test_a_sum_of_losses_weighs_each_and_hands_on_every_option():
    weighted = {"cross_entropy": 2.0, "dice": 0.5, "focal": 1.0, "ohem": 3.0}
    options = {"train.focal_gamma": 1.0, "train.ohem_threshold": 0.3, "train.ohem_min_share": 0.2}
    config = load(None, {"train.loss": weighted} | options).train
    logits, masks = batch()
    class_weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    each = LossOptions(class_weights, focal_gamma=1.0, ohem_threshold=0.3, ohem_min_share=0.2)
    expected = sum(weight * LOSSES[name](logits, masks, each) for name, weight in weighted.items())
    assert losses.combine(config, class_weights)(logits, masks).item() == pytest.approx(expected.item())


def test_dice_and_lovasz_ask_nothing_of_classes_that_the_batch_lacks():
    logits, masks = batch(classes=3)
    masks[masks == 1] = 2
    one_more = torch.cat([logits, torch.full_like(logits[:, :1], -1e4)], 1)  # a class that nothing is, or is said to be
    for name in ("dice", "lovasz"):
        assert LOSSES[name](one_more, masks).item() == pytest.approx(LOSSES[name](logits, masks).item(), abs=1e-6)


def test_lovasz_sorts_the_classes_that_a_batch_holds(monkeypatch):
    logits, masks = batch(classes=4)
    masks[(masks == 1) | (masks == 3)] = 255
    counts, sort = [], torch.Tensor.sort
    monkeypatch.setattr(torch.Tensor, "sort", lambda *args, **given: counts.append(1) or sort(*args, **given))
    LOSSES["lovasz"](logits, masks)
    assert len(counts) == 2


def test_distillation_is_zero_for_equal_logits_and_the_kl_of_softened_ones():
    student, masks = two_pixels(0.5, 0.5)
    teacher, _ = two_pixels(0.8, 0.8)
    assert losses.distillation(teacher, teacher, masks, 3.0).item() == pytest.approx(0, abs=1e-7)
    kl = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert losses.distillation(student, teacher, masks, 1.0).item() == pytest.approx(kl)
    z = math.log(0.8 / 0.2) / 2  # at temperature 2
    p = 1 / (1 + math.exp(-z))
    kl = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    assert losses.distillation(student, teacher, masks, 2.0).item() == pytest.approx(4 * kl)


def test_a_teacher_is_learned_from_at_void_pixels_too():
    student, masks = two_pixels(0.5, 0.5)
    teacher, _ = two_pixels(0.8, 0.8)
    void = torch.full_like(masks, 255)
    assert losses.distillation(student, teacher, void, 2.0) == losses.distillation(student, teacher, masks, 2.0) > 0


def test_median_frequency_balancing_by_hand():
    # two frames of 10 pixels: class 0 fills 8 of one, class 1 has 2 in each, class 2 is in one frame with 8
    weights = losses.median_frequencies(torch.tensor([8, 4, 8, 0]), torch.tensor([10, 20, 10, 0]))
    assert weights.tolist() == pytest.approx([1.0, 4.0, 1.0, 1.0])  # frequencies 0.8, 0.2, 0.8; their median 0.8
    assert losses.median_frequencies(torch.zeros(2).long(), torch.zeros(2).long()).tolist() == [1.0, 1.0]
