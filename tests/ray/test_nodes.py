"""Ray on several nodes, one of which dies or comes: what is trained and labelled is what one node makes.

Data and outputs are on S3, so that no node needs another's disk.

python tests/ray/test_nodes.py STAGE CONFIG CHANGE    train, sweep or label on a head without CPUs and its nodes
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from segray.config import Config
from segray.core.io import storage
from segray.core.models import bundle
from segray.core.training.checkpoint import read_history
from segray.stages.train import train
from segray.trials.leaderboard import read_entries, read_sweep

NODES = 3

pytestmark = pytest.mark.long


@pytest.fixture
def on_s3(town, s3, tmp_path):
    """The town's images and masks, on S3."""
    place = f"{s3}/Läufe 1/{tmp_path.name}"
    for entry in storage.list_files(str(town)):
        storage.replace(entry.uri.replace(str(town), f"{place}/town"), storage.read_bytes(entry.uri))
    return place


def run(stage, config, change):
    """STAGE on a cluster of its own; what changed: nodes that were taken away, or came."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # short, as paths of sockets must be
        done = subprocess.run(
            [sys.executable, __file__, stage, config.model_dump_json(), change],
            env=os.environ | {"RAY_TMPDIR": folder},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_training_goes_on_from_the_checkpoint_on_s3_when_a_node_dies(settings, on_s3):
    options = {"data__format": "camvid", "data__root": f"{on_s3}/town", "train__epochs": 3, "cluster__gpu": False}
    losses = {}
    for change, changed in (("none", {}), ("kill", {"killed": 1})):
        config = settings(cluster__workers=2, train__out=f"{on_s3}/{change}", **options)
        assert run("train", config, change) == changed
        rows = read_history(config.train.out)
        assert [row["epoch"] for row in rows] == [1, 2, 3]
        losses[change] = [row["loss"] for row in rows]
        assert not storage.exists(f"{config.train.out}/.ray")
    assert losses["kill"] == pytest.approx(losses["none"])


def test_a_sweep_on_nodes_of_which_one_comes_later_is_the_sweep_of_one_node(settings, on_s3, tmp_path):
    options = {"data__format": "camvid", "data__root": f"{on_s3}/town", "cluster__gpu": False}
    options |= {"sweep__learning_rates": [1e-3, 2e-3, 5e-3], "sweep__grace_epochs": 2}
    there = settings(sweep__out=f"{on_s3}/sweep", **options)
    assert run("sweep", there, "add") == {"added": 1, "trials at once": [1, 2]}
    found = read_sweep(f"{on_s3}/sweep")
    assert found.state == "Complete: 3 finished."
    for row in found.leaderboard:
        one = settings(cluster__workers=0, train__out=str(tmp_path / row.trial), **options)
        alone = train(one.changed({"train.learning_rate": row.learning_rate}))
        assert row.miou == pytest.approx(alone.best_row["miou"], abs=0.02)
    model, _ = bundle.load(found.best)
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == found.leaderboard[0].parameters


# A run on a cluster: this file as a program, as a process has one driver only.


def on_cluster(stage, config, change):
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray
    from ray.cluster_utils import Cluster

    from segray.cluster.connect import QUIET
    from segray.stages import label, sweep, train

    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for cpus in {"none": [NODES], "add": [1]}.get(change, [1] * NODES):  # "none": one node, which stays
        cluster.add_node(num_cpus=cpus)
    ray.init(cluster.address, log_to_driver=False)
    work = {"train": train.train, "sweep": sweep.sweep, "label": label.label}[stage]
    changed, at_once = {}, set()
    with ThreadPoolExecutor(1) as pool:  # a node can be added by the main thread alone, as it sets a signal's handler
        running = pool.submit(work, config)
        while not running.done():
            time.sleep(0.1)
            if stage == "sweep":
                at_once.add(sum(entry.state == "running" for entry in read_entries(config.sweep.out)))
            if change != "none" and not changed and begun(stage, config):
                if change == "kill":
                    cluster.remove_node(busiest(cluster), allow_graceful=False)
                    changed["killed"] = 1
                else:
                    cluster.add_node(num_cpus=1)
                    changed |= {"added": 1, "trials at once": at_once}
        running.result()
    print(json.dumps(changed, default=lambda seen: sorted(seen - {0})))
    ray.shutdown()
    cluster.shutdown()


def begun(stage, config):
    """Whether something of the work is done."""
    if stage == "train":
        return read_history(config.train.out)
    if stage == "sweep":
        return any(entry.uri.endswith("history.jsonl") for entry in storage.list_files(config.sweep.out))
    return storage.list_files(f"{config.label.out}/labels")


def busiest(cluster):
    """A node whose CPU is taken."""
    import ray
    from ray._private.state import available_resources_per_node  # the public one knows the whole cluster only

    free = available_resources_per_node()
    busy = {
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU") and not free.get(node["NodeID"], {}).get("CPU")
    }
    return next(node for node in cluster.worker_nodes if node.node_id in busy)


if __name__ == "__main__":
    on_cluster(sys.argv[1], Config.model_validate_json(sys.argv[2]), sys.argv[3])
