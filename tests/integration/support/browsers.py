"""Headless browsers, and a site of files that they show and that collects their reports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.endpoints import serverFromString
from twisted.protocols.policies import WrappingFactory
from twisted.web.resource import Resource
from twisted.web.server import Site
from websockets.sync.client import connect

from tests.integration.support.requirements import need
from tests.support.processes import free_port, until

ROOT = Path(__file__).parents[3]

RELOAD_LOOKS = 300
"""How often a page is looked at that is loaded again, every 0.1 s."""

CHROMIUM = [
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
]

FIREFOX_SETTINGS = {
    "app.update.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,",
    "toolkit.telemetry.enabled": False,
}

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".json": "application/json",
}


class Browser:
    """A browser with a profile of its own, which shows one page.

    Args:
        directory: where its profile and its log are written.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.directory.mkdir()

    def command(self, url: str) -> list[str]:
        """Return the command line; overridden."""
        raise NotImplementedError

    def start(self, url: str) -> None:
        with (self.directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                self.command(url),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "HOME": str(self.directory)},
            )

    def stop(self) -> None:
        # A browser has several processes, all in this process group.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Chromium(Browser):
    """Chromium, which is controlled by the DevTools protocol.

    Args:
        directory: where its profile and its log are written.
        options: further options of its command line.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        need(shutil.which("chromium"), "chromium (tests/integration/install.sh)")
        super().__init__(directory)
        self._options = options

    def command(self, url: str) -> list[str]:
        return [*CHROMIUM, *self._options, f"--user-data-dir={self.directory / 'profile'}", url]

    def page(self) -> str:
        """Return the id of the first page."""
        port, _ = self._debugging()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=30) as response:
            targets = json.load(response)
        return [each["id"] for each in targets if each["type"] == "page"][-1]

    def control(self, method: str, **parameters: Any) -> Any:
        """Call a method of the DevTools protocol; returns its result."""
        _, path = self._debugging()
        with self._devtools(path) as call:
            return call(method, **parameters)

    def reload(self, script: str) -> None:
        """Load the first page anew; this script runs before those of the page."""
        source = f"globalThis.isReloaded = true; {{ {script} }}"
        with self._devtools(f"/devtools/page/{self.page()}") as call:
            call("Page.enable")
            call("Page.addScriptToEvaluateOnNewDocument", source=source)
            call("Page.reload")
            for _ in range(RELOAD_LOOKS):
                with suppress(KeyError):  # the old page is gone, and the new one not there yet
                    if call("Runtime.evaluate", expression="isReloaded")["result"].get("value"):
                        return
                time.sleep(0.1)
        raise AssertionError("the page was not loaded again")

    def evaluate(
        self, script: str, scheme: str = "light", size: tuple[int, int] | None = None
    ) -> Any:
        """Return the value of an expression in the first page; of a promise, its result.

        Args:
            script: the expression.
            scheme: the preferred color scheme meanwhile.
            size: width and height of the screen meanwhile; None: the window's.
        """
        with self._devtools(f"/devtools/page/{self.page()}") as call:
            feature = {"name": "prefers-color-scheme", "value": scheme}
            call("Emulation.setEmulatedMedia", features=[feature])
            if size is not None:
                width, height = size
                metrics = {"width": width, "height": height, "deviceScaleFactor": 1}
                call("Emulation.setDeviceMetricsOverride", mobile=width < 600, **metrics)
            result = call(
                "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
            )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    @contextmanager
    def _devtools(self, path: str) -> Iterator[Callable[..., Any]]:
        """A connection of the DevTools protocol; calls its methods."""
        port, _ = self._debugging()
        numbers = count(1)
        with connect(f"ws://127.0.0.1:{port}{path}", proxy=None, max_size=None) as devtools:

            def call(method: str, **parameters: Any) -> Any:
                number = next(numbers)
                devtools.send(json.dumps({"id": number, "method": method, "params": parameters}))
                while True:
                    answer = json.loads(devtools.recv(60))
                    if answer.get("id") == number:
                        return answer["result"]

            yield call

    def _debugging(self) -> list[str]:
        """Return the port and the path of the DevTools protocol.

        Raises:
            OSError: the browser has not written them yet.
        """
        port, *paths = (self.directory / "profile/DevToolsActivePort").read_text().split("\n")
        if not paths:
            raise OSError("the file is not complete yet")
        return [port, paths[0]]


class Firefox(Browser):
    def __init__(self, directory: Path) -> None:
        need(shutil.which("firefox-esr"), "firefox-esr (tests/integration/install.sh)")
        super().__init__(directory)

    def command(self, url: str) -> list[str]:
        profile = self.directory / "profile"
        profile.mkdir()
        settings = (
            f"user_pref({json.dumps(name)}, {json.dumps(value)});\n"
            for name, value in FIREFOX_SETTINGS.items()
        )
        (profile / "user.js").write_text("".join(settings))
        return ["firefox-esr", "--headless", "--no-remote", "--profile", str(profile), url]


class Call(Resource):
    """A resource that answers each request with the result of a function of its body."""

    isLeaf = True

    def __init__(self, call: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self._call = call

    def render(self, request: Any) -> bytes:
        request.setHeader("access-control-allow-origin", "*")
        request.setHeader("cache-control", "no-store")
        return self._call(request.content.read())


class Files(Resource):
    """The files of a directory, for pages and their scripts."""

    isLeaf = True

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory

    def render_GET(self, request: Any) -> bytes:
        file = self._directory.joinpath(*(part.decode() for part in request.postpath))
        request.setHeader("content-type", CONTENT_TYPES[file.suffix])
        return file.read_bytes()


class WebPort:
    """A site on a loopback port, which can be stopped and started again on this port."""

    def __init__(self, root: Resource) -> None:
        site = Site(root)
        site.noisy = False
        site.log = lambda request: None
        self._factory = WrappingFactory(site)
        self.port = free_port()  # one that no client takes while the site is stopped

    @inlineCallbacks
    def start(self) -> Generator[Deferred[Any], Any, None]:
        endpoint = serverFromString(reactor, f"tcp:{self.port}:interface=127.0.0.1")
        self._listening = yield endpoint.listen(self._factory)

    @inlineCallbacks
    def stop(self) -> Generator[Deferred[Any], Any, None]:
        """Close the port and all its connections."""
        yield self._listening.stopListening()
        for protocol in list(self._factory.protocols):
            protocol.transport.abortConnection()
        yield until(lambda: not self._factory.protocols, "all connections are closed")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Reports(Resource):
    """The repository's files, and ``/report``, which collects what pages report.

    Attributes:
        reports: lists of JSON values, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[Any] = []
        for name in ("clients", "tests"):
            self.putChild(name.encode(), Files(ROOT / name))
        self.putChild(b"report", Call(self._report))

    def _report(self, body: bytes) -> bytes:
        self.reports.extend(json.loads(body))
        return b""
