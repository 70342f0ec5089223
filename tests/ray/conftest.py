"""One Ray for the whole session, and a small town to learn from."""

import crashing
import pytest
import servers

from segray.cluster import connect
from segray.config import load
from segray.core.data import streets
from segray.sections.labelling import ClusterSection


@pytest.fixture(scope="session")
def ray_session(s3, gs, request, tmp_path_factory):
    """Its processes know the stores' servers, and crash on the images that are made for it."""
    if servers.azurite():
        request.getfixturevalue("az")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", crashing.env(tmp_path_factory.mktemp("site"))["PYTHONPATH"])
        with connect.connected(ClusterSection(), sweeps=True) as has:
            yield has


@pytest.fixture(scope="session")
def town(tmp_path_factory):
    """11 training and 5 validation frames: neither is a multiple of two workers' shares."""
    return streets.write(tmp_path_factory.mktemp("town") / "streets", train=11, val=5, size=(64, 96), video_s=1.0)


@pytest.fixture
def settings(town, tmp_path):
    """A training run of seconds; keyword arguments are settings with __ for the dot.

    Without model__encoder its processes import no segmentation-models-pytorch, and start in half the time.
    """
    plain = {"model.arch": "unet-plain", "model.options": {"channels": 8}}
    narrow = {"model.arch": "unet", "model.options": {"decoder_channels": [32, 16, 16, 8, 8]}}

    def make(**more):
        values = {
            "data.format": "streets",
            "data.root": str(town),
            "data.size": "32x48",
            **(narrow if "model__encoder" in more else plain),
            "train.batch_size": 4,
            "train.epochs": 2,
            "train.out": str(tmp_path / "run"),
            "sweep.out": str(tmp_path / "sweep"),
            "cluster.cpus_per_worker": 1,
        }
        return load(None, values | {key.replace("__", "."): value for key, value in more.items()})

    return make
