"""What many tests share: a model bundle that costs nothing, and a real S3 server."""

import os
from pathlib import Path

import pytest
import torch

from segray.config import ModelSection
from segray.core.datasets.streets import LABEL_SPACE
from segray.core.models import build, bundle

SIZE = (32, 48)  # height, width that the tiny model sees


def pytest_addoption(parser):
    parser.addoption("--rounds", type=int, default=40, help="Of `pytest -m torture`.")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory) -> Path:
    """A Unet over resnet18 with random weights, for the classes of the drawn streets."""
    torch.manual_seed(0)
    model = ModelSection(arch="unet", encoder="resnet18")
    info = bundle.BundleInfo(model=model, label_space=LABEL_SPACE.to_dict(), input_size=SIZE)
    folder = tmp_path_factory.mktemp("bundle") / "best"
    bundle.save(folder, build(model, LABEL_SPACE.num_classes), info)
    return folder


@pytest.fixture(scope="session")
def s3():
    """`s3://bucket/prefix` on a real server in this process; s3fs and subprocesses find it by the usual variables."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ACCESS_KEY_ID": "canary-key",
        "AWS_SECRET_ACCESS_KEY": "canary-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",  # one that is set outside would come before the other
    }
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    s3fs.S3FileSystem.clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket="frames")
    yield "s3://frames/segray"
    server.stop()
    for key, value in before.items():
        os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3_proxy(s3, monkeypatch):
    """A FaultProxy before the server of `s3`; storage and subprocesses of this test go through it."""
    import s3fs
    from faultproxy import FaultProxy

    with FaultProxy(os.environ["AWS_ENDPOINT_URL_S3"]) as proxy:
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.setenv(name, proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()  # which knows file systems by their arguments only
        yield proxy
    s3fs.S3FileSystem.clear_instance_cache()
