"""Colours of classes that were given none."""

from itertools import combinations

import numpy as np

from segray.core.data.cityscapes import LABEL_SPACE
from segray.core.data.class_names import colored

ROAD, TREE, CAR = (128, 64, 128), (107, 142, 35), (0, 0, 142)


def test_names_of_cityscapes_classes_get_its_colours_in_any_writing():
    assert colored(LABEL_SPACE.names) == LABEL_SPACE.colors
    names = ["Road", "tree", "pedestrian", "traffic_sign", "Traffic-Light", "pavement", "motorbike"]
    assert colored(names) == (ROAD, TREE, (220, 20, 60), (220, 220, 0), (250, 170, 30), (244, 35, 232), (0, 0, 230))


def test_given_colours_stay_and_no_other_class_gets_one_of_them():
    assert colored(["road", "lane", "truck", "car"], [None, CAR, (1, 2, 3), None])[:3] == (ROAD, CAR, (1, 2, 3))
    assert len(set(colored(["road", "lane", "car", "vegetation", "tree"], [None, CAR, None, None, None]))) == 5


def test_other_classes_are_far_from_each_other_and_a_further_one_changes_none():
    names = [f"class {i}" for i in range(255)]
    colors = colored(names)
    assert len({*colors, (0, 0, 0), (255, 255, 255)}) == 257
    assert colored(names[:9]) == colors[:9]
    apart = [np.abs(np.subtract(one, other)).sum() for one, other in combinations(colors[:9], 2)]
    assert min(apart) > 100
