import math

import numpy as np
import pytest
import torch
import torchmetrics.classification as tm

from segray.core.metrics import confusion_matrix, majority_baseline, scores

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
