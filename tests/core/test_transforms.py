import math

import pytest
import torch

from segray.config import AugmentSection
from segray.core.losses import cross_entropy
from segray.core.transforms import IMAGENET_MEAN, augment, normalize, to_float

STILL = AugmentSection(scale=(1, 1), rotate_deg=0, flip=0, brightness=0, contrast=0, saturation=0, max_class_share=1)


def scene(count=4, height=40, width=60):
    """Class i is painted as red 20·i: the picture says what the mask must be."""
    masks = torch.zeros(count, height, width, dtype=torch.uint8)
    masks[:, : height // 2] = 3
    masks[:, :, : width // 3] = 9
    images = torch.zeros(count, height, width, 3, dtype=torch.uint8)
    images[..., 0] = masks * 20
    return images, masks


def run(config, seed=0):
    return augment(*scene(), config, torch.Generator().manual_seed(seed))


def test_without_any_change_pixels_and_ids_stay():
    images, masks = run(STILL)
    assert torch.equal(masks, scene()[1].long())
    assert torch.allclose(images, normalize(to_float(scene()[0])), atol=1e-4)


def test_a_flip_mirrors_both():
    images, masks = run(STILL.model_copy(update={"flip": 1.0}))
    assert torch.equal(masks, scene()[1].long().flip(2))
    assert torch.allclose(images, normalize(to_float(scene()[0])).flip(3), atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_image_and_mask_stay_in_step_and_outside_is_void_and_the_mean_colour(seed):
    config = AugmentSection(scale=(0.5, 2), rotate_deg=30, brightness=0, contrast=0, saturation=0)
    images, masks = run(config, seed)
    red = images[:, 0] * 0.229 + IMAGENET_MEAN[0]
    said = (red * 255 / 20).round().long()
    inside = masks != 255
    assert set(masks.unique().tolist()) <= {0, 3, 9, 255}
    assert (said == masks)[inside].float().mean() > 0.93  # only edges are blended
    assert (red - IMAGENET_MEAN[0]).abs()[~inside].median() < 1e-5 if (~inside).any() else True


def test_the_same_seed_draws_the_same_batch_and_another_seed_another():
    assert torch.equal(run(AugmentSection(), 1)[0], run(AugmentSection(), 1)[0])
    assert not torch.equal(run(AugmentSection(), 1)[0], run(AugmentSection(), 2)[0])


def test_cross_entropy_leaves_void_out():
    logits = torch.tensor([[[[0.0, 9.0]], [[math.log(3), 0.0]]]])  # pixel 0: 1/4, 3/4; pixel 1 is void
    assert cross_entropy(logits, torch.tensor([[[1, 255]]])).item() == pytest.approx(-math.log(3 / 4))


def test_a_batch_of_void_gives_nothing_to_learn():
    logits = torch.zeros(1, 2, 1, 2, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 1, 2), 255))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0
