"""A model in a process of its own: what ends the process costs one row."""

import pytest
from crashing import CRASH, HANG, env
from labelled import plan_rows, settings_of

from segray.config import InferSection
from segray.core import careful, parts
from segray.core.datasets import streets
from segray.core.frames import Clock
from segray.core.plan import make_plan
from segray.core.predictor import Predictor
from segray.core.rows import label_rows
from segray.errors import ModelError


@pytest.fixture
def frames(tmp_path):
    """A crash, a hang and no picture, then two good frames and a video."""
    town = streets.write(tmp_path / "town", train=0, val=2, size=(48, 64), video_s=0.3)
    for name, data in (("5.jpg", CRASH), ("6.jpg", HANG), ("7.jpg", b"no picture")):
        (town / "val" / name).write_bytes(data)
    return [town / "val", town / "video.mp4"]


def test_each_row_is_what_it_would_be_and_a_crash_is_its_own(frames, tiny_bundle, tmp_path, monkeypatch):
    plan = make_plan(str(tmp_path / "out"), settings_of(frames), streets.LABEL_SPACE)
    (tmp_path / "site").mkdir()
    monkeypatch.setenv("PYTHONPATH", env(tmp_path / "site")["PYTHONPATH"])
    monkeypatch.setattr(careful, "TIMEOUT_S", 15.0)
    label = careful.Careful(1, uri=str(tiny_bundle), infer=InferSection())
    rows = plan_rows(plan)
    done, confusion = label(plan, rows, Clock())
    label.close()
    assert [row.get("error_code") for row in done] == [
        "worker_crash", "worker_timeout", "decode_error", None, None, None, None, None,
    ]  # fmt: skip
    assert "5.jpg ended the process that labelled it (SIGSEGV); look at the file" in done[0]["error_message"]
    assert "6.jpg took more than 15 s; look at the file" in done[1]["error_message"]
    totals = parts.Totals.of(done, confusion)
    assert (totals.rows, totals.errors.total()) == (8, 3)

    good = [row for row in rows if row["uri"].rpartition("/")[2] not in ("5.jpg", "6.jpg")]
    usual = label_rows(plan, good, Clock(), Predictor(str(tiny_bundle)), 1)
    assert [row["input_id"] for row in usual.rows] == [row["input_id"] for row in good]
    for mine, theirs in zip(done[3:], usual.rows[1:], strict=True):
        assert (mine["class_pixels"], mine["flicker_share"]) == (theirs["class_pixels"], theirs["flicker_share"])
        assert mine["confidence_mean"] == pytest.approx(theirs["confidence_mean"], abs=1e-6)
    assert parts.Totals.from_dict(totals.to_dict()).to_dict() == totals.to_dict()


def test_a_model_that_cannot_be_loaded_is_no_inputs_fault(frames, tmp_path):
    plan = make_plan(str(tmp_path / "out"), settings_of(frames), streets.LABEL_SPACE)
    label = careful.Careful(1, uri=str(tmp_path / "no bundle"), infer=InferSection())
    with pytest.raises(ModelError, match=r"no bundle cannot be loaded in a process of its own"):
        label(plan, plan_rows(plan), Clock())
