import numpy as np
import pytest
from scipy import ndimage

from segray.core.data import streets
from segray.core.labels.quality import boundary_share, class_pixels, component_counts, flicker_share


def ids(*rows):
    return np.array([list(row) for row in rows], dtype=np.uint8)


CHECKERBOARD = ids([0, 1, 0], [1, 0, 1], [0, 1, 0])
RING = ids([0, 0, 0], [0, 1, 0], [0, 0, 0])
DIAGONAL = ids([1, 0, 0], [0, 1, 0], [0, 0, 1])
HORSESHOE = ids([1, 0, 1], [1, 0, 1], [1, 1, 1])  # two arms that meet below
COMB = ids([1, 1, 1, 1, 1], [1, 0, 1, 0, 1])


@pytest.mark.parametrize(
    ("mask", "counts"),
    [
        (CHECKERBOARD, [5, 4]),
        (RING, [1, 1]),
        (DIAGONAL, [2, 3]),
        (HORSESHOE, [1, 1]),
        (COMB, [2, 1]),
        (np.zeros((4, 6), np.uint8), [1, 0]),
        (np.ones((1, 1), np.uint8), [0, 1]),
        (ids([0, 1, 1, 0, 1]), [2, 2]),
        (ids([0], [1], [1], [0]), [2, 1]),
        (ids([0, 255, 0], [255, 255, 255], [1, 2, 1]), [2, 2]),  # void parts, and is not counted; nor is class 2 of two
        (np.full((2, 2), 255, np.uint8), [0, 0]),
    ],
)
def test_regions_are_joined_by_sides_not_corners(mask, counts):
    found = component_counts(mask, 2)
    assert found.tolist() == counts
    assert found.dtype == np.int64


def by_scipy(mask, num_classes):
    return [ndimage.label(mask == class_id)[1] for class_id in range(num_classes)]


@pytest.mark.parametrize("seed", range(40))
def test_regions_and_pixels_equal_scipys_and_numpys_on_random_masks(seed):
    rng = np.random.default_rng(seed)
    height, width, coarse = rng.integers(1, 60, 3)
    mask = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (height, width))
    if seed % 2:  # patches instead of noise
        mask = ndimage.zoom(mask, 1 + coarse % 4, order=0)
    if seed % 3 == 0:
        mask = mask.T  # not contiguous
    assert component_counts(mask, 4).tolist() == by_scipy(mask, 4)
    assert component_counts(mask, 256).tolist() == by_scipy(mask, 256)
    assert class_pixels(mask, 4).tolist() == np.bincount(mask.ravel(), minlength=256)[:4].tolist()


def test_a_streets_regions_equal_scipys():
    mask = streets.draw(3, (180, 240)).mask_hw
    assert component_counts(mask, 11).tolist() == by_scipy(mask, 11)


def test_pixels_are_counted_without_void():
    counts = class_pixels(ids([0, 0, 2], [0, 2, 255]), 3)
    assert counts.tolist() == [3, 0, 2]
    assert counts.dtype == np.int64


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (128, 5), (129, 5), (130, 5), (300, 40)])
def test_a_boundary_pixel_has_another_class_right_of_it_or_below(shape):
    mask = np.random.default_rng(0).integers(0, 3, shape, dtype=np.uint8)
    edges = np.zeros(shape, dtype=bool)
    edges[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edges[:-1] |= mask[:-1] != mask[1:]
    assert boundary_share(mask) == edges.mean()


def test_shares_by_eye():
    mask = ids([0, 0, 1], [0, 0, 1])
    assert boundary_share(mask) == 2 / 6  # the two zeros beside the ones
    assert flicker_share(mask, np.zeros_like(mask)) == 2 / 6
    assert flicker_share(mask, mask) == 0
