"""Run lengths and polygons of other tools, against the libraries that define them, and what is wrong with them."""

import numpy as np
import pytest
from pycocotools import mask as coco_masks

from segray.core.annotations.painting import (
    FEW,
    OUTSIDE,
    UNREAD,
    WILD,
    Box,
    Shape,
    counts_of,
    fill,
    largest_first,
    paint,
)
from segray.core.formats.label_studio import decode_brush, encode_brush

RANDOM = np.random.default_rng(0)
BLOBS = [RANDOM.random((17, 23)) < share for share in (0.02, 0.3, 0.5, 0.9)]
BLOBS += [np.zeros((5, 4), bool), np.ones((5, 4), bool), np.eye(40, 60, dtype=bool)]


@pytest.mark.parametrize("marked", BLOBS)
def test_compressed_run_lengths_are_those_of_pycocotools(marked):
    runs = coco_masks.encode(np.asfortranarray(marked.astype(np.uint8)))
    height, width = marked.shape
    painted = paint([Shape(7, counts_of(runs["counts"], marked.size))], height, width)
    assert ((painted == 7) == marked).all()
    assert set(np.unique(painted)) <= {7, 255}


@pytest.mark.parametrize("text", ["", "1", "P13700000l0oooooo", "PPPPPPP", "~~~", "\x01", "é", "o" * 90])
def test_run_lengths_of_another_size_are_refused(text):
    with pytest.raises(ValueError, match=r"run length|ordinal"):
        counts_of(text, 100)


@pytest.mark.parametrize("marked", BLOBS)
def test_brushes_are_decoded_as_they_were_encoded(marked):
    assert (
        paint([Shape(1, decode_brush(encode_brush(marked), marked.size), Box(0, 0, *marked.shape))], *marked.shape) == 1
    ).tolist() == marked.tolist()


def test_a_brush_may_hold_single_values():
    """As thi.ng/rle-pack writes them: a 0, how long, and each value. Two pixels: transparent, half."""
    bits = f"{8:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    bits += "0" + "00" + f"{7:03b}" + "".join(f"{value:08b}" for value in (9, 9, 9, 0, 9, 9, 9, 128))
    packed = np.packbits([int(bit) for bit in bits]).tolist()
    assert decode_brush(packed, 2).tolist() == [1, 1]


@pytest.mark.parametrize(
    "packed", [[], [0] * 7, encode_brush(np.ones((3, 3), bool)), encode_brush(np.ones((2, 3), bool))[:-3], [300]]
)
def test_a_damaged_brush_is_refused(packed):
    with pytest.raises((ValueError, OverflowError)):
        decode_brush(packed, 6)


@pytest.mark.parametrize(
    "ring", [[1, 1, 9.5, 2, 4, 8], [-0.5, 0, 20, 0, 20, 12.4, 0, 12], [3.3, 3.3, 3.3, 9, 9, 9, 9, 3.3]]
)
def test_polygons_are_filled_as_pycocotools_fills_them(ring):
    said = []
    shape = fill(3, [ring], 13, 21, said.append)
    wanted = coco_masks.decode(coco_masks.frPyObjects([ring], 13, 21))[..., 0]
    assert (paint([shape], 13, 21) == 3).tolist() == (wanted == 1).tolist()
    assert said == []


@pytest.mark.parametrize(
    ("ring", "said"),
    [
        ([1, 1, 5, 5], FEW), ([1, 1, 5, 5, 3], FEW), ([1, 1, 1e9, 5, 3, 3], WILD), ([1, 1, float("nan"), 5, 3, 3], WILD),
        ([1, 1, float("inf"), 5, 3, 3], WILD), ([1, 1, 30, 5, 3, 30], OUTSIDE),
        ([1, 1, 99, 5] * 20_000, UNREAD),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_polygon_is_said(ring, said):
    heard = []
    shape = fill(0, [ring], 10, 10, heard.append)
    assert heard == [said]
    assert (shape is not None) == (said == OUTSIDE)


def test_small_shapes_lie_on_large_ones_and_equal_ones_in_their_order():
    small, large = np.array([5, 1, 3]), np.array([0, 9])
    order = largest_first([Shape(1, small), Shape(2, large), Shape(3, small)])
    assert [shape.label for shape in order] == [2, 1, 3]
    assert paint(order, 3, 3).tolist() == [[2, 2, 2], [2, 2, 2], [2, 3, 2]]


def test_a_box_that_reaches_out_is_cut():
    heard = []
    box = Box(-1, 1, 3, 3)  # top, left, height, width
    assert paint([Shape(4, np.array([0, 9]), box)], 3, 3, heard.append).tolist() == [
        [255, 4, 4],
        [255, 4, 4],
        [255, 255, 255],
    ]
    assert heard == [OUTSIDE]
