"""Runs of Ray under faults: actors, nodes and drivers that die, disks that fill, stores that go; and no secrets left.

python tests/ray/test_faults.py CONFIG SEED STRIKES    one run on a cluster of three nodes that lose actors and nodes
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torture
from faultproxy import FaultProxy

from segray import cli
from segray.config import load
from segray.core.data import streets
from segray.core.io import storage
from segray.core.labels import parts
from segray.core.labels.folder import read_summary
from segray.core.labels.plan import load_plans
from segray.stages.label import Watch, label

SLOW_S = "0.3"  # a frame, so that there is time to strike
SITE = """
import os
import time
import PIL.Image
plain = PIL.Image.open

def open(*args, **kwargs):
    time.sleep(float(os.environ["SLOW_S"]))
    return plain(*args, **kwargs)

PIL.Image.open = open
"""


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    return streets.write(tmp_path_factory.mktemp("drive") / "drive", train=0, val=48, size=(32, 48), video_s=0)


@pytest.fixture
def env(tmp_path):
    """A folder of Ray's own, whose path is short as those of sockets must be; and slow pictures."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    path = os.pathsep.join([str(tmp_path / "site"), str(Path(torture.__file__).parent)])
    yield {**os.environ, "PYTHONPATH": path, "RAY_TMPDIR": folder, "SLOW_S": SLOW_S}
    shutil.rmtree(folder, ignore_errors=True)


def command(bundle, drive, out):
    return [
        *(sys.executable, "-m", "segray.cli", "label", "--model", str(bundle), "--input", f"{drive}/val"),
        *("--truth", f"{drive}/valannot", "--actors", "2", "--out", str(out), "--set", "label.shard_size=2"),
    ]


def settings(bundle, drive, out):
    values = {"label.model": str(bundle), "label.inputs": [f"{drive}/val"], "label.truth": f"{drive}/valannot"}
    return values | {"label.out": str(out), "label.shard_size": 2, "label.actors": 2}


@pytest.fixture(scope="module")
def totals(ray_session, plain_bundle, drive, tmp_path_factory):
    return totals_of(label(load(None, settings(plain_bundle, drive, tmp_path_factory.mktemp("quiet")))))


def totals_of(summary):
    return {key: summary[key] for key in torture.TOTALS if key != "parts"}  # whose names the inputs' places change


def watch(run, out, until=lambda: False):
    """Read all parts while a run goes on; the number of parts that were read, of which none is wrong."""
    lines, seen = [], {}
    while run.poll() is None and not until():
        torture.read(str(out), seen, lines.append)
        time.sleep(0.02)
    assert set(lines) <= {"read"}
    return len(lines)


def parts_in(out):
    return len(list(Path(out).glob("labels/*.parquet")))


def check(out, totals):
    plans = load_plans(str(out))
    assert parts.verify(plans) == []
    assert totals_of(read_summary(plans)) == totals


# A run on a cluster: this file as a program, as a process has one driver only.


def on_cluster(config, seed, strikes):
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray
    from ray.cluster_utils import Cluster

    from segray.cluster.connect import QUIET

    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(cluster.address, log_to_driver=False)
    struck = {"actor": 0, "node": 0}
    with ThreadPoolExecutor(1) as pool:  # a node can be added by the main thread alone, as it sets a signal's handler
        run = pool.submit(label, config)
        strike(cluster, run, config.label.out, random.Random(seed), strikes, struck)
        run.result()
    print(json.dumps(struck))
    ray.shutdown()
    cluster.shutdown()


def strike(cluster, run, out, chance, strikes, struck):
    """Actors and nodes in turn, each after some more parts, as long as the run goes on."""
    for i in range(strikes):
        goal = parts_in(out) + chance.randint(1, 4)
        while parts_in(out) < goal and not run.done():
            time.sleep(0.01)
        if run.done():
            return
        if i % 2 == 0:
            os.kill(chance.choice(actors()), signal.SIGKILL)
            struck["actor"] += 1
        else:
            cluster.remove_node(chance.choice(sorted(cluster.worker_nodes, key=id)), allow_graceful=False)
            struck["node"] += 1
            cluster.add_node(num_cpus=1)


def actors():
    """Process ids of this process's own Labellers: raylets are its children, and actors theirs."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if b"MapBatches(Labeller)" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has ended
            continue

    def ours(pid):
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return [pid for pid in found if ours(pid)]


def cluster_round(bundle, drive, out, env, seed, strikes):
    given = [json.dumps(settings(bundle, drive, out)), str(seed), str(strikes)]
    run = subprocess.Popen(
        [sys.executable, __file__, *given], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    reads = watch(run, out)
    stdout, stderr = run.communicate()
    assert run.returncode == 0, stderr
    struck = json.loads(stdout.splitlines()[-1])
    assert sum(struck.values()) == strikes, stderr
    return struck | {"reads": reads}


@pytest.mark.long
def test_actors_that_are_told_to_end_drop_their_shards_and_others_label_them(plain_bundle, drive, tmp_path, totals):
    """SIGTERM, as on a machine that is reclaimed."""
    struck = []

    class Strike(Watch):
        def done(self, receipt):
            if not struck:
                struck.extend(actors())
                for pid in struck:
                    os.kill(pid, signal.SIGTERM)

    label(load(None, settings(plain_bundle, drive, tmp_path / "out")), watch=Strike())
    assert struck
    check(tmp_path / "out", totals)


@pytest.mark.torture
@pytest.mark.timeout(0)
def test_many_strikes_on_a_cluster_and_its_driver(plain_bundle, drive, tmp_path, env, totals, capsys, pytestconfig):
    chance = random.Random(0)
    for seed in range(max(1, pytestconfig.getoption("rounds") // 10)):
        out = tmp_path / f"cluster-{seed}"
        struck = cluster_round(plain_bundle, drive, out, env | {"SLOW_S": "3"}, seed, strikes=4)
        check(out, totals)
        out = tmp_path / f"driver-{seed}"
        killed = driver_round(command(plain_bundle, drive, out), out, env, chance)
        check(out, totals)
        with capsys.disabled():
            print(f"round {seed}: {struck}, then {killed}")


def driver_round(line, out, env, chance):
    """A command that is killed at random numbers of parts, and then ends by itself."""
    kills, reads = 0, 0
    while True:
        goal = parts_in(out) + chance.randint(1, 8) if kills < 3 else 10**9
        run = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        reads += watch(run, out, until=lambda goal=goal: parts_in(out) >= goal)
        if run.poll() is not None:
            assert run.returncode == 0, run.stdout.read()
            return {"driver": kills, "reads": reads}
        run.kill()
        run.communicate()
        kills += 1


# A disk that is full, and one that may not be written.


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a tmpfs may not be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def run_here(line, monkeypatch, capsys):
    """A command in this process, on the Ray that it has: exit code and what stands on stderr."""
    monkeypatch.setattr(sys, "argv", [str(word) for word in line[2:]])
    capsys.readouterr()
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code, capsys.readouterr().err
    return 0, capsys.readouterr().err


@pytest.mark.long
def test_a_full_disk_and_one_that_may_not_be_written_end_a_run_that_goes_on_later(
    plain_bundle, drive, small_disk, totals, monkeypatch, capsys
):
    out = small_disk / "out"
    line = command(plain_bundle, drive, out)
    for options, reason in (
        (None, "No space left on device"),
        ("remount,ro", "Read-only file system"),
    ):
        if options:
            subprocess.run(["mount", "-o", options, small_disk], check=True)
        code, text = run_here(line, monkeypatch, capsys)
        assert code == 1
        assert re.fullmatch(rf"segray: {out}/labels/part-\S+ cannot be written: {reason}\.\n", text.lstrip()), text
        assert 0 < parts_in(out) < 24
        # A process that is ended amid its writing leaves a file, which the end of a later run removes.
        assert [left.name for left in small_disk.rglob(".*") if not left.match(".part-*.tmp")] == []
        torture.read(str(out), {}, lambda line: line == "read" or pytest.fail(line))
    subprocess.run(["mount", "-o", "remount,rw,size=16m", small_disk], check=True)
    assert run_here(line, monkeypatch, capsys) == (0, "")
    check(out, totals)


# A store that goes for good in the middle of a run; and what any run leaves behind knows no secret.


@pytest.mark.long
def test_a_store_that_goes_ends_a_run_that_goes_on_later_and_no_secret_is_written(
    plain_bundle, drive, env, s3, tmp_path, totals
):
    place, told = f"{s3}/{tmp_path.name}", []
    for path in [*(drive / "val").iterdir(), *(drive / "valannot").iterdir()]:
        storage.create(f"{place}/in/{path.parent.name}/{path.name}", path.read_bytes())
    line = command(plain_bundle, f"{place}/in", f"{place}/out")
    with FaultProxy(os.environ["AWS_ENDPOINT_URL_S3"]) as proxy:
        env |= {"AWS_ENDPOINT_URL": proxy.url, "AWS_ENDPOINT_URL_S3": proxy.url, "SEGRAY_RETRY_S": "2"}
        run = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        watch(run, f"{place}/out", until=lambda: len(storage.list_files(f"{place}/out/labels")) >= 3)
        proxy.set(down=1)
        told += run.communicate()
        assert run.returncode == 1
        assert re.fullmatch(rf"segray: {place}/\S+ cannot be (read|created): .*; tried \d+ times in 2 s\.\n", told[1])
        proxy.set()
        done = subprocess.run(line, env=env, capture_output=True, text=True)
        told += [done.stdout, done.stderr]
    assert (done.returncode, done.stderr) == (0, "")
    check(f"{place}/out", totals)  # with no error row

    files = [path for path in Path(env["RAY_TMPDIR"]).rglob("*") if path.is_file()]
    assert len(files) > 20
    entries = storage.list_files(f"{place}/out")
    data = {entry.uri: storage.read_bytes(entry.uri) for entry in entries} | {path: path.read_bytes() for path in files}
    data |= {
        f"{uri}, decoded": repr(pq.read_table(pa.BufferReader(data[uri])).to_pylist()).encode()
        for uri in [entry.uri for entry in entries]
        if uri.endswith(".parquet")
    }
    data |= {"terminal": "".join(told).encode()}
    assert [str(name) for name, text in data.items() if b"canary-secret" in text or b"canary-key" in text] == []


if __name__ == "__main__":
    on_cluster(load(None, json.loads(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
