"""A command as a job on a cluster: packed with this package, sent to the head, followed to its own exit code.

The settings are resolved and checked here and travel as one file, so the job is `COMMAND --config segray.yaml`.
Only the package, the jobs folder and wheels are sent from this machine: no data, no runs, no .git.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import segray
from segray.cluster.access import check_answers, token, wrong_token
from segray.config import Config, load
from segray.errors import ClusterError, ConfigError, Terminated, shortened

COMMANDS = ("train", "sweep", "label", "evaluate")
JOB_SETTINGS = "segray.yaml"
ANSWER_S = 30.0  # for one request
QUIET_S = 60.0  # the connection is renewed after so long without a line, because a dead one says nothing
LOST_S = 600.0  # how long to look for a head that no longer answers
AGAIN_S = 1.0
AT_ADDRESS = "Give the head's dashboard, such as http://10.0.0.1:8265; from outside: ssh -L 8265:127.0.0.1:8265 HEAD."

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Sent:
    """A job as it was sent: its id, and the number and total size in bytes of its files."""

    job: str
    files: int
    size: int


def job_settings(name: str, args: Sequence[str]) -> tuple[Config, list[str]]:
    """Ask jobs.NAME by --dry-run for its resolved settings with these arguments. Return them and the other flags."""
    if not Path(*name.split(".")).with_suffix(".py").is_file():
        raise ConfigError(f"{name.replace('.', '/')}.py is not here; run this in the folder that holds jobs/.")
    asked = subprocess.run([sys.executable, "-m", name, *args, "--dry-run"], capture_output=True, text=True)
    if asked.returncode:
        line = (asked.stderr.strip().splitlines() or ["it failed"])[-1]
        raise ConfigError(f"{name}: {line.removeprefix('segray: ').removeprefix('Error: ')}")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(asked.stdout)
        file.flush()
        config = for_cluster(load(file.name))
    return config, ["--out", config.train.out, *(["--smoke"] if "--smoke" in args else [])]


def for_cluster(config: Config) -> Config:
    """Make paths absolute. Raises ConfigError for an address: a job runs on the cluster that it is sent to."""
    if config.cluster.address:
        raise ConfigError(
            f"cluster.address is {config.cluster.address}, and a job runs on the cluster that it is sent to; "
            "leave it out, and give --address before the command."
        )
    return config.absolute()


def submit(
    client: Any,
    command: str,
    config: Config,
    flags: Sequence[str],
    *,
    python: str | None = None,
    pip: Sequence[str] = (),
    shown: str = "",
) -> Sent:
    """Send `command` (train, …, or jobs.NAME) with these settings as a job; it starts at once.

    python: the interpreter on the cluster; default: this one's path, or with pip the cluster's own.
    pip: requirements and wheel files that are installed for the job. shown: the command in a list of jobs.
    """
    module = [command] if command.startswith("jobs.") else ["segray.cli", command]
    words = [python or ("python" if pip else sys.executable), "-m", *module, "--config", JOB_SETTINGS, *flags]
    job = f"segray-{command.removeprefix('jobs.')}-{uuid.uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / JOB_SETTINGS).write_text(config.to_yaml())
        if not any(_is_segray(requirement) for requirement in pip):
            _copy(Path(segray.__file__).parent, folder / "segray")
        if command.startswith("jobs."):
            _copy(Path("jobs"), folder / "jobs")
        environment: dict[str, Any] = {"working_dir": name}
        if pip:
            environment["pip"] = [_packed(requirement, folder) for requirement in pip]
        files = [path for path in folder.rglob("*") if path.is_file()]
        sent = Sent(job, len(files), sum(path.stat().st_size for path in files))
        with _one_line(client.get_address()):
            client.submit_job(
                entrypoint=shlex.join(words), submission_id=job, runtime_env=environment, metadata={"command": shown}
            )
    return sent


def _copy(folder: Path, to: Path) -> None:
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("__pycache__"))


def _is_segray(requirement: str) -> bool:
    return Path(requirement).name.startswith("segray")


def _packed(requirement: str, folder: Path) -> str:
    """Copy a wheel into a folder named by its content: Ray caches an environment by the text of its requirements."""
    if not requirement.endswith(".whl"):
        return requirement
    try:
        data = Path(requirement).read_bytes()
    except OSError as error:
        raise ConfigError(f"{requirement} cannot be read: {error.strerror}.") from error
    place = Path("wheels", hashlib.sha256(data).hexdigest()[:12], Path(requirement).name)
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).write_bytes(data)
    return f"${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{place}"


class Lost(ClusterError):
    """The job server does not answer, perhaps only for now."""


def connect(address: str | None) -> Any:
    """Return a client of the job server at `address`, else RAY_API_SERVER_ADDRESS, else RAY_ADDRESS.

    Raises ClusterError if no address is given (Ray would look for a server on this machine), no server answers, or it
    refuses the token.
    """
    before = {name: os.environ.pop(name, None) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")}
    try:  # Ray prefers these variables to the address that it is given
        address = address or next((value for value in before.values() if value), None)
        if address is None:
            raise ClusterError(f"No cluster is given in --address or RAY_ADDRESS. {AT_ADDRESS}")
        address = address.rstrip("/") if "://" in address else f"http://{address}"
        check_answers(address, AT_ADDRESS)
        with _one_line(address):
            return _client(address)
    finally:
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, *args: Any, **kwargs: Any) -> Any:
            """Set a time limit: Ray's own request has none, and would wait for ever for a machine that is gone."""
            return super()._do_request(*args, timeout=ANSWER_S, **kwargs)

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # Ray's client logs each step
    return Client(address, headers={"Authorization": f"Bearer {token()}"} if token() else None)


@contextmanager
def _one_line(address: str, job: str = "") -> Iterator[None]:
    """Turn errors of the job server into ours; Lost for those that may pass."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise wrong_token(address) from error
    except (ConnectionError, requests.RequestException) as error:
        said = shortened((str(error).splitlines() or [type(error).__name__])[0].rstrip("."))
        raise Lost(f"No job server answers at {address}: {said}. {AT_ADDRESS}") from error
    except RuntimeError as error:
        status = re.search(r"status code (\d+)", str(error))
        if job and status and status[1] == "404":
            raise ClusterError(f"{address} knows no job {job}; segray jobs lists them.") from error
        said = (str(error).strip().splitlines() or ["no reason"])[-1]
        kind = Lost if status and status[1].startswith("5") else ClusterError
        raise kind(f"{address} cannot do that: {shortened(said)}") from error


def follow(client: Any, job: str, write: Tell, note: Tell = lambda text: None) -> int:
    """Write a job's output until it ends, and return its exit code. A lost connection is renewed; no line is repeated.

    Raises ClusterError if the head stays away for LOST_S, or the job could not start.
    """
    seen, lost_at = 0, None

    def new(text: str, start: int) -> int:
        """Write the unseen part of a text that begins at character `start` of the job's log; return where it ends."""
        nonlocal seen
        end = start + len(text)
        if end > seen:
            write(text[max(0, seen - start) :])
            seen = end
        return end

    while True:
        try:
            info = job_info(client, job)
            if info.status.is_terminal():
                new(logs(client, job), 0)
                return exit_code(info)
            lost_at = None
            asyncio.run(_tail(client, job, new))
        except Lost as error:
            if lost_at is None:
                lost_at = time.monotonic()
                note(f"{client.get_address()} does not answer; the job keeps running. Trying again …")
            if time.monotonic() - lost_at > LOST_S:
                raise ClusterError(f"{client.get_address()} is gone. When it is back: segray logs {job} -f") from error
        time.sleep(AGAIN_S)


async def _tail(client: Any, job: str, new: Callable[[str, int], int]) -> None:
    """Read the job's log from its start, until it ends, is quiet for QUIET_S, or the connection breaks."""
    import aiohttp

    at = 0
    lines = client.tail_job_logs(job)
    with suppress(aiohttp.ClientError, OSError, RuntimeError):  # the job server is asked for the meaning
        while (text := await asyncio.wait_for(anext(lines, None), QUIET_S)) is not None:
            at = new(text, at)


def exit_code(info: Any) -> int:
    """Return the job's exit code, 143 if it was stopped. Raises ClusterError if its command never ran."""
    if info.status == "STOPPED":
        return Terminated.exit_code
    code = info.driver_exit_code
    if code is None and info.status == "FAILED":
        said = (info.message or "").strip().splitlines() or ["no reason"]
        raise ClusterError(f"The job did not start or was lost: {shortened(said[-1])}")
    return 0 if code is None else code if code >= 0 else 128 - code


def job_info(client: Any, job: str) -> Any:
    with _one_line(client.get_address(), job):
        return client.get_job_info(job)


def jobs(client: Any) -> list[Any]:
    """List the jobs that were sent, newest first, without programs that joined by themselves."""
    with _one_line(client.get_address()):
        found = [info for info in client.list_jobs() if info.submission_id]
    return sorted(found, key=lambda info: info.start_time or 0, reverse=True)


def logs(client: Any, job: str) -> str:
    """Return all output of a job so far."""
    with _one_line(client.get_address(), job):
        return str(client.get_job_logs(job))


def stop(client: Any, job: str) -> bool:
    """Send SIGTERM, wait until it has ended, and say whether it was running."""
    with _one_line(client.get_address(), job):
        running = bool(client.stop_job(job))
    while not job_info(client, job).status.is_terminal():
        time.sleep(AGAIN_S)
    return running
