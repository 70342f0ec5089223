"""Exports whose parts are written as tasks of a cluster."""

import pytest
from labelled import label_all, settings_of

from segray.core.formats.frame import Options
from segray.core.infer.predictor import Predictor
from segray.core.io import storage
from segray.core.labels.planning import make_plan
from segray.errors import DataError
from segray.sections.labelling import ClusterSection
from segray.stages.export import export


@pytest.fixture
def labels(plain_bundle, town, tmp_path):
    predictor, out = Predictor(str(plain_bundle), "cpu"), str(tmp_path / "labels")
    label_all(make_plan(out, settings_of([town / "train", town / "video.mp4"]), predictor.info.space), predictor)
    return out


def files_of(place):
    found = {
        entry.uri.removeprefix(str(place)): storage.read_bytes(entry.uri) for entry in storage.iter_files(str(place))
    }
    return {name: data for name, data in found.items() if "/_export/finished" not in name}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("to", ["png", "coco", "huggingface"])
def test_the_tasks_of_a_cluster_write_what_one_process_writes(labels, tmp_path, to):
    options, told = Options(images=to == "png"), []
    here = export(labels, to, str(tmp_path / "here"), options)
    there = export(
        labels,
        to,
        str(tmp_path / "there"),
        options,
        cluster=ClusterSection(),
        progress=lambda more, of: told.append(more),
    )
    assert there == here
    assert sum(told) == there.of > 2
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")
    assert not export(labels, to, str(tmp_path / "there"), options, cluster=ClusterSection()).new


@pytest.mark.usefixtures("ray_session")
def test_what_fails_in_a_task_is_one_line(labels, tmp_path, town):
    damaged = next(entry.uri for entry in storage.list_files(f"{labels}/labels") if entry.uri.endswith(".parquet"))
    storage.replace(damaged, storage.read_bytes(damaged)[:-50])
    with pytest.raises(DataError, match=r"part"):
        export(labels, "png", str(tmp_path / "out"), cluster=ClusterSection())
