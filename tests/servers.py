"""Servers of object stores that run here: S3 by moto and Google's by an emulator in this process, Azure's by Azurite.

with running("gs", tmp_path) as url, serving("gs", url):
    storage.create("gs://frames/a", b"")
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from io import BytesIO
from urllib.parse import parse_qs, unquote, urlsplit

import boto3
import s3fs
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

BUCKET = "frames"
ACCOUNT = "devstoreaccount1"
# Azurite's own, which stands in its documentation.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Quick(Storage):
    def _write_config_to_file(self):
        """The emulator writes what it knows of all objects at each change."""


class Handler(RequestHandler):
    """The emulator's, with what it lacks of the API: ifGenerationMatch, listing by pages, and many connections."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    one_at_a_time = threading.RLock()

    def do_POST(self):
        self._checked(super().do_POST)

    def do_DELETE(self):
        self._checked(super().do_DELETE)

    def do_GET(self):
        self._checked(super().do_GET)

    def _checked(self, do):
        connection, self.rfile = self.rfile, BytesIO(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        url = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        _, _, rest = url.path.partition("/b/")
        bucket, _, key = rest.partition("/o")
        with self.one_at_a_time:
            if bucket not in self.storage.buckets:
                told = {"message": "The specified bucket does not exist.", "errors": [{"reason": "notFound"}]}
                self._answer(404, {"error": told})
            elif self.command == "GET" and not key:
                self._list(bucket, asked)
            elif asked.get("ifGenerationMatch", self._generation(bucket, key, asked)) != self._generation(
                bucket, key, asked
            ):
                self._answer(412, {})
            else:
                do()
        self.rfile = connection

    def _generation(self, bucket, key, asked):
        found = self.storage.objects.get(bucket, {}).get(unquote(key[1:]) or asked.get("name"), {})
        return found.get("generation", "0" if self.command == "POST" else asked.get("ifGenerationMatch"))

    def _list(self, bucket, asked):
        prefix, items, prefixes = asked.get("prefix", ""), [], set()
        for key in sorted(self.storage.objects.get(bucket, {}), key=str.encode):
            if key.startswith(prefix) and key > asked.get("pageToken", ""):
                if "delimiter" in asked and "/" in key[len(prefix) :]:
                    prefixes.add(prefix + key[len(prefix) :].partition("/")[0] + "/")
                elif len(items) < int(asked.get("maxResults", 1000)):
                    items.append(self.storage.objects[bucket][key])
                else:
                    return self._answer(200, {"items": items, "nextPageToken": items[-1]["name"]})
        return self._answer(200, {"items": items, "prefixes": sorted(prefixes)})

    def _answer(self, status, told):
        data = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def google():
    for name in ("gcp_storage_emulator", "api.object"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    storage = Quick(use_memory_fs=True)
    buckets.create_bucket(BUCKET, storage)
    storage.buckets[BUCKET]["softDeletePolicy"] = {"retentionDurationSeconds": "0"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, storage))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@contextmanager
def amazon():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with serving("s3", url):
        boto3.client("s3").create_bucket(Bucket=BUCKET)
    yield url
    server.stop()


def azurite():
    """Find the program, None where it is not installed."""
    return shutil.which("azurite-blob", path=f"{sys.prefix}/azurite/node_modules/.bin:{os.environ['PATH']}")


@contextmanager
def azure():
    from azure.storage.blob import BlobServiceClient

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [azurite(), "--blobPort", str(port), "--silent", "--inMemoryPersistence", "--disableTelemetry"]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen([*command, "--skipApiVersionCheck"], cwd=folder, stdout=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}"
            end = time.monotonic() + 60
            while server.poll() is None and time.monotonic() < end:
                with socket.socket() as asked:
                    if asked.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            with BlobServiceClient.from_connection_string(
                environment("az", url)["AZURE_STORAGE_CONNECTION_STRING"]
            ) as service:
                service.create_container(BUCKET)
            yield url
        finally:
            server.kill()
            server.wait()


RUNNING = {"s3": amazon, "gs": google, "az": azure}


def environment(scheme, url):
    """What libraries find a server by."""
    if scheme == "s3":
        keys = {"AWS_ACCESS_KEY_ID": "canary-key", "AWS_SECRET_ACCESS_KEY": "canary-secret"}
        # One that is set outside would come before the other.
        return {**keys, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": url, "AWS_ENDPOINT_URL_S3": url}
    if scheme == "gs":
        return {"STORAGE_EMULATOR_HOST": url}
    account = f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={url}/{ACCOUNT}"
    return {"AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;{account}"}


def url_of(scheme):
    """The server that the environment names."""
    if scheme == "az":
        return os.environ["AZURE_STORAGE_CONNECTION_STRING"].partition("BlobEndpoint=")[2].removesuffix(f"/{ACCOUNT}")
    return os.environ["AWS_ENDPOINT_URL_S3" if scheme == "s3" else "STORAGE_EMULATOR_HOST"]


@contextmanager
def serving(scheme, url):
    """Let storage, and what this process starts, find the server."""
    settings = environment(scheme, url)
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    s3fs.S3FileSystem.clear_instance_cache()  # which knows file systems by their arguments only
    yield settings
    for key, value in before.items():
        os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)
    s3fs.S3FileSystem.clear_instance_cache()
