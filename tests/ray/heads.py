"""A real Ray head with token auth, on ports and in a folder of its own; and further nodes for it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

TOKEN = "0123456789abcdef" * 4


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@dataclass
class Head:
    """jobs: where jobs are sent; address: where drivers join; env: of those who may; ray_env: for Ray's own commands."""

    folder: Path
    gcs_port: int = field(default_factory=free_port)
    jobs_port: int = field(default_factory=free_port)
    processes: list = field(default_factory=list)

    @property
    def jobs(self):
        return f"http://127.0.0.1:{self.jobs_port}"

    @property
    def address(self):
        return f"127.0.0.1:{self.gcs_port}"

    @property
    def env(self):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        quiet = {"RAY_TMPDIR": str(self.folder), "RAY_USAGE_STATS_ENABLED": "0"}
        return {**kept, "PATH": path, "RAY_AUTH_TOKEN": TOKEN, **quiet}

    @property
    def ray_env(self):
        return self.env | {"RAY_AUTH_MODE": "token"}

    def start(self, *options, prefix=()):
        """`ray start` with these options, in the foreground of a process of ours."""
        # Without PYTHONPATH: what a job needs, it brings.
        env = {name: value for name, value in self.ray_env.items() if name != "PYTHONPATH"}
        command = [*prefix, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
        with (self.folder / f"start-{len(self.processes)}.log").open("w") as log:
            self.processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True))

    def start_head(self, cpus=2):
        ports = {"--port": self.gcs_port, "--dashboard-port": self.jobs_port}
        others = ("--ray-client-server-port", "--dashboard-agent-listen-port", "--dashboard-agent-grpc-port")
        ports |= {option: free_port() for option in others}
        limits = {"--num-cpus": cpus, "--object-store-memory": 200_000_000}
        self.start("--head", "--disable-usage-stats", *(f"{name}={value}" for name, value in (ports | limits).items()))
        self.wait_for(lambda: self.answers() and (self.folder / "ray/ray_current_cluster").exists())  # written last

    def start_node(self, cpus, prefix=()):
        ports = ("--dashboard-agent-listen-port", "--dashboard-agent-grpc-port")
        limits = {"--num-cpus": cpus, "--object-store-memory": 100_000_000, "--address": self.address}
        limits |= {option: free_port() for option in ports}
        self.start(*(f"{name}={value}" for name, value in limits.items()), prefix=prefix)

    def wait_for(self, there, seconds=120):
        end = time.monotonic() + seconds
        while not there():
            assert time.monotonic() < end, [path.read_text() for path in self.folder.glob("start-*.log")]
            time.sleep(0.2)

    def get(self, path):
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return urllib.request.urlopen(urllib.request.Request(f"{self.jobs}/{path}", headers=headers), timeout=5)

    def answers(self):
        try:
            return self.get("api/version").status == 200
        except (urllib.error.URLError, OSError):
            return False

    def nodes(self):
        """Count those that are alive."""
        found = json.load(self.get("api/v0/nodes"))["data"]["result"]["result"]
        return sum(node["state"] == "ALIVE" for node in found)

    def stop(self):
        """End what was started here, and nothing else."""
        for pid in self._pids():
            os.kill(pid, signal.SIGKILL)
        for started in self.processes:
            started.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _pids(self):
        """Processes that know this head's folder."""
        for place in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"RAY_TMPDIR={self.folder}".encode() in place.read_bytes().split(b"\0"):
                    yield int(place.parent.name)
            except OSError:  # it has ended, or is another user's
                continue


def new_head(cpus=2):
    head = Head(Path(tempfile.mkdtemp(prefix="head-", dir="/tmp")))  # short, as the paths of sockets must be
    head.start_head(cpus)
    return head
