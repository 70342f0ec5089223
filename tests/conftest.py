"""What many tests share: a model bundle that costs nothing, a real S3 server, and a limit on what a test may take."""

import os

# Before torch is imported, here and in what tests start: several test processes share the processors.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tables are as wide as in a log, whatever terminal the tests are started from.
os.environ.pop("COLUMNS", None)

from pathlib import Path

import pytest
import torch

from segray.core.data.streets import LABEL_SPACE
from segray.core.models import build, bundle
from segray.core.models.info import BundleInfo
from segray.sections.training import ModelSection

SIZE = (32, 48)  # height, width that the tiny model sees


def pytest_addoption(parser):
    parser.addoption("--rounds", type=int, default=40, help="Of `pytest -m torture`.")


def _names_a_file(config):
    return any(".py" in word for word in config.invocation_params.args)


def pytest_configure(config):
    """Run a file that is named with its slow tests, which pyproject.toml leaves out."""
    if _names_a_file(config):
        config.option.markexpr = config.option.markexpr.removeprefix("not slow and ")


def pytest_xdist_auto_num_workers(config):
    """Let a test that is named by its file run here, and share a folder's tests among up to four processes."""
    return 0 if _names_a_file(config) else min(4, os.cpu_count() or 1)


OWN_RAY = ("test_cluster.py", "test_nodes.py", "test_submit.py")  # of tests/ray: the others share the session's


def pytest_xdist_make_scheduler(config, log):
    """Keep a file's tests in one process, and in one of theirs those that share the session's Ray, which begin first."""
    from xdist.scheduler import LoadScopeScheduling

    config.option.loadscopereorder = False  # else what has the most tests begins, not what takes longest

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return "ray" if "ray/" in file and not file.endswith(OWN_RAY) else file

    return ByFile(config, log)


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items):
    """Put what takes longest first, mark what shares the session's Ray as slow, and skip what needs a GPU without one."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/ray/"))
    for item in items:
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU that torch can use"))
        if "ray_session" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)  # when its fixtures are gone
def pytest_runtest_teardown(item, nextitem):
    """End the Ray that tests/ray shared when its last test is over: the others count on a process without one."""
    if item.nodeid.startswith("tests/ray/") and nextitem and not nextitem.nodeid.startswith("tests/ray/"):
        import ray

        ray.shutdown()


# A test that takes over SLOW_S carries the marker `slow`. What counts is the processor time of its process and of those
# that it starts, as machines are shared. It is named above SLOW_S and fails the run at twice that: the same test has
# taken 1.6 times as much on a busy machine. One that waits for long is named, and fails nothing.
SLOW_S, LONG_WAIT_S = 5.0, 15.0
_too_slow, _slow, _waiting = [], [], []


def _cpu_s():
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    before = _cpu_s()
    yield
    item.user_properties.append(("cpu_s", _cpu_s() - before))


def pytest_runtest_logreport(report):
    if report.when != "call" or {"slow", "long", "torture"} & set(report.keywords):
        return
    cpu_s = dict(report.user_properties).get("cpu_s", 0.0)
    line = f"{report.nodeid} took {cpu_s:.1f} s of processor time and {report.duration:.1f} s in all"
    if cpu_s > 2 * SLOW_S:
        _too_slow.append(line)
    elif cpu_s > SLOW_S:
        _slow.append(line)
    elif report.duration > LONG_WAIT_S:
        _waiting.append(line)


def pytest_sessionfinish(session):
    if _too_slow and session.exitstatus == pytest.ExitCode.OK and not hasattr(session.config, "workerinput"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if _too_slow or _slow or _waiting:
        terminalreporter.section("without the marker slow")
        for line in _too_slow:
            terminalreporter.write_line(f"{line}: this fails the run. Make it faster, or mark it slow.")
        for line in _slow + _waiting:
            terminalreporter.write_line(f"{line}. If this machine is not busy, make it faster, or mark it slow.")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory) -> Path:
    """A narrow Unet over resnet18 with random weights, for the classes of the drawn streets."""
    model = ModelSection(arch="unet", encoder="resnet18", options={"decoder_channels": [32, 16, 16, 8, 8]})
    return _saved(model, tmp_path_factory)


@pytest.fixture(scope="session")
def plain_bundle(tmp_path_factory) -> Path:
    """A U-Net without an encoder of smp, which is loaded in a tenth of the time."""
    return _saved(ModelSection(arch="unet-plain", options={"channels": 8}), tmp_path_factory)


def _saved(model, tmp_path_factory):
    torch.manual_seed(0)
    info = BundleInfo(model=model, label_space=LABEL_SPACE.to_dict(), input_size=SIZE)
    folder = tmp_path_factory.mktemp("bundle") / "best"
    bundle.save(folder, build(model, LABEL_SPACE.num_classes), info)
    return folder


_exports = {}


@pytest.fixture
def onnx_once(monkeypatch):
    """Export the weights of one bundle to ONNX once for all tests that ask for this: it takes seconds."""
    from segray.core.models import onnx_file

    made = onnx_file._made

    def once(whole, info, seen):
        key = (type(whole), info.model_id)
        if key not in _exports:
            _exports[key] = made(whole, info, seen)
        return _exports[key]

    monkeypatch.setattr(onnx_file, "_made", once)


def _server(scheme):
    import servers

    if scheme == "az" and not servers.azurite():
        pytest.skip("Azurite is not installed: npm install --prefix .venv/azurite azurite")
    with servers.RUNNING[scheme]() as url, servers.serving(scheme, url):
        yield f"{scheme}://{servers.BUCKET}/segray"


@pytest.fixture(scope="session")
def s3():
    """`s3://bucket/prefix` on a real server in this process; s3fs and subprocesses find it by the usual variables."""
    yield from _server("s3")


@pytest.fixture(scope="session")
def gs():
    """`gs://bucket/prefix`, as `s3`."""
    yield from _server("gs")


@pytest.fixture(scope="session")
def az():
    """`az://container/prefix`, as `s3`, on a server in a process of its own."""
    yield from _server("az")


@pytest.fixture(params=["s3", *(pytest.param(name, marks=pytest.mark.long) for name in ("gs", "az"))])
def bucket(request):
    """Each store in turn."""
    return request.getfixturevalue(request.param)


def _proxy(scheme):
    import servers
    from faultproxy import FaultProxy

    with FaultProxy(servers.url_of(scheme)) as proxy, servers.serving(scheme, proxy.url):
        yield proxy


@pytest.fixture
def s3_proxy(s3):
    """A FaultProxy before the server of `s3`; storage and subprocesses of this test go through it."""
    yield from _proxy("s3")


@pytest.fixture
def proxy(bucket):
    """A FaultProxy before the server of `bucket`."""
    yield from _proxy(bucket[:2])
