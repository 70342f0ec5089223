"""A proxy in front of an S3, Google or Azure server that breaks some of what passes: takes a URL, gives one that is less reliable.

    with FaultProxy("http://127.0.0.1:5000", seed=1) as proxy:  # AWS_ENDPOINT_URL=proxy.url
        proxy.set(lost=0.1, http_503=0.2)  # shares of the requests; what is not named is left out
        proxy.set(reset=1, most=2)  # the first two requests
        ...
        proxy.count["requests"], proxy.count["lost"]

Faults, of which at most one strikes a request:
    lost        a PUT or POST is carried out, and its answer never sent
    reset       closed before it is carried out; down is the same
    hang        silent for hang_s, then closed
    http_403, code_403 (no words), expired (S3's 400), conflict (409, none of Azure's), http_500, http_503, slow_down    that answer, in the store's words
    cut         half of a GET's body, under its full length
    flip        one bit of an object that a GET gives; not of a listing, which has no checksum
and besides: delay (late by up to delay_s) and ignore_if_none_match (the condition is taken out).
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
from collections import Counter

import aiohttp
from aiohttp import web
from yarl import URL

ANSWERS = {
    "http_403": (403, "AccessDenied", "Access Denied"),
    "code_403": (403, "AccessDenied", ""),  # as Ceph's
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "conflict": (409, "ConditionalRequestConflict", "A conflicting operation is in progress. Please retry."),
    "http_500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "http_503": (503, "ServiceUnavailable", "Service is unable to handle request."),
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
}
# What the others say for S3's words.
GOOGLE = {"AccessDenied": "forbidden"}
AZURE = {"AccessDenied": "AuthorizationPermissionMismatch", "SlowDown": "ServerBusy"}
FREE = "&ifGenerationMatch=0"
BESIDES = ("delay", "ignore_if_none_match")  # strike together with others
METHODS = {"lost": ("PUT", "POST"), "cut": ("GET",), "flip": ("GET",)}  # the others strike any request
FAULTS = {*ANSWERS, *METHODS, *BESIDES, "down", "hang", "reset"}
HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}


def _is_google(request: web.BaseRequest) -> bool:
    return request.path.startswith(("/storage/", "/upload/"))


def _is_azure(request: web.BaseRequest) -> bool:
    return request.path.startswith("/devstoreaccount1/")


def _is_object(request: web.BaseRequest) -> bool:
    """Say whether a GET asks for an object's content."""
    if _is_google(request):
        return request.query.get("alt") == "media"
    return "list-type" not in request.query and "comp" not in request.query


class FaultProxy:
    """Runs in a thread of its own between __enter__ and __exit__; everything here may be called from any thread."""

    def __init__(self, target_url: str, seed: int = 0, hang_s: float = 30.0, delay_s: float = 0.2) -> None:
        self.target_url, self.hang_s, self.delay_s = target_url.rstrip("/"), hang_s, delay_s
        self.count: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._rates: dict[str, float] = {}
        self._most = math.inf
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def set(self, most: float = math.inf, **rates: float) -> None:
        """These faults from now on, at most so many of each, and no others; the counts start anew."""
        assert FAULTS.issuperset(rates), FAULTS.symmetric_difference(rates)
        self._most, self._rates, self.count = most, rates, Counter()

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._do(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        # auto_decompress: a body passes as it is. limit: as many as the clients want, and a hanging one blocks none.
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
        )
        server = web.Server(self._handle, auto_decompress=False, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    def _strikes(self, fault: str) -> bool:
        strikes = self.count[fault] < self._most and self._random.random() < self._rates.get(fault, 0)
        if strikes:
            self.count[fault] += 1
        return strikes

    def _fault(self, request: web.BaseRequest) -> str | None:
        for name in self._rates:
            other = request.method not in METHODS.get(name, (request.method,))
            none = (name == "flip" and not _is_object(request)) or (name == "conflict" and _is_azure(request))
            if other or name in BESIDES or none:
                continue
            if self._strikes(name):
                return name
        return None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        fault = self._fault(request)
        self.count["requests"] += 1
        self.count[request.method] += 1
        if fault in ("down", "reset"):
            return self._hang_up(request)
        if fault == "hang":
            await asyncio.sleep(self.hang_s)
            return self._hang_up(request)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        body = await request.content.read()  # request.read() stops at 1 MB
        if self._strikes("delay"):
            await asyncio.sleep(self._random.uniform(0, self.delay_s))
        if fault in ANSWERS:
            (status, code, message), headers = ANSWERS[fault], {}
            if _is_google(request):
                told = {"code": status, "message": message, "errors": [{"reason": GOOGLE.get(code, code)}]}
                return web.json_response({"error": told}, status=status)
            if _is_azure(request):
                code = AZURE.get(code, code)
                message, headers = message or code, {"x-ms-error-code": code}
            text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
            return web.Response(status=status, text=text, content_type="application/xml", headers=headers)
        try:
            status, headers, answer = await self._forward(request, body)
        except aiohttp.ClientError:  # the server behind is gone
            return self._hang_up(request)
        if fault == "lost":
            return self._hang_up(request)
        return await self._answer(request, status, headers, answer, fault)

    async def _forward(self, request: web.BaseRequest, body: bytes):
        headers = request.headers.copy()
        for name in HOP | {"content-length", "expect"}:
            headers.popall(name, None)
        path = request.raw_path
        if ("If-None-Match" in headers or FREE in path) and self._strikes("ignore_if_none_match"):
            headers.popall("If-None-Match", None)
            path = path.replace(FREE, "")
        url = URL(self.target_url + path, encoded=True)
        # data=None for an empty GET; an empty PUT says its length.
        data = body if body or request.method in ("PUT", "POST") else None
        async with self._session.request(request.method, url, headers=headers, data=data, allow_redirects=False) as got:
            return got.status, got.headers.copy(), await got.read()

    async def _answer(self, request, status, headers, answer: bytes, fault: str | None) -> web.StreamResponse:
        for name in HOP:
            headers.popall(name, None)
        if request.method != "HEAD":
            headers["Content-Length"] = str(len(answer))
        if fault == "flip" and answer:
            at = self._random.randrange(len(answer))
            answer = answer[:at] + bytes([answer[at] ^ 1]) + answer[at + 1 :]
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        if request.method == "HEAD" or status in (204, 304):
            return response
        if fault == "cut" and answer:
            await response.write(answer[: len(answer) // 2])
            return self._hang_up(request, response)
        await response.write(answer)
        await response.write_eof()
        return response

    def _hang_up(self, request: web.BaseRequest, response: web.StreamResponse | None = None) -> web.StreamResponse:
        if request.transport is not None:
            request.transport.close()  # after what was written
        return response or web.Response()
