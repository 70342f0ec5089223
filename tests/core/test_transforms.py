import pytest
import torch

from segray.config import AugmentSection
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


def said(images):
    """What the pictures say that the masks must be."""
    return ((images[:, 0] * 0.229 + IMAGENET_MEAN[0]) * 255 / 20).round().long()


PLAIN_COLORS = {"brightness": 0, "contrast": 0, "saturation": 0}
RECIPES = {
    "crop": {"crop": (24, 30)},
    "crop beyond the frame": {"crop": (64, 64), "scale": (1, 1), "max_class_share": 1},
    "odd crop": {"crop": (17, 23), "rotate_deg": 45},
    "cutmix": {"mix": "cutmix", "mix_share": 1},
    "classmix": {"mix": "classmix", "mix_share": 1},
    "all": {"crop": (33, 41), "mix": "classmix", "rotate_deg": 20},
}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_cut_turned_and_pasted_stays_in_step(name, seed):
    config = AugmentSection(**(PLAIN_COLORS | RECIPES[name]))
    images, masks = run(config, seed)
    size = config.crop or (40, 60)
    assert images.shape == (4, 3, *size)
    assert masks.shape == (4, *size)
    assert masks.dtype == torch.int64
    inside = masks != 255
    assert set(masks.unique().tolist()) <= {0, 3, 9, 255}
    assert (said(images) == masks)[inside].float().mean() > 0.9  # only edges are blended
    assert images.isfinite().all()


def test_a_crop_at_scale_one_is_a_piece_of_the_frame():
    _, masks = run(STILL.model_copy(update={"crop": (20, 30)}), 3)
    whole = scene()[1].long()[0]
    pieces = whole.unfold(0, 20, 1).unfold(1, 30, 1).reshape(-1, 20, 30)
    for mask in masks:
        assert (pieces == mask).flatten(1).float().mean(1).max() > 0.94  # shifted by less than a pixel


def test_a_crop_larger_than_the_frame_shows_all_of_it_with_void_around():
    images, masks = run(STILL.model_copy(update={"crop": (80, 90)}))
    assert ((masks != 255).sum((1, 2)) - 40 * 60).abs().max() <= 100
    assert images.movedim(1, -1)[masks == 255].ne(0).float().mean() < 0.05  # the frame's edge is blended


def test_crops_full_of_one_class_are_drawn_anew():
    """A third of the frame is class 9, and the rest is 0 and 3: small crops often lie in one class alone."""
    free = AugmentSection(**PLAIN_COLORS, crop=(12, 12), scale=(1, 1), rotate_deg=0, max_class_share=1)

    def full(config):
        masks = torch.cat([run(config, seed)[1] for seed in range(20)])
        share = torch.stack([(masks == c).flatten(1).float().mean(1) for c in (0, 3, 9)]).amax(0)
        return (share > 0.75).float().mean().item()

    assert full(free) > 0.4
    assert full(free.model_copy(update={"max_class_share": 0.75})) < 0.05


def test_hue_turns_colours_and_leaves_grey():
    frame = torch.zeros(1, 4, 8, 3, dtype=torch.uint8)
    frame[..., :4, :] = 128
    frame[..., 4:, 0] = 200
    masks = torch.zeros(1, 4, 8, dtype=torch.uint8)
    config = STILL.model_copy(update={"hue_deg": 120.0})
    out, _ = augment(frame, masks, config, torch.Generator().manual_seed(1), mean=(0,) * 3, std=(1,) * 3)
    assert torch.allclose(out[..., :3], torch.full((1, 3, 4, 3), 128 / 255), atol=0.02)
    assert out[0, 0, 0, 7] < 0.7


def test_blur_softens_a_share_of_the_images_and_no_mask():
    sharp, masks = run(STILL)
    soft, same = run(STILL.model_copy(update={"blur": 1.0}))
    assert torch.equal(masks, same)
    assert (soft - sharp).abs().max() > 0.05
    assert (soft.mean() - sharp.mean()).abs() < 0.01
    half, _ = run(STILL.model_copy(update={"blur": 0.5}), 1)
    changed = (half - run(STILL, 1)[0]).abs().flatten(1).amax(1) > 1e-4
    assert 0 < changed.sum() < 4


@pytest.mark.parametrize("mix", ["cutmix", "classmix"])
def test_pasting_mixes_two_frames_and_a_lone_frame_stays(mix):
    masks = torch.zeros(2, 16, 16, dtype=torch.uint8)
    masks[1, :8], masks[1, 8:] = 5, 7
    images = (masks * 20).unsqueeze(-1).repeat(1, 1, 1, 3)
    config = STILL.model_copy(update={"mix": mix, "mix_share": 1.0})
    got = [augment(images, masks, config, torch.Generator().manual_seed(s))[1][0] for s in range(6)]
    if mix == "classmix":  # half of the two classes of the other frame, whole
        assert all(sorted(mask.unique().tolist()) in ([0, 5], [0, 7]) for mask in got)
    else:
        assert any(len(mask.unique()) > 1 for mask in got)
    alone = augment(images[:1], masks[:1], config, torch.Generator().manual_seed(0))[1]
    assert torch.equal(alone, masks[:1].long())
