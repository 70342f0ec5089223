"""Before a Ray is joined: its token, its address, what it says no with, and whether its nodes hold what is asked."""

import socket
import stat
from types import SimpleNamespace

import numpy as np
import pyarrow.fs
import pytest
from PIL import Image
from ray._private.utils import check_version_info

from segray.cluster import access, connect, object_store, submit
from segray.cluster.access import check_folder
from segray.cluster.resources import Resources, WorkerShape, shape
from segray.config import Config, load
from segray.core.data import FileSamples, streets
from segray.core.io import storage
from segray.core.samples import SampleRef
from segray.errors import ClusterError, ConfigError
from segray.sections.labelling import ClusterSection, GivenLabelSection
from segray.stages import run_data
from segray.stages.label import _pool, _settled, _shape, label, shards_at_once


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def rights(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_once_and_is_its_owners_alone(home):
    access.keep_token()
    path = home / ".ray" / "auth_token"
    token = path.read_text()
    assert (len(token), rights(path), access.token()) == (64, 0o600, token)
    path.chmod(0o644)  # as Ray writes it
    access.keep_token()
    assert (path.read_text(), rights(path)) == (token, 0o600)
    assert [found.name for found in path.parent.iterdir()] == ["auth_token"]


def test_no_token_is_made_beside_one_that_is_given_or_where_there_is_to_be_none(home, monkeypatch):
    for name, value in (("RAY_AUTH_TOKEN", "a" * 64), ("RAY_AUTH_MODE", "disabled")):
        monkeypatch.setenv(name, value)
        access.keep_token()
        assert not (home / ".ray").exists()
        monkeypatch.delenv(name)


def test_a_token_is_taken_from_where_ray_takes_it(home, monkeypatch):
    assert access.token() is None
    (home / "file").write_text("from-file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "file"))
    assert access.token() == "from-file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "from-variable")
    assert access.token() == "from-variable"


def test_an_address_is_tried_before_ray_tries_it_for_a_minute():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", f"http://127.0.0.1:{port}/"):
            access.check_answers(address, "Next.")
    for address, reason in (
        (f"127.0.0.1:{port}", "Connection refused"),
        ("127.0.0.1:99999", "connect_tcp"),
        ("no.such.host.invalid:6379", "Name or service not known"),
    ):
        with pytest.raises(ClusterError) as error:
            access.check_answers(address, "Next.")
        assert str(error.value).startswith(f"No Ray answers at {address}: ")
        assert str(error.value).endswith(". Next.")
        assert reason in str(error.value) or reason == "connect_tcp"
    with pytest.raises(ClusterError, match=r"^head is not HOST:PORT\. Next\.$"):
        access.check_answers("head", "Next.")


def test_another_version_is_named_with_what_to_install():
    with pytest.raises(RuntimeError) as told:
        check_version_info({"ray_version": "2.9.0", "python_version": "3.9.18"}, "process 1", raise_on_mismatch=True)
    line = str(access.refusal(told.value, "10.0.0.1:6379"))
    assert line.startswith("10.0.0.1:6379 runs Ray 2.9.0 on Python 3.9.18, and here are Ray 2.")
    assert line.endswith(". Use the cluster's versions, or send the command there with segray submit --python PATH.")


def has(*nodes):
    return Resources(sum(cpus for cpus, _ in nodes), sum(gpus for _, gpus in nodes), 2**30, nodes)


def test_a_process_is_on_one_node_and_gets_what_that_has():
    three = has((4, 0), (2, 0), (2, 0))
    assert (three.fits(1), three.fits(2), three.fits(3), three.fits(5)) == (8, 4, 1, 0)
    assert (three.share(1), three.share(2), three.share(3), three.share(8), three.share(9)) == (4, 2, 2, 1, 1)
    assert (has((8, 2), (16, 0)).fits(4, 1), has((8, 2), (16, 0)).share(2, 1)) == (2, 4)
    assert shape(ClusterSection(workers=2), three) == WorkerShape(2, 2, 0)
    assert shape(ClusterSection(workers=2), has((2, 0), (8, 1), (8, 1))) == WorkerShape(2, 8, 1)


MIB = 2**20


@pytest.mark.parametrize(
    ("stores_mib", "frames", "fits"),
    [
        ((80, 80, 80), 28, False),  # 112 MiB of frames: less than half of all stores together, more than any of them
        ((80, 80, 80), 10, True),  # 40 MiB, half of one
        ((80, 80, 80), 11, False),
        ((80, 8000), 11, False),  # the smallest node needs its copy too
    ],
)
def test_decoded_frames_go_to_the_object_store_where_each_node_has_room_for_a_copy(stores_mib, frames, fits):
    nodes = [{"CPU": 4.0, "object_store_memory": mib * MIB} for mib in stores_mib]
    assert object_store.fits_stores(frames * 4 * MIB, connect.resources_of(nodes)) == fits


def test_a_head_without_cpus_needs_no_room_for_frames():
    nodes = [{"object_store_memory": 1 * MIB}, {"CPU": 8.0, "GPU": 2.0, "object_store_memory": 80 * MIB}]
    assert connect.resources_of(nodes) == Resources(8, 2, 80 * MIB, ((0, 0), (8, 2)))
    assert connect.resources_of([]).object_store_bytes == 0


def test_both_splits_share_the_room(monkeypatch):
    stored = []
    monkeypatch.setattr(object_store, "store_samples", lambda refs, *_: stored.append(len(refs)))
    has = Resources(4, 0, 80 * MIB, ((4, 0),))
    for train_frames, val_frames in ((6, 4), (6, 5), (10, 10)):
        refs = [tuple(SampleRef(f"{i}", f"{i}.jpg", f"{i}.png") for i in range(n)) for n in (train_frames, val_frames)]
        data = run_data.stored(Config(), run_data.DataPlan(*refs, streets.LABEL_SPACE, (1024, 1024), ""), has)
        assert (
            isinstance(data.train, FileSamples) == isinstance(data.val, FileSamples) == (train_frames + val_frames > 10)
        )
    assert stored == [6, 4]


@pytest.mark.parametrize(
    ("asked", "nodes", "line"),
    [
        (WorkerShape(2, 1, 1), ((8, 1),), "2 GPUs asked, 1 in the cluster."),
        (WorkerShape(9, 1, 0), ((4, 0), (4, 0)), "9 CPUs asked, 8 in the cluster."),
        (WorkerShape(1, 8, 0), ((4, 0), (4, 0)), "1 × 8 CPUs asked, which do not fit on nodes of 4 CPUs and 0 GPUs."),
        (
            WorkerShape(2, 2, 1),
            ((8, 0), (1, 1), (1, 1)),
            "2 × 2 CPUs and 1 GPU asked, which do not fit on nodes of 1 CPU and 1 GPU, 8 CPUs and 0 GPUs.",
        ),
    ],
)
def test_what_can_never_be_scheduled_is_said_at_once(asked, nodes, line):
    assert not asked.fits(has(*nodes))
    with pytest.raises(ClusterError) as error:
        asked.check(has(*nodes))
    assert str(error.value).startswith(f"{line} Lower the number of workers, add a node")


EIGHT = has((4, 0), (96, 4), (96, 4))


def test_with_a_gpu_in_the_cluster_each_worker_has_one_or_a_line_says_why_not():
    assert shape(ClusterSection(workers=8), EIGHT) == WorkerShape(8, 24, 1)
    for gpu in (None, True):
        with pytest.raises(ClusterError) as error:
            shape(ClusterSection(workers=16, gpu=gpu), EIGHT)
        assert str(error.value) == (
            "16 GPUs asked, 8 in the cluster. Lower the number of workers, add a node to the cluster, or, where an "
            "autoscaler does, give it time: --set cluster.wait=20m. To do without GPUs: --set cluster.gpu=false."
        )
    assert shape(ClusterSection(workers=16, gpu=False), EIGHT) == WorkerShape(16, 12, 0)


@pytest.mark.parametrize(
    ("per_gpu", "actors", "shape", "cpus_beside"),
    [
        (1, None, WorkerShape(8, 1, 1), 24),
        (4, None, WorkerShape(32, 1, 0.25), 6),
        (3, None, WorkerShape(24, 1, 0.3333), 8),
        (4, 2, WorkerShape(2, 1, 0.25), 48),
    ],
)
def test_labelling_processes_share_gpus_and_the_cpus_of_their_nodes(per_gpu, actors, shape, cpus_beside):
    section = GivenLabelSection(model="best", actors=actors, actors_per_gpu=per_gpu)
    assert _shape(Config(), section, EIGHT) == shape
    assert EIGHT.cpus_beside(shape) == cpus_beside
    assert shards_at_once(EIGHT, shape) == min(16, cpus_beside) + 2  # two more wait for the GPU
    assert shards_at_once(EIGHT, WorkerShape(8, 12, 0)) == 12


@pytest.mark.parametrize(
    ("given", "nodes", "shape"),
    [
        ({}, ((2, 0),), (1, 2, 0)),
        ({}, ((0, 0), (4, 0), (4, 0)), (2, 4, 0)),  # a head without CPUs, and an actor for each node
        ({"label.actors": 3}, ((2, 0),), (2, 1, 0)),  # of those asked, as many as have room
        ({"label.actors": 1}, ((2, 0), (2, 0)), (1, 2, 0)),
        ({}, ((8, 2), (8, 0)), (2, 1, 1)),
        ({"label.actors": 200}, ((8, 4),) * 3, (12, 1, 1)),
        ({"label.actors_per_gpu": 2}, ((8, 2),), (4, 1, 0.5)),
    ],
)
def test_labelling_starts_as_many_actors_as_have_room(given, nodes, shape):
    config = load(None, given)
    assert _shape(config, config.label, has(*nodes)) == WorkerShape(*shape)


def test_labelling_needs_room_for_one_actor():
    config = load(None, {"label.actors": 3, "cluster.gpu": True})
    with pytest.raises(ClusterError, match=r"^1 GPU asked, 0 in the cluster\."):
        _shape(config, config.label, has((2, 0)))


def test_cpus_of_nodes_without_a_gpu_decode_for_no_process_with_one():
    assert has((8, 1), (64, 0)).cpus_beside(WorkerShape(1, 1, 1)) == 8
    assert has((1, 4)).cpus_beside(WorkerShape(4, 1, 1)) == 1


@pytest.mark.parametrize(
    ("gpu", "before", "asked"),
    [
        (None, has((4, 0), (8, 1)), [{"CPU": 1, "GPU": 1}]),
        (None, has((1, 0)), [{"CPU": 1, "GPU": 0}, {"CPU": 1, "GPU": 1}]),  # a first GPU comes with the CPUs
        (True, has((1, 0)), [{"CPU": 1, "GPU": 1}]),
        (False, has((1, 0)), [{"CPU": 1, "GPU": 0}]),
    ],
)
def test_an_autoscaler_is_asked_for_what_the_run_will_use(monkeypatch, gpu, before, asked):
    told, cluster_s = [], iter([before, has((4, 0), (8, 1)), has((4, 0), (8, 2))])
    monkeypatch.setattr(connect, "SCALE_POLL_S", 0)
    monkeypatch.setattr(connect, "resources", lambda without: next(cluster_s))
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: told.append(bundles))
    connect.holding(ClusterSection(gpu=gpu, wait=60), 2)
    assert told == [*([bundle] * 2 for bundle in asked), []]


def test_labelling_waits_again_for_nodes_when_all_are_gone_between_two_passes(monkeypatch):
    """And for GPUs, if it began with some: what is left may be a head, whose processors would label for days."""
    cluster_s = iter([has((4, 0)), has((4, 0), (8, 1))])
    monkeypatch.setattr(connect, "SCALE_POLL_S", 0)
    monkeypatch.setattr(connect, "resources", lambda without: next(cluster_s))
    monkeypatch.setattr("ray.autoscaler.sdk.request_resources", lambda bundles: None)
    monkeypatch.setattr("segray.stages.label.LabelFolder", lambda plans: SimpleNamespace(starts=None))
    monkeypatch.setattr("segray.cluster.pool.Pool", lambda *given: given[4])
    config = _settled(load(None, {"cluster.wait": "1m"}), has((4, 0), (8, 1)))
    assert _pool(config, config.label, [], np.ones(3, bool), True, frozenset()) == WorkerShape(1, 1, 1.0)


def test_a_mistyped_address_leaves_no_plan_of_labelling_behind(plain_bundle, tmp_path):
    Image.new("RGB", (48, 32)).save(tmp_path / "a.png")
    out = tmp_path / "labels"
    values = {"label.model": str(plain_bundle), "label.inputs": [str(tmp_path / "a.png")], "label.out": str(out)}
    with pytest.raises(ClusterError, match=r"^No Ray answers at 127\.0\.0\.1:1: "):
        label(load(None, values | {"cluster.address": "127.0.0.1:1"}))
    assert not out.exists()


def test_ray_train_finds_a_bucket_whose_names_are_no_uris(bucket, tmp_path):
    place = f"{bucket}/Läufe 1/{tmp_path.name}/a+b"
    where = connect.ray_storage(place)
    if bucket.startswith("s3://"):
        files, path = pyarrow.fs.FileSystem.from_uri(where["storage_path"])
    else:
        files, path = where["storage_filesystem"], where["storage_path"]
    assert path == place[5:]
    with files.open_output_stream(f"{path}/state") as out:
        out.write(b"kept")
    assert storage.read_bytes(f"{place}/state") == b"kept"
    assert connect.ray_storage("/Läufe 1") == {"storage_path": "/Läufe 1"}


def test_what_ray_says_at_length_is_cut():
    """Some errors hold a whole tensor, or a page of HTML."""
    said = "x" * 100_000
    lines = [
        str(connect.explain(ValueError(f"Trace\n{said}"))),
        str(access.not_started(Exception(said))),
        str(access.refusal(ConnectionError(said), "10.0.0.1:6379")),
        storage.reason(OSError(said)),
    ]
    assert lines[0] == f"ValueError: {'x' * 300}…"
    assert all("x" * 300 + "…" in line and len(line) < 600 for line in lines)


@pytest.mark.parametrize(
    ("status", "driver_exit_code", "code"),
    [("SUCCEEDED", 0, 0), ("FAILED", 3, 3), ("FAILED", -9, 137), ("STOPPED", None, 143), ("SUCCEEDED", None, 0)],
)
def test_a_followed_job_ends_with_its_own_exit_code(status, driver_exit_code, code):
    info = SimpleNamespace(status=status, driver_exit_code=driver_exit_code, message=None)
    assert submit.exit_code(info) == code


def test_a_job_that_was_never_run_says_why():
    info = SimpleNamespace(status="FAILED", driver_exit_code=None, message="Trace\nno such file: python")
    with pytest.raises(ClusterError, match=r"^The job did not start or was lost: no such file: python$"):
        submit.exit_code(info)


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    check_folder(str(tmp_path / "spill"), "cluster.spill_dir")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as error:
        check_folder(f"{tmp_path}/file", "cluster.spill_dir")
    assert str(error.value) == f"cluster.spill_dir {tmp_path}/file cannot be used: File exists. Give another folder."


def test_a_run_whose_nodes_were_lost_says_once_what_it_waits_for_and_how_it_goes_on_with_fewer(monkeypatch, caplog):
    left = [3, 2, 1, 1, 2, 0]  # the third node is spare; the second one goes, comes back, and goes with the first
    counts = iter(left)
    monkeypatch.setattr(connect, "NODES_POLL_S", 0.0)
    monkeypatch.setattr(connect, "resources", lambda: has(*[(1, 0)] * next(counts)))
    poll = connect.lost_nodes(WorkerShape(2, 1, 0))
    for _ in left:
        poll()
    assert caplog.messages == [
        "Nodes were lost: there is room for 1 of 2 × 1 CPU, and training waits for more. With --workers 1 the same "
        "command goes on from its last checkpoint.",
        "Nodes were lost: there is room for 0 of 2 × 1 CPU, and training waits for more.",
    ]
