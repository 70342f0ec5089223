"""Labelling from Python, in the session's Ray."""

import doctest

import pytest

import segray
from segray.api import stages
from segray.core.data import streets


@pytest.mark.usefixtures("ray_session")
def test_labels_are_made_and_opened(plain_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    streets.write(tmp_path / "streets", train=2, val=0, video_s=0, size=(64, 96))
    (tmp_path / "frames").symlink_to(tmp_path / "streets/train")
    (tmp_path / "runs/street").mkdir(parents=True)
    (tmp_path / "runs/street/best").symlink_to(plain_bundle)
    (test,) = doctest.DocTestFinder(recurse=False).find(stages.label, "label", globs={"segray": segray})
    assert doctest.DocTestRunner().run(test) == (0, len(test.examples))
    labels = segray.open_labels("labels/new")
    assert [result.mask.shape for result in labels.frames()] == 2 * [(64, 96)]
