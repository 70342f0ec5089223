"""The pinned jobs: each runs its own model, loss and schedule on drawn streets, as a user starts it."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from segray.config import load

ROOT = Path(__file__).parent.parent
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.yaml"))


LARGE = ("camvid_best", "camvid_resnext_vs_mobilenet", "cityscapes_vgg19_vs_mobilenet")  # 10 s of processor time each


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(job, marks=[pytest.mark.long] * (job in LARGE)) for job in JOBS])
def test_a_job_runs_in_smoke_form(name, tmp_path, monkeypatch):
    out = tmp_path / name
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, "argv", [name, "--smoke", "--out", str(out)])
    runpy.run_module(f"jobs.{name}", run_name="__main__")
    assert len(list(out.rglob("frames.png"))) == len(list(out.rglob("scores.json"))) > 0
    if name != "cityscapes_deeplab_coco":
        rows = json.loads((out / "results.json").read_text())
        assert all(0 <= row[key] <= 1 for row in rows for key in ("miou", "pixel_accuracy", "mean_f1"))
        assert {"curves.png", "report.html"} <= {path.name for path in out.iterdir()}


@pytest.mark.parametrize("name", JOBS)
def test_a_jobs_dry_run_shows_its_settings_and_makes_nothing(name, tmp_path, monkeypatch, capsys):
    """As `python -m jobs.NAME --config jobs/NAME.yaml --set …` has them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    file = str(ROOT / "jobs" / f"{name}.yaml")
    monkeypatch.setattr(
        sys, "argv", [name, "--config", file, "--data", "frames", "--set", "train.seed=7", "--smoke", "--dry-run"]
    )
    runpy.run_module(f"jobs.{name}", run_name="__main__")
    (tmp_path / "shown.yaml").write_text(capsys.readouterr().out)
    shown = load(str(tmp_path / "shown.yaml"))
    assert (shown.train.out, shown.train.seed) == (f"runs/{name}", 7)
    assert shown.model.arch == load(file).model.arch
    assert [path.name for path in tmp_path.iterdir()] == ["shown.yaml"]


@pytest.mark.parametrize("name", JOBS)
def test_a_jobs_header_says_what_a_user_must_know(name):
    header = (ROOT / "jobs" / f"{name}.py").read_text().split('"""')[1]
    for fact in ("Command:", "Data:", "Hardware:", "Scores:"):
        assert f"\n{fact}" in header
    assert f"python -m jobs.{name}" in header
    assert yaml.safe_load((ROOT / "jobs" / f"{name}.yaml").read_text())
