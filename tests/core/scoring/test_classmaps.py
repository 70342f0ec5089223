"""A model scored on masks of another label space: classes by name, and what it does not know is said."""

import numpy as np

from segray.core.data import camvid, cityscapes, voc
from segray.core.samples import LabelSpace
from segray.core.scoring.classmaps import scoring_map

CITY, VOC, CAMVID = cityscapes.LABEL_SPACE, voc.LABEL_SPACE, camvid.LABEL_SPACE


def test_voc_knows_these_classes_of_cityscapes_and_the_rest_is_its_background():
    id_map, not_covered = scoring_map(VOC, CITY)
    covered = set(CITY.names) - set(not_covered)
    assert covered == {"person", "rider", "car", "bus", "train", "motorcycle", "bicycle"}
    space = LabelSpace(VOC.names, VOC.colors, id_map)
    raw = np.array([[24, 25, 26, 28, 31, 32, 33], [7, 23, 27, 0, 4, 255, 11]], np.uint8)  # labelIds
    person, car, bus, train, motorbike, bicycle = (
        VOC.names.index(name) for name in ("person", "car", "bus", "train", "motorbike", "bicycle")
    )
    assert space.apply(raw, "").tolist() == [
        [person, person, car, bus, train, motorbike, bicycle],
        [0, 0, 0, 255, 255, 255, 0],  # road, sky and truck are background; void stays void
    ]


def test_without_a_background_what_is_not_known_is_void():
    id_map, not_covered = scoring_map(CAMVID, CITY)
    assert id_map[21] == CAMVID.names.index("tree")  # vegetation
    assert id_map[8] == CAMVID.names.index("pavement")  # sidewalk
    assert id_map[24] == id_map[25] == CAMVID.names.index("pedestrian")
    assert id_map[27] == 255
    assert "truck" in not_covered


def test_names_of_its_own_come_before_synonyms():
    id_map, not_covered = scoring_map(CITY, CITY)
    assert not_covered == []
    assert id_map == dict(CITY.id_map)
