import math

import numpy as np
import pytest
import torch
import torchmetrics.classification as tm

from segray.core.metrics import boundary_counts, confusion_matrix, majority_baseline, scores

TRUTH = np.array([[0, 0, 1], [1, 2, 255]])
PRED = np.array([[0, 1, 1], [1, 0, 2]])


def test_each_labelled_pixel_is_counted_once_and_void_nowhere():
    assert confusion_matrix(TRUTH, PRED, 4).tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_scores_of_six_pixels_by_hand():
    result = scores(confusion_matrix(TRUTH, PRED, 4))
    assert result.class_iou[:3] == [1 / 3, 2 / 3, 0.0]
    assert math.isnan(result.class_iou[3])  # absent from both: undefined, neither 0 nor 1
    assert result.miou == pytest.approx(1 / 3)
    assert result.pixel_accuracy == 3 / 5
    assert result.class_f1[:3] == [1 / 2, 4 / 5, 0.0]
    assert result.class_sensitivity[:3] == [1 / 2, 1.0, 0.0]
    assert result.class_specificity[:3] == [2 / 3, 2 / 3, 1.0]
    assert result.micro_iou == 3 / 7
    assert result.class_precision[:3] == [1 / 2, 2 / 3, math.nan] or math.isnan(result.class_precision[2])
    assert result.mean_precision == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert result.fw_iou == pytest.approx(2 / 5 * 1 / 3 + 2 / 5 * 2 / 3)  # the third class has a fifth, and IoU 0
    assert result.to_dict()["class_iou"][3] is None


def test_torch_counts_as_numpy_does():
    counts = confusion_matrix(torch.from_numpy(TRUTH), torch.from_numpy(PRED), 4)
    assert counts.tolist() == confusion_matrix(TRUTH, PRED, 4).tolist()


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
def test_a_prediction_beyond_the_classes_fails_instead_of_counting_for_another(library):
    with pytest.raises((ValueError, RuntimeError)):
        confusion_matrix(library(np.array([1])), library(np.array([2])), 2)


def test_torchmetrics_agrees():
    rng = np.random.default_rng(0)
    truth, pred = rng.integers(0, 5, (4, 20, 30)), rng.integers(0, 5, (4, 20, 30))
    truth[:, :3] = 255
    given = torch.from_numpy(pred), torch.from_numpy(truth)
    ours = scores(confusion_matrix(truth, pred, 5))
    settings = {"num_classes": 5, "average": None, "ignore_index": 255}
    assert ours.class_iou == pytest.approx(tm.MulticlassJaccardIndex(**settings)(*given).tolist(), abs=1e-7)
    assert ours.class_f1 == pytest.approx(tm.MulticlassF1Score(**settings)(*given).tolist(), abs=1e-7)
    assert ours.class_sensitivity == pytest.approx(tm.MulticlassRecall(**settings)(*given).tolist(), abs=1e-7)
    assert ours.class_specificity == pytest.approx(tm.MulticlassSpecificity(**settings)(*given).tolist(), abs=1e-7)


def test_the_baseline_says_the_most_frequent_class_everywhere():
    assert majority_baseline([[1, 0], [2, 1]]).class_iou == [0.0, 3 / 4]


def test_undecided_pixels_are_misses_and_no_false_alarms():
    counts = np.array([[3, 1, 2], [0, 4, 0]])  # two pixels of class 0 were left undecided
    result = scores(counts)
    assert result.class_iou == [3 / 6, 4 / 5]
    assert result.class_precision == [1.0, 4 / 5]
    assert result.class_sensitivity == [3 / 6, 1.0]
    assert result.pixel_accuracy == 7 / 10
    assert result.micro_iou == 7 / (10 + 8 - 7)


def test_boundary_regions_by_hand():
    """A frame of 10×10 has a reach of one pixel: of a 4×4 square inside, the region is its rim of 12."""
    truth, pred = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    truth[3:7, 3:7] = 1
    pred[3:7, 4:8] = 1
    assert boundary_counts(truth, truth, 3).tolist()[1:] == [[12, 12], [0, 0]]
    # rims of columns 3–6 and 4–7: rows 3 and 6 share three pixels each, columns 4–6 none of the sides
    assert boundary_counts(truth, pred, 2).tolist()[1] == [6, 18]
    # class 0 is everything else: its region is the frame's edge and the pixels beside the square, corners too
    assert boundary_counts(truth, truth, 2)[0].tolist() == [36 + 20, 36 + 20]


def one_class_after_the_other(truth, pred, num_classes, reach):
    """Boundary IoU's counts as its paper has them: a mask without its erosion, for each class."""
    counts = np.zeros((num_classes, 2), np.int64)
    pred = np.where(truth == 255, 255, pred)
    size = 2 * reach + 1
    for label in range(num_classes):
        rims = []
        for mask in (truth == label, pred == label):
            inside = np.lib.stride_tricks.sliding_window_view(np.pad(mask, reach), (size, size)).all((2, 3))
            rims.append(mask & ~inside)
        counts[label] = (rims[0] & rims[1]).sum(), (rims[0] | rims[1]).sum()
    return counts


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (5, 5), (37, 64), (64, 37)])
@pytest.mark.parametrize("ratio", [0.02, 0.1])
def test_boundary_regions_of_all_classes_at_once_are_those_of_each(size, ratio):
    rng = np.random.default_rng(size[0])
    blocks = rng.choice([0, 1, 2, 3, 255], (2, 16, 16))
    truth, pred = (np.kron(one, np.ones((5, 5), np.uint8)).astype(np.uint8)[: size[0], : size[1]] for one in blocks)
    reach = max(1, round(ratio * math.hypot(*size)))
    found = boundary_counts(truth, pred, 4, ratio=ratio)
    assert found.dtype == np.int64
    assert found.tolist() == one_class_after_the_other(truth, pred, 4, reach).tolist()


def test_void_has_no_part_in_boundaries():
    truth = np.zeros((10, 10), np.uint8)
    truth[:, 5:] = 1
    truth[:5] = 255
    counts = boundary_counts(truth, np.where(truth == 255, 1, truth), 2)
    assert counts.tolist() == [[16, 16], [16, 16]]  # the rims of two 5×5 squares
