"""Downloads from a real server on this machine, which breaks off when it is told to."""

import hashlib
import http.server
import io
import tarfile
import threading
import zipfile

import pytest
from PIL import Image

from segray.core.data import download
from segray.core.data.download import Source, get
from segray.errors import ConfigError, DataError


@pytest.fixture
def archive():
    """A zip as GitHub makes it, and the digest of its folder."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for i in range(3):
            png = io.BytesIO()
            Image.effect_noise((64, 64), 40 + i).save(png, format="PNG")
            file.writestr(f"repo/Set/train/{i}.png", png.getvalue())
        file.writestr("repo/README.md", "not wanted")
    return out.getvalue()


class Server(http.server.BaseHTTPRequestHandler):
    data, cut, ranges, asked, chunked = b"", None, True, [], False
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        asked = self.headers.get("Range")
        Server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and Server.ranges else 0
        if start >= len(Server.data):
            self.send_error(416)
            return
        self.close_connection = True
        if Server.chunked:  # as GitHub sends archives: without a length
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            end, Server.cut = Server.cut or len(Server.data), None
            whole = end == len(Server.data)
            self.wfile.write(b"%x\r\n%b%b" % (len(Server.data), Server.data[:end], b"\r\n0\r\n\r\n" * whole))
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(Server.data) - start))
        self.end_headers()
        end, Server.cut = Server.cut or len(Server.data), None
        self.wfile.write(Server.data[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def url(archive, monkeypatch, tmp_path):
    Server.data, Server.cut, Server.ranges, Server.asked, Server.chunked = archive, None, True, [], False
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        file.extractall(tmp_path / "known")
    address = f"http://127.0.0.1:{server.server_port}/set.zip"
    source = Source(address, "drawn", "repo/Set", digest=download.digest_of(tmp_path / "known" / "repo" / "Set"))
    monkeypatch.setitem(download.SOURCES, "drawn", source)
    yield address
    server.shutdown()


def files(root):
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.*"))


def test_a_set_is_fetched_checked_and_unpacked(url, tmp_path):
    seen = []
    get("drawn", tmp_path / "new" / "set", progress=lambda new, total: seen.append((new, total)))
    assert files(tmp_path / "new" / "set") == ["train/0.png", "train/1.png", "train/2.png"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["set"]
    assert sum(new for new, _ in seen) == seen[-1][1] == len(Server.data)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_broke_goes_on_where_the_server_can(url, tmp_path, ranges):
    Server.cut, Server.ranges = 5000, ranges
    with pytest.raises(
        DataError, match=r"broke off at 5000 of \d+ bytes\. The same command resumes\.|cannot be fetched"
    ):
        get("drawn", tmp_path / "set")
    assert not (tmp_path / "set").exists()
    get("drawn", tmp_path / "set")
    assert Server.asked == [None, "bytes=5000-"]
    assert len(files(tmp_path / "set")) == 3


def test_a_download_without_a_length_that_broke_starts_over(url, tmp_path):
    Server.cut, Server.chunked = 5000, True
    with pytest.raises(DataError, match=r"cannot be fetched: .*The same command resumes"):
        get("drawn", tmp_path / "set")
    get("drawn", tmp_path / "set")
    assert len(files(tmp_path / "set")) == 3


def test_an_archive_that_leads_outside_is_refused(url, tmp_path):
    (tmp_path / "evil.tar").parent.mkdir(exist_ok=True)
    with tarfile.open(tmp_path / "evil.tar", "w") as file:
        file.addfile(tarfile.TarInfo("../outside.png"), io.BytesIO())
    with pytest.raises(DataError, match=r"evil\.tar is damaged, or no safe archive\. The download was deleted; fetch"):
        get("drawn", tmp_path / "set", str(tmp_path / "evil.tar"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.tar", "known"]


def test_a_damaged_archive_is_not_kept(url, tmp_path):
    Server.data = Server.data[:5000]
    with pytest.raises(DataError, match=r"set\.zip is damaged"):
        get("drawn", tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["known"]


def test_a_whole_file_that_was_not_unpacked_is_not_fetched_again(url, tmp_path):
    (tmp_path / ".set.drawn.part").write_bytes(Server.data)
    get("drawn", tmp_path / "set")
    assert len(files(tmp_path / "set")) == 3


@pytest.mark.parametrize("checksum", ["md5", "digest"])
def test_another_file_is_refused_and_deleted(url, tmp_path, monkeypatch, checksum):
    wrong = {"md5": hashlib.md5(b"").hexdigest()} if checksum == "md5" else {"digest": "0" * 64}
    monkeypatch.setitem(download.SOURCES, "drawn", Source(url, "", "repo/Set", **wrong))
    with pytest.raises(
        DataError, match=r"set\.zip is not what was published \(its checksum differs\)\. The download was deleted; try"
    ):
        get("drawn", tmp_path / "set")
    assert [path.name for path in tmp_path.iterdir()] == ["known"]


@pytest.mark.parametrize("write", [str, lambda path: path.as_uri()])
def test_a_local_archive_will_do_and_stays(archive, url, tmp_path, write):
    (tmp_path / "mine.zip").write_bytes(archive)
    get("drawn", tmp_path / "set", write(tmp_path / "mine.zip"))
    assert len(files(tmp_path / "set")) == 3
    assert (tmp_path / "mine.zip").exists()
    assert Server.asked == []


def test_bad_requests_are_one_line(url, tmp_path):
    with pytest.raises(ConfigError, match=r"^Data set 'camvit' is unknown\. Did you mean camvid"):
        get("camvit", tmp_path / "x")
    with pytest.raises(DataError, match=r"known exists; give a folder that does not\.$"):
        get("drawn", tmp_path / "known")
    with pytest.raises(DataError, match=r"^http://127\.0\.0\.1:1/ cannot be fetched: .*refused"):
        get("drawn", tmp_path / "x", "http://127.0.0.1:1/")
