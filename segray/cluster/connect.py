"""The Ray side: connect or start, samples in its store, the Worker of the training loop, and Ray's errors as ours.

Ray is told to be quiet: progress is printed by segray, and full logs stay in Ray's session folder.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import segray
from segray.cluster.access import check_folder, check_join, keep_token, not_started, refusal
from segray.cluster.resources import Resources, WorkerShape, least
from segray.cluster.signals import heard, held
from segray.cluster.telemetry import Gauges, event
from segray.core.formatting import counted
from segray.core.io import storage
from segray.core.training.checkpoint import EpochRow, plain
from segray.errors import ClusterError, SegrayError, StorageError, shortened
from segray.sections.labelling import ClusterSection

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # Ray's default of 2 s is noticeable in short epochs
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output prints a box and a path even when told to be silent
    "RAY_ENABLE_AUTO_CONNECT": "0",  # otherwise a thread that outlives our Ray, as after Ctrl-C, starts another one
    "RAY_worker_maximum_startup_concurrency": "16",  # Ray warns about four times as many processes
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
# With one of these, Ray unpickles data stored in a Parquet file: whoever wrote the file can run code here.
UNSAFE = ("RAY_DATA_AUTOLOAD_", "RAY_DATA_ARROW_EXTENSION_SERIALIZATION_CLOUDPICKLE")
LOCAL = "local"  # the address that makes ray.init start a Ray of our own
STARTS = 2  # attempts to start one: on a busy machine the first may take longer than Ray waits
RAY_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # is set in the environment of a job's command
SCALE_POLL_S = 2.0  # between checks for a node that an autoscaler starts
NODES_POLL_S = 10.0  # between checks for nodes that were lost
READERS, READER_S = ("iter_threaded", "Prefetcher"), 5.0  # Ray Data's names for them
# Ray Train's folder in a run's, and files in it: what names the device, and how far the epoch is.
RUN, STARTED, STEPS = ".ray", "device.txt", "steps.json"
STEPS_EVERY_S = {False: 1.0, True: 10.0}  # by whether the run is in a bucket, where each time is a request

log = logging.getLogger("segray")


@contextmanager
def connected(config: ClusterSection, processes: int | None = None, *, sweeps: bool = False) -> Iterator[Resources]:
    """Yield a Ray to work on: the one that this process has, else the address given, else a Ray of our own.

    A Ray of our own ends with the block, also after Ctrl-C; a cluster that was joined keeps running.
    processes: how many it must hold, at once or within `cluster.wait`; raises ClusterError if it does not.
    sweeps: training runs will be stopped before their end; Ray's processes then start more slowly.
    """
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    if _address(config) != LOCAL:
        # A local Ray turns token auth on by itself; when told to, it fails if there is no token yet.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "5")  # otherwise Ray tries a wrong token for 20 s
    else:
        # A process of each training run that waits for its node to be drained, which nobody does here.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    if unsafe := [key for key in os.environ if key.startswith(UNSAFE)]:
        raise ClusterError(f"{unsafe[0]} is set, which lets a Parquet file run code; unset it.")
    with held():
        import ray  # it reads some of these variables on import
    if ray.is_initialized():
        yield holding(config, processes)
        return
    # A thread starts Ray: in the main one, Ray would replace our handler of SIGTERM with its own. The thread lives as
    # long as this block, because Linux ends Ray's processes with the thread that started them.
    with ThreadPoolExecutor(1) as starter:
        try:
            with held():
                _start_or_join(config, sweeps, starter)
            hush()
            yield holding(config, processes)
        finally:
            with held():  # after an interrupted shutdown, the rest of Ray waits for a quarter of a minute
                _end_readers()
                ray.shutdown()


def _end_readers() -> None:
    """Wait for Ray Data's threads that read ahead.

    A thread that drops its references after the shutdown ends this process with exit code 1 and no message, which
    happened now and then to a run that stopped at an error.
    """
    for name in READERS:
        for thread in threading.enumerate():
            if thread.name == name:
                thread.join(READER_S)


def _address(config: ClusterSection) -> str:
    # Never call ray.init() without an address: it joins whatever Ray someone has started on this machine.
    return config.address or os.environ.get("RAY_ADDRESS") or LOCAL


def is_named(config: ClusterSection) -> bool:
    """Say whether a cluster is to be joined, or this process already works in one."""
    ray: Any = sys.modules.get("ray")
    return _address(config) != LOCAL or bool(ray and ray.is_initialized())


def check_address(config: ClusterSection) -> None:
    """Raise ClusterError if no Ray answers at the address that `connected` will join."""
    ray: Any = sys.modules.get("ray")  # connected() imports it, after it has set the variables that Ray reads then
    if (address := _address(config)) != LOCAL and not (ray and ray.is_initialized()):
        check_join(address)


def _start_or_join(config: ClusterSection, sweeps: bool, starter: Executor) -> None:
    import ray

    address = _address(config)
    more: dict[str, Any] = {}
    if address == LOCAL:
        keep_token()
        if sweeps:
            more["runtime_env"] = {"worker_process_setup_hook": _know_address}
        if config.object_store_gib:
            more["object_store_memory"] = int(config.object_store_gib * 2**30)
        if config.spill_dir:
            check_folder(config.spill_dir, "cluster.spill_dir")
            more["object_spilling_directory"] = config.spill_dir
    else:
        check_join(address)
        if RAY_JOB not in os.environ:  # a job brings its own; the workers of a driver get the code that the driver runs
            more["runtime_env"] = {"py_modules": [str(Path(segray.__file__).parent)]}
    # The dashboard is on, on loopback: without it, Ray cannot see that a trial was stopped, and keeps its CPUs.
    more |= {"log_to_driver": False, "logging_level": logging.ERROR, "job_config": _job()}
    with _silent_stderr():
        for left in reversed(range(STARTS)):
            try:
                starter.submit(ray.init, address, **more).result()
                return
            except Exception as error:  # Ray also raises Exception itself, as when a node starts slowly
                if address != LOCAL:
                    raise refusal(error, address) from error
                ray.shutdown()
                if not left or isinstance(error, ValueError):
                    raise not_started(error) from error


def holding(config: ClusterSection, processes: int | None, without: Container[str] = ()) -> Resources:
    """Return what the cluster has, but for the nodes with these ids.

    Raises ClusterError if it cannot hold the processes within `cluster.wait`.
    """
    has = resources(without)
    if processes is None:
        return has
    if config.wait and not least(config, processes, has).fits(has):
        has = _scaled(config, processes, has, without)
    least(config, processes, has).check(has)
    return has


def _scaled(config: ClusterSection, processes: int, has: Resources, without: Container[str]) -> Resources:
    """Ask an autoscaler for nodes that hold the processes, and wait. Return what the cluster has then, or at timeout.

    The request is made again when a first GPU appears, as each process then takes one.
    """
    from ray.autoscaler.sdk import request_resources

    end, asked = time.monotonic() + config.wait, None
    try:
        while not (wanted := least(config, processes, has)).fits(has) and (left_s := end - time.monotonic()) > 0:
            if wanted != asked:
                there = f"{counted(has.cpus, 'CPU')} and {counted(has.gpus, 'GPU')} are there"
                log.warning(f"Waiting up to {left_s / 60:.3g} min for nodes: {wanted} asked, {there}.")
                request_resources(bundles=[{"CPU": wanted.cpus, "GPU": wanted.gpus}] * wanted.count)
                asked = wanted
            time.sleep(SCALE_POLL_S)
            has = resources(without)
    finally:
        request_resources(bundles=[])  # otherwise the request holds the nodes for ever
    return has


def _know_address() -> None:
    """Tell each process of a Ray of our own its address, by which Ray Train looks for the driver of a stopped run.

    Without it, Ray Train finds no driver on a machine with several Rays, and keeps the run's CPUs and GPUs.
    """
    import ray

    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


def _job() -> Any:
    """Return the job config that adds the fields of segray.cluster.telemetry to log lines of Ray's processes.

    RAY_LOGGING_CONFIG_ENCODING=JSON writes each line as a JSON object instead, also those of this process on stderr.
    """
    import ray
    from ray.job_config import JobConfig

    job = JobConfig()
    job.set_py_logging_config(ray.LoggingConfig())
    return job


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Silence stderr, on which Ray's C++ core says that its log level was set. Errors are raised anyway."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    heard.append(kept)
    try:
        yield
    finally:
        heard.remove(kept)
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def hush() -> None:
    """Keep Ray's loggers and deprecation notes out of the terminal; its log files are unchanged."""
    warnings.filterwarnings("ignore", module=r"(ray|segray)\..*", category=DeprecationWarning)
    for name in ("ray.data", "ray.train", "ray.tune", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Ray prints a line for each process that dies, even with log_to_driver=False, and has no public switch for that.
    printer: Any = sys.modules.get("ray._private.worker")
    if hasattr(printer, "_worker_logs_enabled"):
        printer._worker_logs_enabled = False


def resources(without: Container[str] = ()) -> Resources:
    """Sum up the nodes that are there, but for those with these ids."""
    import ray

    return resources_of([node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in without])


def nodes_for(worker: WorkerShape) -> set[str]:
    """Return the ids of the nodes that can hold such a process."""
    import ray

    alive = (node for node in ray.nodes() if node["Alive"])
    return {node["NodeID"] for node in alive if resources_of([node["Resources"]]).fits(worker.cpus, worker.gpus)}


def resources_of(nodes: Sequence[Mapping[str, float]]) -> Resources:
    """Sum up nodes, as Ray lists the resources of each. A node without CPUs, as some heads are, holds no worker."""
    shapes = tuple((int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes)
    stores = [int(node.get("object_store_memory", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    return Resources(sum(c for c, _ in shapes), sum(g for _, g in shapes), min(stores, default=0), shapes)


class RayWorker:
    """The loop's Worker inside a Ray Train process of the run that writes to `out`."""

    def __init__(self, out: str) -> None:
        import ray.train
        import ray.train.torch

        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.out, self.gauges = out, Gauges(out) if self.rank == 0 else None
        self._told_s = -math.inf

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        import ray.train.torch

        from segray.core.training.workers import DDP

        return ray.train.torch.prepare_model(model, parallel_strategy_kwargs=DDP)

    def started(self, device: str) -> None:
        if self.rank == 0:
            storage.replace(storage.join(self.out, RUN, STARTED), device.encode())

    def at(self, phase: str, done: int, of: int) -> None:
        now_s = time.monotonic()
        if self.rank == 0 and now_s - self._told_s >= STEPS_EVERY_S[storage.in_bucket(self.out)]:
            self._told_s = now_s
            with suppress(StorageError):  # the next one tells more
                storage.replace(storage.join(self.out, RUN, STEPS), json.dumps([phase, done, of]).encode())

    def report(self, row: EpochRow) -> None:
        import ray.train

        if self.gauges:
            self.gauges.set_epoch(row)
            event("epoch ended", self.out, **plain(row))
        ray.train.report(dict(row))


def ray_storage(out: str) -> dict[str, Any]:
    """Return a run's folder as Ray Train and Tune take it, as arguments of their RunConfig.

    They parse s3:// as a URI, so a space or an ü is encoded; on other stores they are given a file system besides.

    >>> ray_storage("s3://runs/Straße 1"), ray_storage("/runs/Straße 1")
    ({'storage_path': 's3://runs/Stra%C3%9Fe%201'}, {'storage_path': '/runs/Straße 1'})
    """
    if not storage.in_bucket(out):
        return {"storage_path": out}
    scheme, path = out[:2], out[5:]
    if scheme == "s3":
        return {"storage_path": f"s3://{quote(path)}"}
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    files = fsspec.filesystem(scheme, use_listings_cache=False)
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(files))}


def wait_for(work: Callable[[], T], polls: Sequence[Callable[[], None]], every_s: float = 0.3) -> T:
    """Run `work` in a thread, and `polls` in this one until it ends, so that Ctrl-C reaches the caller at once.

    Ray installs handlers for Ctrl-C only if its own code runs in the main thread.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(every_s)
        for poll in polls:
            poll()
    for poll in polls:
        poll()
    if failures:
        raise explain(failures[0]) from failures[0]
    return results[0]


def lost_nodes(worker: WorkerShape) -> Callable[[], None]:
    """Return a poll that warns when the nodes that are left hold fewer processes than the run has: Ray waits then."""
    from ray.exceptions import RayError

    lacking, next_s = False, 0.0

    def poll() -> None:
        nonlocal lacking, next_s
        if (now := time.monotonic()) < next_s:
            return
        next_s = now + NODES_POLL_S
        try:
            room = resources().fits(worker.cpus, worker.gpus)
        except RayError:  # the head does not answer; training ends with its own error if it stays away
            return
        if room < worker.count and not lacking:
            fewer = f" With --workers {room} the same command goes on from its last checkpoint." * (room > 0)
            log.warning(f"Nodes were lost: there is room for {room} of {worker}, and training waits for more.{fewer}")
        lacking = room < worker.count

    return poll


class NeverUp(ClusterError):
    """Several processes in a row ended before they were up. node: the address of the last one's."""

    def __init__(self, text: str, node: str) -> None:
        super().__init__(text)
        self.node = node


def explain(error: BaseException) -> SegrayError:
    """Return the SegrayError at the bottom of Ray's wrappers, or one that puts Ray's message into one line."""
    if ours := own_error(error):
        return ours
    bottom = _wrapped(error)[-1]
    text = str(bottom).strip().splitlines() or [""]
    return ClusterError(f"{type(bottom).__name__}: {shortened(text[-1])}")


def own_error(error: BaseException) -> SegrayError | None:
    """Return the SegrayError at the bottom of Ray's wrappers, if there is one.

    A RayTaskError is also an instance of its cause's class, with a traceback as its text. An error that has a cause is
    therefore not the bottom.
    """
    return next((one for one in reversed(_wrapped(error)) if isinstance(one, SegrayError)), None)


def _wrapped(error: BaseException) -> list[BaseException]:
    """List the error and all that it wraps, the innermost last."""
    seen: list[BaseException] = []
    found: Sequence[BaseException] = [error]
    while found:
        seen += found
        found = [inner for one in found for inner in _inner(one) if inner not in seen]
    return seen


def _inner(error: BaseException) -> list[BaseException]:
    failures = getattr(error, "worker_failures", {}).values()
    named = (getattr(error, name, None) for name in ("cause", "_base_exc", "controller_failure", "__cause__"))
    return [inner for inner in (*failures, *named) if isinstance(inner, BaseException)]
