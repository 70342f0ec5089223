"""A model from elsewhere on a run's validation frames: classes by name, at the run's size."""

import numpy as np
import pytest
from PIL import Image

from segray.core import metrics
from segray.core.infer.predictor import Predictor
from segray.core.io.locators import read_image
from segray.core.models.info import read_info
from segray.core.samples import LabelSpace, SampleRef
from segray.core.scoring.at_size import classes_for, confusion_at
from segray.errors import ModelError


def space(*names):
    return LabelSpace(names, tuple((i, 0, 0) for i in range(len(names))))


@pytest.mark.parametrize(
    ("predicted", "truth", "table", "missing"),
    [
        (("car", "road"), ("road", "car"), [1, 0, 255], []),
        (("car", "moon"), ("road", "car"), [1, 255, 255], ["road"]),
        (("car", "moon"), ("background", "car"), [1, 0, 255], []),
        (("person", "rider"), ("person", "car"), [0, 0, 255], ["car"]),
    ],
)
def test_predicted_classes_are_taken_by_name_and_others_are_misses(predicted, truth, table, missing):
    found, lacking = classes_for(space(*predicted), space(*truth))
    assert (found[[0, 1, 255]].tolist(), lacking) == (table, missing)


def test_classes_without_a_name_in_common_are_refused():
    with pytest.raises(ModelError, match=r"no name in common. Rename the data's with data.class_map."):
        classes_for(space("sun", "moon"), space("road", "car"))


@pytest.mark.parametrize("resize", ["stretch", "keep"])
def test_a_frame_is_predicted_from_its_own_pixels_and_counted_at_the_runs_size(plain_bundle, tmp_path, resize):
    names = read_info(str(plain_bundle)).space.names
    truth = LabelSpace((*names[:0:-1], "moon"), ((0, 0, 0),) * len(names))  # other order; the first is not in it
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (80, 90, 3), np.uint8)).save(tmp_path / "a.png")
    truth_hw = rng.integers(0, len(names), (80, 90), np.uint8)
    Image.fromarray(truth_hw).save(tmp_path / "a_mask.png")
    ref = SampleRef("a", str(tmp_path / "a.png"), str(tmp_path / "a_mask.png"))
    predictor = Predictor(str(plain_bundle), "cpu")
    size, inner = (40, 60), (40, 60) if resize == "stretch" else (40, 45)

    (found,) = predictor.predict([predictor.prepare(read_image(ref.image))], [(80, 90)])
    renamed = np.array([truth.names.index(name) if name in truth.names else len(names) for name in names])
    small = [np.asarray(Image.fromarray(hw).resize(inner[::-1], Image.Resampling.NEAREST))
             for hw in (truth_hw, found.mask_hw)]  # fmt: skip
    expected = metrics.confusion_matrix(small[0], renamed[small[1]], len(names) + 1)[:-1]
    assert confusion_at(predictor, [ref], truth, size, resize).tolist() == expected.tolist()
    assert expected.sum() == inner[0] * inner[1]
