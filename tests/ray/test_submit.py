"""Jobs on a real head with token auth: sent, followed, listed, stopped; and drivers that join it or are refused."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from heads import TOKEN, new_head

from segray.cluster import submit
from segray.cluster.access import TOKEN_HINT
from segray.core.labels import parts
from segray.core.labels.plan import load_plans
from segray.errors import ClusterError

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent.parent
COUNT = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo line $i; sleep 0.5; done; exit 7"


@pytest.fixture(scope="module")
def head():
    head = new_head(cpus=2)
    yield head
    head.stop()


@pytest.fixture
def client(head, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    return submit.connect(head.jobs)


DATA = ("--format", "streets", "--data")


def segray(head, *args, **env):
    """(exit code, stdout, stderr) of a command that knows the head's token."""
    line = [sys.executable, "-m", "segray.cli", *map(str, args)]
    done = subprocess.run(line, env=head.env | env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def frames(town, tmp_path_factory):
    """Three frames, of which one is no picture."""
    folder = tmp_path_factory.mktemp("frames")
    for frame in sorted((town / "train").iterdir())[:2]:
        shutil.copy(frame, folder)
    (folder / "bad.jpg").write_bytes(b"no picture")
    return folder


def test_a_file_of_jobs_runs_as_ray_job_submit_sends_it(head, tmp_path):
    out = tmp_path / "out"
    name = "jobs.cityscapes_unet_scratch"
    line = ["ray", "job", "submit", "--address", head.jobs, "--working-dir", ".", "--", "python", "-m", name]
    line += ["--config", f"{name.replace('.', '/')}.yaml", "--smoke", "--out", str(out), "--set", "cluster.workers=1"]
    done = subprocess.run(line, cwd=ROOT, env=head.ray_env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Job 'raysubmit_\w+' succeeded", done.stdout)
    assert "epoch 1/1  loss " in done.stdout
    (row,) = json.loads((out / "results.json").read_text())
    assert 0 <= row["miou"] <= 1
    assert (out / row["run"] / "best" / "model.safetensors").exists()


def test_a_job_is_followed_to_its_own_exit_code_and_found_again(head, plain_bundle, frames, tmp_path):
    flags = ("label", "--model", plain_bundle, "--input", frames, "--max-error-rate", "0.5", "--out", tmp_path / "out")
    code, out, err = segray(head, "submit", "--address", head.jobs, *flags)
    assert (code, err) == (0, "")
    job = re.search(r"^Sent \d+ files, [\d.]+ [KM]iB\. The job is (segray-label-\w{8})\.$", out, re.MULTILINE)[1]
    assert "2 frames labelled, 1 error (decode_error 1)." in out
    assert out.endswith(f"The job {job} ended with exit code 0.\n")
    assert parts.verify(load_plans(str(tmp_path / "out"))) == []

    code, again, err = segray(head, "submit", *flags, "--max-error-rate", "0.1", RAY_ADDRESS=head.jobs)
    assert code == 3
    assert "segray: 1 of 3 rows are errors, more than 10%" in again

    code, listed, _ = segray(head, "jobs", "--address", head.jobs, COLUMNS="200")
    assert re.search(rf"{job} +SUCCEEDED .*label --model", listed)
    narrow = segray(head, "jobs", "--address", head.jobs, COLUMNS="80")[1]
    assert re.search(rf"{job} +SUCCEEDED ", narrow)
    code, logs, _ = segray(head, "logs", job, "--address", head.jobs)
    assert code == 0
    assert logs in out
    assert segray(head, "logs", job, "-f", "--address", head.jobs)[0] == 0


def test_a_job_that_cannot_start_says_so(head, client, tmp_path):
    code, out, _ = segray(head, "submit", "--address", head.jobs, "--python", "/none/python", "train")
    assert (code, "/none/python: not found" in out) == (127, True)


class Line:
    """A TCP proxy whose connections can be cut, and that can be deaf for a while."""

    def __init__(self, port):
        self.port, self.deaf, self.open = port, False, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            near, _ = self.listener.accept()
            if self.deaf:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self.port))
            self.open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self.pump, args=(one, other), daemon=True).start()

    def pump(self, one, other):
        try:
            while data := one.recv(65536):
                other.sendall(data)
        except OSError:
            pass
        finally:
            other.close()

    def cut(self):
        self.deaf = True
        for one in self.open:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def test_a_connection_that_is_lost_is_made_anew_and_no_line_is_missing_or_doubled(head, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    line = Line(head.jobs_port)
    client = submit.connect(line.url)
    job = client.submit_job(entrypoint=COUNT)
    text, notes = [], []

    def write(new):
        text.append(new)
        if "line 3\n" in new:
            line.cut()
            threading.Timer(2.0, setattr, (line, "deaf", False)).start()

    assert submit.follow(client, job, write, notes.append) == 7
    assert re.findall(r"^line \d+$", "".join(text), re.MULTILINE) == [f"line {i}" for i in range(1, 13)]
    assert notes == [f"{line.url} does not answer; the job keeps running. Trying again …"]


def test_a_head_that_stays_away_is_given_up_with_the_command_that_looks_again(head, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setattr(submit, "LOST_S", 1.0)
    line = Line(head.jobs_port)
    client = submit.connect(line.url)
    job = client.submit_job(entrypoint="sleep 20")
    with pytest.raises(ClusterError) as error:
        submit.follow(client, job, lambda text: line.cut())
    assert str(error.value) == f"{line.url} is gone. When it is back: segray logs {job} -f"


def test_ctrl_c_leaves_the_job_running_and_stop_ends_it(head, client):
    job = client.submit_job(entrypoint="echo started; sleep 300")
    follower = subprocess.Popen(
        [sys.executable, "-m", "segray.cli", "logs", job, "-f", "--address", head.jobs],
        env=head.env, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while "started" not in follower.stdout.readline():
        assert follower.poll() is None
    follower.send_signal(signal.SIGINT)
    out, _ = follower.communicate(timeout=60)
    assert follower.returncode == 130
    assert out.endswith(f"The job keeps running. Follow it: segray logs {job} -f. Stop it: segray stop {job}\n")
    assert client.get_job_info(job).status == "RUNNING"
    assert segray(head, "stop", job, "--address", head.jobs)[:2] == (0, f"{job} is stopped.\n")
    assert submit.follow(client, job, lambda text: None) == 143
    assert segray(head, "stop", job, "--address", head.jobs)[1] == f"{job} had ended before.\n"


@pytest.mark.parametrize(
    ("token", "said"), [("f" * 64, "refuses this token"), ("", "wants a token, and there is none here")]
)
def test_a_wrong_token_or_none_is_one_line(head, town, token, said, tmp_path):
    env = {"RAY_AUTH_TOKEN": token, "HOME": str(tmp_path)}
    assert segray(head, "jobs", "--address", head.jobs, **env) == (1, "", f"segray: {head.jobs} {said}. {TOKEN_HINT}\n")
    code, _, err = segray(head, "train", *DATA, town, "--address", head.address, "--out", tmp_path / "run", **env)
    assert (code, err) == (1, f"segray: {head.address} {said}. {TOKEN_HINT}\n")


def test_an_address_without_a_ray_or_for_jobs_alone_is_one_line(head, town, tmp_path):
    for address, line in (
        (
            "127.0.0.1:1",
            "No Ray answers at 127.0.0.1:1: Connection refused. "
            "Give the head's address, such as 10.0.0.1:6379, and open its ports to this machine.",
        ),
        (
            head.jobs,
            f"{head.jobs} takes jobs, and no drivers: send it this command with segray submit, or give HEAD:6379.",
        ),
    ):
        code, _, err = segray(head, "train", *DATA, town, "--address", address, "--out", tmp_path / "run")
        assert (code, err) == (1, f"segray: {line}\n")
    code, _, err = segray(head, "logs", "none", "--address", head.jobs)
    assert (code, err) == (1, f"segray: {head.jobs} knows no job none; segray jobs lists them.\n")


def test_a_ray_that_runs_on_this_machine_is_neither_joined_nor_stopped(head):
    """Where ray.init() without an address does join it, as its folder says."""
    code = """
import ray
from segray.cluster import connect
from segray.sections.labelling import ClusterSection
ray.init(log_to_driver=False)
print(ray.get_runtime_context().gcs_address)
ray.shutdown()
with connect.connected(ClusterSection()):
    print(ray.get_runtime_context().gcs_address)
"""
    done = subprocess.run([sys.executable, "-c", code], env=head.ray_env, capture_output=True, text=True, timeout=120)
    found, ours = done.stdout.split()
    assert found.endswith(f":{head.gcs_port}"), done.stderr
    assert ours != found
    assert head.answers()


def test_a_run_on_a_cluster_waits_for_its_nodes_and_names_a_folder_that_one_does_not_see(head, town, tmp_path):
    common = ("train", "--address", head.address, *DATA, town, "--size", "32x48", "--arch", "unet-plain")
    common += ("--epochs", "1", "--batch-size", "6", "--set", "model.options.channels=8")
    two = (*common, "--workers", "2", "--set", "cluster.cpus_per_worker=2", "--out", tmp_path / "run")
    code, _, err = segray(head, *two)
    assert (code, err) == (
        1,
        "segray: 4 CPUs asked, 2 in the cluster. Lower the number of workers, add a node to the cluster, or, where an "
        "autoscaler does, give it time: --set cluster.wait=20m.\n",
    )
    line = [sys.executable, "-m", "segray.cli", *map(str, two), "--set", "cluster.wait=3m"]
    run = subprocess.Popen(line, env=head.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    told = run.stderr.readline()
    assert told == "Waiting up to 3 min for nodes: 2 × 2 CPUs asked, 2 CPUs and 0 GPUs are there.\n"
    head.start_node(cpus=2)
    out, err = run.communicate(timeout=300)
    assert (run.returncode, err) == (0, "")
    assert "epoch 1/1" in out

    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("a node cannot have file systems of its own here")
    hide = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs tmpfs "{town.parent}" && exec "$@"', "sh"]
    head.start_node(cpus=1, prefix=hide)
    head.wait_for(lambda: head.nodes() == 3)
    code, _, err = segray(head, *common, "--workers", "1", "--out", tmp_path / "other")
    assert code == 1
    assert re.fullmatch(
        rf"segray: {town} is not seen on node \S+\. Give a folder that all nodes mount, or a bucket\.\n", err
    )
