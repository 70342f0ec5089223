"""Runs of Ray under faults: actors, nodes and drivers that die, disks that fill, stores that go; and no secrets left.

python tests/ray/test_faults.py CONFIG SEED STRIKES    one run on a cluster of three nodes that lose actors and nodes
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torture

from segray.config import load
from segray.core import parts
from segray.core.datasets import streets
from segray.core.plan import load_plans
from segray.label import label

SLOW_S = 0.5  # a frame, so that there is time to strike
SITE = f"""
import time
import PIL.Image
plain = PIL.Image.open

def open(*args, **kwargs):
    time.sleep({SLOW_S})
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
    yield {**os.environ, "PYTHONPATH": path, "RAY_TMPDIR": folder}
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
def totals(ray_session, tiny_bundle, drive, tmp_path_factory):
    return totals_of(label(load(None, settings(tiny_bundle, drive, tmp_path_factory.mktemp("quiet")))))


def totals_of(summary):
    return {key: summary[key] for key in torture.TOTALS}


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
    assert totals_of(parts.read_summary(plans)) == totals


# A run on a cluster: this file as a program, as a process has one driver only.


def on_cluster(config, seed, strikes):
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray
    from ray.cluster_utils import Cluster

    from segray.cluster import QUIET

    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(cluster.address, log_to_driver=False)
    struck = {"actor": 0, "node": 0}
    threading.Thread(
        target=strike, args=(cluster, config.label.out, random.Random(seed), strikes, struck), daemon=True
    ).start()
    label(config)
    print(json.dumps(struck))
    ray.shutdown()
    cluster.shutdown()


def strike(cluster, out, chance, strikes, struck):
    """Actors and nodes in turn, each after some more parts."""
    for i in range(strikes):
        goal = parts_in(out) + chance.randint(1, 4)
        while parts_in(out) < goal:
            time.sleep(0.01)
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
    return json.loads(stdout.splitlines()[-1]) | {"reads": reads}


def test_an_actor_and_a_node_that_die_cost_no_row(tiny_bundle, drive, tmp_path, env, totals):
    struck = cluster_round(tiny_bundle, drive, tmp_path / "out", env, seed=0, strikes=2)
    assert (struck["actor"], struck["node"]) == (1, 1)
    assert struck["reads"] > 20
    check(tmp_path / "out", totals)


if __name__ == "__main__":
    on_cluster(load(None, json.loads(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
