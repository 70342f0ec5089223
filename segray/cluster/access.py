"""Before and after joining a Ray: its token, a test that it answers, its refusals, and who sees which folder.

Token auth is always on, unless RAY_AUTH_MODE=disabled: without it, whoever reaches a Ray can run code there.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from segray.core.io import storage
from segray.errors import ClusterError, ConfigError, shortened

ANSWER_S = 5.0  # for a TCP connection; a running head answers in milliseconds
LOOK_S = 60.0  # for each node to look for some paths; it may have to start a process first
AT_HEAD = "Give the head's address, such as 10.0.0.1:6379, and open its ports to this machine."
TOKEN_HINT = (
    "Give the cluster's in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, or in ~/.ray/auth_token."
)


def token() -> str | None:
    """Return Ray's token, found as Ray does: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token; None for none."""
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return given
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or token_file()).expanduser()
    return path.read_text().strip() or None if path.is_file() else None


def token_file() -> Path:
    return Path.home() / ".ray" / "auth_token"


def keep_token() -> None:
    """Write a token for a Ray of our own if there is none yet. Only its owner can read the file, unlike Ray's own."""
    path = token_file()
    if path.is_file():
        if path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o077:
            path.chmod(0o600)
        return
    if token() is not None or os.environ.get("RAY_AUTH_MODE") == "disabled":
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent)  # with mode 0600
    with os.fdopen(handle, "w") as file:
        file.write(secrets.token_hex(32))
    with suppress(FileExistsError):  # if two processes start at once, one of them makes it
        os.link(beside, path)
    Path(beside).unlink()


def check_answers(address: str, next_step: str) -> None:
    """Raise ClusterError if nothing listens at HOST:PORT or scheme://HOST:PORT; Ray itself would try for a minute."""
    found = re.fullmatch(r"(?:\w+://)?\[?([^/]+?)\]?:(\d+)/?", address)
    if found is None:
        raise ClusterError(f"{address} is not HOST:PORT. {next_step}")
    try:
        socket.create_connection((found[1], int(found[2])), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"No Ray answers at {address}: {storage.reason(error)}. {next_step}") from error


def check_join(address: str) -> None:
    """Raise ClusterError for an address at which no driver can join."""
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"{address} takes jobs, and no drivers: send it this command with segray submit, or give HEAD:6379."
        )
    if address == "auto":
        return
    check_answers(address, AT_HEAD)
    if os.environ.get("RAY_AUTH_MODE") != "disabled" and "://" not in address and _is_open(address):
        raise ClusterError(
            f"{address} asks for no token, and a process that has one cannot work with it. Start the cluster with "
            "token auth, which is Ray's default, or set RAY_AUTH_MODE=disabled here, too: whoever reaches it can run "
            "code there."
        )


def _is_open(address: str) -> bool:
    """Say whether the Ray there answers without a token."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")(b"", timeout=ANSWER_S)
        except grpc.RpcError:  # it asks for one; or for TLS
            return False
    return True


def check_folder(path: str, setting: str) -> None:
    """Raise ConfigError for a folder that cannot be created or written to."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ConfigError(f"{setting} {path} cannot be used: {storage.reason(error)}. Give another folder.") from error


def refusal(error: BaseException, address: str) -> ClusterError:
    """Put into one line what Ray says when it cannot be joined."""
    text, below = str(error), error.__cause__ or error.__context__  # "Failed to connect"; the cause says why
    why = f"{text} {below}"
    if "Version mismatch" in text:
        ray, python = (re.findall(rf"{what}: (\S+)", text) for what in ("Ray", "Python"))
        return ClusterError(
            f"{address} runs Ray {ray[0]} on Python {python[0]}, and here are Ray {ray[1]} and Python {python[1]}. "
            "Use the cluster's versions, or send the command there with segray submit --python PATH."
        )
    if "authentication token" in why.lower():
        return wrong_token(address)
    return ClusterError(f"{address} cannot be joined: {_first_sentence(error)}. {AT_HEAD}")


def not_started(error: BaseException) -> ClusterError:
    """Say in one line why a Ray of our own did not start."""
    if isinstance(error, ValueError):  # a setting that Ray refuses
        return ClusterError(f"Ray did not start on this machine: {_first_sentence(error)}.")
    logs = f"{os.environ.get('RAY_TMPDIR', '/tmp')}/ray/session_latest/logs"
    return ClusterError(
        f"Ray did not start on this machine: {_first_sentence(error)}. Run the command again when the machine is less "
        f"busy; Ray's logs are in {logs}."
    )


def _first_sentence(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return shortened(re.split(r"\.(?=\s|$)", text)[0])


def wrong_token(address: str) -> ClusterError:
    said = "refuses this token" if token() else "wants a token, and there is none here"
    return ClusterError(f"{address} {said}. {TOKEN_HINT}")


def check_places(read: Iterable[str], written: Iterable[str] = ()) -> None:
    """Check that every node with CPUs sees these local paths. Raises ClusterError that names the path and the node.

    written: files that this process has just written. Their time stamps are compared, so that a file of the same name
    on a node's own disk is not taken for them.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    local = [path for path in read if not storage.in_bucket(path) and storage.exists(path)]
    stamps = {path: storage.stat(path).stamp for path in written if not storage.in_bucket(path)}
    for path in stamps:
        if "/runtime_resources/working_dir_files/" in path:
            raise ClusterError(f"{path} would go with the job's own folder. Give an absolute path, or a bucket.")
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if len(nodes) < 2:
        return
    look = ray.remote(num_cpus=0)(_unseen)
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[look.options(scheduling_strategy=there).remote(local, stamps)] = node["NodeManagerAddress"]
    for answer in ray.wait(list(asked), num_returns=len(asked), timeout=LOOK_S)[0]:
        try:
            unseen = ray.get(answer)
        except ray.exceptions.RayError:  # the run itself copes with a node that goes away
            continue
        if unseen:
            raise ClusterError(
                f"{unseen[0]} is not seen on node {asked[answer]}. Give a folder that all nodes mount, or a bucket."
            )


def _unseen(read: list[str], stamps: dict[str, str]) -> list[str]:
    """Return the paths that do not exist, or have another time stamp."""

    def stamp(path: str) -> Any:
        return storage.stat(path).stamp if storage.exists(path) else None

    return [path for path in read if not storage.exists(path)] + [p for p, s in stamps.items() if stamp(p) != s]
