import colorsys
import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from segray.core.data import streets
from segray.core.io.images import resize_image
from segray.core.transforms import IMAGENET_MEAN, augment, fit, inner_size, normalize, to_float, usual_zoom
from segray.sections.training import AugmentSection

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


@pytest.mark.parametrize("size", [(30, 40), (64, 95), (7, 5), (120, 161), (60, 80)])
def test_a_fitted_frame_is_pillows_to_one_of_255(size):
    frame = streets.draw(0, (60, 80)).image_hwc
    frame.flags.writeable = False  # as decoders give it
    fitted = fit(frame, size)
    assert (fitted.shape, fitted.dtype) == ((*size, 3), np.uint8)
    assert fitted.flags.c_contiguous
    assert np.abs(fitted.astype(int) - resize_image(frame, size)).max() <= 1
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    assert np.abs(fit(noise, size).astype(int) - resize_image(noise, size)).max() <= 1


@pytest.mark.parametrize(
    ("frame", "inner"),
    [((64, 96), (64, 96)), ((32, 48), (64, 96)), ((96, 64), (64, 43)), ((61, 37), (64, 39)), ((5, 500), (1, 96))],
)
def test_a_frame_that_keeps_its_ratio_lies_above_and_left_of_its_padding(frame, inner):
    pixels = np.random.default_rng(0).integers(0, 256, (*frame, 3), np.uint8)
    size, (height, width) = (64, 96), inner
    assert inner_size(frame, size, "keep") == inner
    fitted = fit(pixels, size, "keep")
    assert (fitted.shape, fitted.dtype) == ((64, 96, 3), np.uint8)
    assert np.array_equal(fitted[:height, :width], fit(pixels, inner))
    assert np.all(fitted[height:] == (124, 116, 104))
    assert np.all(fitted[:, width:] == (124, 116, 104))


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
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert masks.shape == (4, *size)
    assert masks.dtype == torch.int64
    assert set(masks.unique().tolist()) <= {0, 3, 9, 255}
    right = (said(images) == masks)[interior(masks)].float().mean()
    assert right == 1 if config.mix == "none" else right > 0.97  # a pasted piece brings its blended edges
    assert images.isfinite().all()
    again = run(config, seed)
    assert torch.equal(images, again[0])
    assert torch.equal(masks, again[1])


def interior(masks):
    """Labelled pixels whose eight neighbours are of the same class: no edge is blended there."""
    ids = functional.pad(masks.float(), (1, 1, 1, 1), value=255)
    same = functional.max_pool2d(ids, 3, 1) == -functional.max_pool2d(-ids, 3, 1)
    return same & (masks != 255)


@pytest.mark.parametrize("seed", range(4))
def test_a_crop_at_scale_one_is_a_piece_of_the_frame_to_the_pixel(seed):
    generator = torch.Generator().manual_seed(9)
    frame = torch.randint(256, (1, 21, 31, 3), dtype=torch.uint8, generator=generator)
    mask = torch.randint(8, (1, 21, 31), dtype=torch.uint8, generator=generator)
    config = STILL.model_copy(update={"crop": (10, 15), "flip": 0.5})
    images, masks = augment(frame, mask, config, torch.Generator().manual_seed(seed), mean=(0,) * 3, std=(1,) * 3)
    pieces = mask[0].unfold(0, 10, 1).unfold(1, 15, 1)
    same = (pieces == masks[0]).flatten(2).all(2) | (pieces == masks[0].flip(1)).flatten(2).all(2)
    ((top, left),) = same.nonzero().tolist()
    piece = to_float(frame)[:, :, top : top + 10, left : left + 15]
    assert min((images - p).abs().max() for p in (piece, piece.flip(3))) < 1e-4


def test_crops_reach_every_corner():
    config = STILL.model_copy(update={"crop": (38, 57)})
    column = torch.arange(60).repeat(40, 1).to(torch.uint8).unsqueeze(0)
    frame = torch.zeros(1, 40, 60, 3, dtype=torch.uint8)
    lefts = [augment(frame, column, config, torch.Generator().manual_seed(s))[1].min().item() for s in range(60)]
    assert set(lefts) == {0, 1, 2, 3}


def test_a_crop_larger_than_the_frame_shows_all_of_it_with_void_around():
    images, masks = run(STILL.model_copy(update={"crop": (80, 90)}))
    for mask in masks:
        assert sorted(mask[mask != 255].tolist()) == sorted(scene()[1][0].flatten().tolist())
    assert images.movedim(1, -1)[masks == 255].abs().max() < 1e-4


@pytest.mark.parametrize("seed", range(4))
def test_outside_the_frame_the_picture_is_0_and_the_mask_void(seed):
    images, masks = run(AugmentSection(**PLAIN_COLORS, scale=(0.4, 0.7), rotate_deg=40), seed)
    void, empty = masks == 255, (images == 0).all(1)
    assert void.any()
    assert not (empty & ~void).any()
    beside = functional.max_pool2d((~void).float().unsqueeze(1), 3, 1, 1).squeeze(1) > 0
    assert empty[void & ~beside].all()  # the frame's edge is blended


@pytest.mark.parametrize(
    ("frame", "crop", "zoom"),
    [((1024, 2048), (512, 1024), (0.5, 2)), ((360, 480), None, (1, 1)), ((512, 683), (512, 512), (1, 2))],
)
def test_the_usual_zoom_shows_no_void(frame, crop, zoom):
    assert usual_zoom(frame, crop or frame) == zoom
    masks = torch.zeros(6, frame[0] // 8, frame[1] // 8, dtype=torch.uint8)
    config = AugmentSection(**PLAIN_COLORS, rotate_deg=0, crop=crop and (crop[0] // 8, crop[1] // 8))
    generator = torch.Generator().manual_seed(0)
    out = augment(torch.zeros(*masks.shape, 3, dtype=torch.uint8), masks, config, generator)[1]
    assert (out == 255).float().mean() < 0.01


def test_void_of_the_frame_stays_void_and_is_not_pasted():
    images, masks = scene()
    masks[:, :10] = 255
    for mix in ("none", "classmix"):
        config = STILL.model_copy(update={"mix": mix, "mix_share": 1.0})
        _, out = augment(images, masks, config, torch.Generator().manual_seed(0))
        assert torch.equal(out == 255, masks == 255)


def test_crops_full_of_one_class_are_drawn_anew():
    """A third of the frame is class 9, and the rest is 0 and 3: small crops often lie in one class alone."""
    free = AugmentSection(**PLAIN_COLORS, crop=(12, 12), scale=(1, 1), rotate_deg=0, max_class_share=1)

    def full(config):
        masks = torch.cat([run(config, seed)[1] for seed in range(20)])
        share = torch.stack([(masks == c).flatten(1).float().mean(1) for c in (0, 3, 9)]).amax(0)
        return (share > 0.75).float().mean().item()

    assert full(free) > 0.4
    assert full(free.model_copy(update={"max_class_share": 0.75})) < 0.05


def test_crops_without_a_labelled_pixel_are_drawn_anew():
    masks = torch.full((1, 40, 60), 255, dtype=torch.uint8)
    masks[:, :, :15], masks[:, :, 15:30] = 1, 2
    frame = torch.zeros(1, 40, 60, 3, dtype=torch.uint8)

    def void(config):
        drawn = [augment(frame, masks, config, torch.Generator().manual_seed(s))[1] for s in range(60)]
        return sum(bool((mask == 255).all()) for mask in drawn)

    free = STILL.model_copy(update={"crop": (16, 16)})
    assert void(free) > 10
    assert void(free.model_copy(update={"max_class_share": 0.95})) <= 2


def test_saturation_and_hue_of_one_colour_by_the_yiq_formula():
    frame = torch.full((1, 2, 2, 3), 128, dtype=torch.uint8)
    frame[..., 0], frame[..., 1] = 140, 110
    config = STILL.model_copy(update={"hue_deg": 60.0, "saturation": 0.4})
    generator = torch.Generator().manual_seed(2)
    out, _ = augment(frame, frame[..., 0] * 0, config, generator, mean=(0,) * 3, std=(1,) * 3)
    before, after = (colorsys.rgb_to_yiq(*rgb.tolist()) for rgb in (frame[0, 0, 0] / 255, out[0, :, 0, 0]))
    assert after[0] == pytest.approx(before[0], abs=2e-3)
    turn = math.degrees(math.atan2(after[2], after[1]) - math.atan2(before[2], before[1]))
    gain = math.hypot(*after[1:]) / math.hypot(*before[1:])
    draws = torch.rand(4, generator=torch.Generator().manual_seed(2)) * 2 - 1  # contrast, brightness, saturation, hue
    assert gain == pytest.approx(1 + 0.4 * draws[2].item(), abs=0.02)
    assert turn == pytest.approx(60 * draws[3].item(), abs=1)


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
    masks[1] = torch.arange(16) % 5 + 1  # of five classes two
    got = [augment(images, masks, config, torch.Generator().manual_seed(s))[1][0] for s in range(6)]
    assert mix == "cutmix" or all(len(mask.unique()) == 1 + 2 for mask in got)
    alone = augment(images[:1], masks[:1], config, torch.Generator().manual_seed(0))[1]
    assert torch.equal(alone, masks[:1].long())
