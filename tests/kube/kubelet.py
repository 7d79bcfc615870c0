"""A stand-in of the kubelet: it knows which port of this machine stands for which port of a pod, and what pods wrote.

The real API server reaches it by TLS as it would a real one; the strict one asks it directly.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

from aiohttp import WSMsgType, web

DATA, ERROR = b"\0", b"\1"  # the channels of the one port that is forwarded


class Kubelet:
    """Pods by name: the local ports that stand for theirs, and the files with what their containers wrote."""

    def __init__(self, folder: Path) -> None:
        self.ports: dict[str, dict[int, int]] = {}
        self.logs: dict[str, Path] = {}
        self.port = 0
        self.num_forwarded = 0
        self._folder = folder
        self._loop: asyncio.AbstractEventLoop | None = None

    def local_port(self, pod: str, port: int) -> int | None:
        self.num_forwarded += 1
        return self.ports.get(pod, {}).get(port)

    def log(self, pod: str, container: str) -> str:
        file = self.logs.get(pod)
        return file.read_text(errors="replace") if file and file.exists() else f"{container} wrote nothing\n"

    def serve(self) -> None:
        """Serve by TLS on loopback, in a thread, with a certificate that is made here."""
        cert, key = self._folder / "kubelet.crt", self._folder / "kubelet.key"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=stand-in"]
        subprocess.run([*command, "-keyout", key, "-out", cert], check=True, capture_output=True)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(cert, key)
        self._loop, started = asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._loop, context, started), daemon=True)
        self._thread.start()
        started.wait()

    def stop(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _run(self, loop: asyncio.AbstractEventLoop, context: ssl.SSLContext, started: threading.Event) -> None:
        asyncio.set_event_loop(loop)
        app = web.Application()
        app.router.add_get("/portForward/{namespace}/{pod}", self._forward)
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._log)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

        async def serve() -> None:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
            await site.start()
            self.port = site._server.sockets[0].getsockname()[1]

        loop.run_until_complete(serve())
        started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    async def _forward(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
        await socket.prepare(request)
        port = int(request.query["port"])
        await forward(socket, port, self.local_port(request.match_info["pod"], port))
        return socket

    async def _log(self, request: web.Request) -> web.Response:
        return web.Response(text=self.log(request.match_info["pod"], request.match_info["container"]))


async def forward(socket: web.WebSocketResponse, port: int, local: int | None) -> None:
    """Carry one forwarded port as a kubelet does: each channel is named by its port first."""
    for channel in (DATA, ERROR):
        await socket.send_bytes(channel + port.to_bytes(2, "little"))
    try:
        if local is None:
            raise ConnectionRefusedError(f"nobody listens on {port}")
        reader, writer = await asyncio.open_connection("127.0.0.1", local)
    except OSError as exc:
        await socket.send_bytes(ERROR + str(exc).encode())
        await socket.close()
        return

    async def home() -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                await socket.send_bytes(DATA + data)
        await socket.close()

    coming = asyncio.ensure_future(home())
    async for message in socket:
        if message.type == WSMsgType.BINARY and message.data[:1] == DATA:
            writer.write(message.data[1:])
            await writer.drain()
    writer.close()
    coming.cancel()
    with suppress(asyncio.CancelledError, OSError):
        await coming
