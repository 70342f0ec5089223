"""Ray on several nodes, one of which dies or comes: what is trained and labelled is what one node makes.

Data and outputs are on S3, so that no node needs another's disk.

python tests/ray/test_nodes.py CHANGE CONFIG …    train, sweep or label on a head without CPUs and its nodes
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle
from pathlib import Path

import pytest

from segray.config import Config, load
from segray.core.io import storage
from segray.core.labels import parts
from segray.core.labels.folder import read_summary
from segray.core.labels.plan import load_plans
from segray.core.models import bundle
from segray.core.training.checkpoint import read_history
from segray.errors import AccessDenied, ClusterError
from segray.stages.train import train
from segray.trials.leaderboard import read_entries, read_sweep

NODES = 3
FRAMES = 1000

pytestmark = pytest.mark.long


@pytest.fixture
def on_s3(town, s3, tmp_path):
    """The town's images and masks, on S3."""
    place = f"{s3}/Läufe 1/{tmp_path.name}"
    for entry in storage.list_files(str(town)):
        storage.replace(entry.uri.replace(str(town), f"{place}/town"), storage.read_bytes(entry.uri))
    return place


def run(**configs):
    """One run after the other on a cluster of their own, each with its change; what was seen of each."""
    given = [word for change, config in configs.items() for word in (change, config.model_dump_json())]
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:  # short, as paths of sockets must be
        done = subprocess.run(
            [sys.executable, __file__, *given],
            env=os.environ | {"RAY_TMPDIR": folder},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]  # Ray prints more


def test_training_goes_on_from_the_checkpoint_on_s3_when_a_node_dies(settings, on_s3, tmp_path):
    # Batches' statistics, and flips, would differ from those of one worker without a cluster.
    model = {"model__batch_norm": False, "augment__flip": 0, "train__precision": "fp32"}
    options = {"data__format": "camvid", "data__root": f"{on_s3}/town", "train__epochs": 3, "cluster__gpu": False}
    config = settings(cluster__workers=2, train__out=f"{on_s3}/run", **model, **options)
    assert run(kill=config) == [{"killed": 1}]
    rows = read_history(config.train.out)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert not storage.exists(f"{config.train.out}/.ray")
    whole = train(config.changed({"cluster.workers": 0, "train.out": str(tmp_path / "whole")}))
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in whole.history], rel=1e-4)


def test_a_sweep_on_nodes_of_which_one_comes_later_is_the_sweep_of_one_node(settings, on_s3, tmp_path):
    options = {"data__format": "camvid", "data__root": f"{on_s3}/town", "cluster__gpu": False}
    options |= {"sweep__learning_rates": [1e-3, 2e-3, 5e-3], "sweep__grace_epochs": 2}
    there = settings(sweep__out=f"{on_s3}/sweep", **options)
    assert run(add=there) == [{"added": 1, "trials at once": [1, 2]}]
    found = read_sweep(f"{on_s3}/sweep")
    assert [(row.status, row.error) for row in found.leaderboard] == [("finished", None)] * 3
    assert found.state == "Complete: 3 finished."
    for row in found.leaderboard:
        one = settings(cluster__workers=0, train__out=str(tmp_path / row.trial), **options)
        alone = train(one.changed({"train.learning_rate": row.learning_rate}))
        assert row.miou == pytest.approx(alone.best_row["miou"], abs=0.02)
    model, _ = bundle.load(found.best)
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == found.leaderboard[0].parameters


@pytest.fixture(scope="module")
def frames(town, tmp_path_factory):
    """Many frames, of which a few stand under many names."""
    folder = tmp_path_factory.mktemp("frames")
    for number, image in zip(range(FRAMES), cycle(sorted((town / "train").iterdir())), strict=False):
        (folder / f"{number:05}{image.suffix}").hardlink_to(image)
    return folder


@pytest.fixture(scope="module")
def labelled(plain_bundle, frames, tmp_path_factory):
    """Two runs on one cluster: their outputs, and what was seen of each."""
    outs = {change: tmp_path_factory.mktemp(change) / "out" for change in ("sick", "change")}
    given = {"label.model": str(plain_bundle), "label.inputs": [str(frames)], "cluster.gpu": False}
    more = {
        "sick": {"label.actors": 3, "label.limit": 100, "label.shard_size": 2},
        "change": {"label.actors": 4, "label.shard_size": 4},
    }
    configs = {change: load(None, given | more[change] | {"label.out": str(out)}) for change, out in outs.items()}
    return {change: (outs[change], seen) for change, seen in zip(configs, run(**configs), strict=True)}


def check(out, rows):
    assert parts.verify(load_plans(str(out))) == []
    assert (read_summary(load_plans(str(out)))["ok"], read_summary(load_plans(str(out)))["errors"]) == (rows, {})


def test_a_cluster_without_tokens_is_refused_where_they_are_on(labelled):
    for _, seen in labelled.values():
        assert re.fullmatch(
            r"[\d.]+:\d+ asks for no token, and a process that has one cannot work with it\. .* RAY_AUTH_MODE=disabled .*",
            seen["refused"],
        )


def test_nodes_whose_device_fails_or_that_have_no_credentials_are_left_out(labelled):
    out, seen = labelled["sick"]
    address = seen["address"]
    failed = f"A labelling process failed on {address} (RuntimeError: CUDA error: the bus is gone). "
    left_out = f"Node {address} is left out for the rest of this run"
    always = {
        f"{failed}It is started again; its shards go to others.",
        f"{left_out} (s3://b/best cannot be read: no credentials). The others go on.",
    }
    after_three_failures = f"{left_out} (RuntimeError: CUDA error: the bus is gone). The others go on."
    assert always <= {*seen["notes"]} <= always | {after_three_failures}  # the third node may be done before
    check(out, 100)


def test_of_four_actors_three_have_room_a_node_is_lost_one_joins_and_every_row_is_there_once(labelled):
    out, seen = labelled["change"]
    assert seen["notes"] == [
        "The cluster has room for 3 of the 4 labelling processes asked (3 × 1 CPU). The others start when nodes come."
    ]
    assert (seen["killed"], seen["added"], seen["the new node works"]) == (1, 1, True)
    check(out, FRAMES)


# A run on a cluster: this file as a program, as a process has one driver only.


def on_cluster(configs):
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray
    from ray.cluster_utils import Cluster

    from segray.cluster.connect import QUIET

    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(1 if "add" in configs else NODES):
        cluster.add_node(num_cpus=1)
    ray.init(cluster.address, log_to_driver=False)
    for change, config in configs.items():
        on = train_on if change in ("kill", "add") else label_on
        print(json.dumps(on(cluster, config, change)))
    ray.shutdown()
    cluster.shutdown()


def train_on(cluster, config, change):
    """Train until a node is killed, or sweep until one is added: when something is done; and go on to the end."""
    from segray.stages import sweep, train

    work = {"kill": train.train, "add": sweep.sweep}[change]
    seen, at_once = {}, set()
    with ThreadPoolExecutor(1) as pool:  # a node can be added by the main thread alone, as it sets a signal's handler
        running = pool.submit(work, config)
        while not running.done():
            time.sleep(0.1)
            if change == "kill" and not seen and read_history(config.train.out):
                cluster.remove_node(busiest(cluster), allow_graceful=False)
                seen = {"killed": 1}
            if change == "add":
                at_once.add(sum(entry.state == "running" for entry in read_entries(config.sweep.out)))
                files = storage.list_files(config.sweep.out)
                if not seen and any(entry.uri.endswith("history.jsonl") for entry in files):
                    cluster.add_node(num_cpus=1)
                    seen = {"added": 1}
        running.result()
    return seen | ({"trials at once": sorted(at_once - {0})} if at_once else {})


def label_on(cluster, config, change):
    """Label, with sick nodes; or label until one node is killed after 50 parts and a larger one is added, and go on."""
    import ray

    from segray.cluster import access
    from segray.stages import label

    seen = {"notes": [], "the new node works": False, "address": ray.util.get_node_ip_address()}

    class Seen(label.Unwatched):
        def note(self, text):
            if not text.endswith(label.THERE_BEFORE):  # by a process that is lost: it may end before or after that
                seen["notes"].append(text)

    access.check_join(cluster.address)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_AUTH_MODE")
        with pytest.raises(ClusterError) as refused:
            access.check_join(cluster.address)
    seen["refused"] = str(refused.value)
    sound = label.Labeller
    if change == "sick":
        label.Labeller = sick(config)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(label.label, config, watch=Seen())
        while not running.done():
            time.sleep(0.2)
            if (
                change == "change"
                and "killed" not in seen
                and len(storage.list_files(f"{config.label.out}/labels")) > 50
            ):
                cluster.remove_node(busiest(cluster), allow_graceful=False)
                new = cluster.add_node(num_cpus=2)
                seen |= {"killed": 1, "added": 1}
            if "added" in seen:
                seen["the new node works"] |= new.node_id in busy()
        running.result()
    label.Labeller = sound
    return seen


def sick(config):
    """A labeller whose device fails on the first node that takes the marker, and who has no credentials on the second."""
    from segray.cluster import labeller

    class Sick(labeller.Labeller):
        def __init__(self, *given):
            labeller.REST_S = 1.0
            super().__init__(*given)

        def _load(self):
            super()._load()
            for what in ("device", "credentials"):
                marker = Path(f"{config.label.out}-{what}")
                with suppress(FileExistsError), marker.open("x") as file:
                    file.write(self.node_id)
                while not (node := marker.read_text()):
                    time.sleep(0.01)
                if node == self.node_id:
                    self.predictor.predict = getattr(self, what)
                    return

        def device(self, *given, **named):
            raise RuntimeError("CUDA error: the bus is gone")

        def credentials(self, *given, **named):
            raise AccessDenied("s3://b/best cannot be read: no credentials.")

    return Sick


def busiest(cluster):
    """A node whose CPUs are taken."""
    taken = busy()
    return next(node for node in cluster.worker_nodes if node.node_id in taken)


def busy():
    """Ids of the nodes whose CPUs are all taken."""
    import ray
    from ray._private.state import available_resources_per_node  # the public one knows the whole cluster only

    free = available_resources_per_node()
    return {
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU") and not free.get(node["NodeID"], {}).get("CPU")
    }


if __name__ == "__main__":
    on_cluster(dict(zip(sys.argv[1::2], map(Config.model_validate_json, sys.argv[2::2]), strict=True)))
