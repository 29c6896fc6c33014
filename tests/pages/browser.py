"""Headless Chromium by its DevTools protocol: pages are opened, asked and typed into as a person would."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BINARY = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
_PATIENCE_SECONDS = 60


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, for as long as the block lasts."""
    assert BINARY is not None
    flags = [
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-extensions", "--disable-background-networking", "--hide-scrollbars", "--remote-debugging-port=0",
        f"--user-data-dir={profile}", "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen([BINARY, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    loop = asyncio.new_event_loop()
    try:
        yield Browser(_endpoint(process), loop)
    finally:
        process.terminate()
        process.wait(timeout=30)
        assert process.stderr is not None
        process.stderr.close()
        loop.close()


def _endpoint(process: subprocess.Popen[str]) -> str:
    """The address that the browser prints once it listens."""
    assert process.stderr is not None
    told: list[str] = []
    for line in process.stderr:
        told.append(line)
        if "DevTools listening on " in line:
            return line.split("DevTools listening on ", 1)[1].strip()
    raise AssertionError("the browser did not start:\n" + "".join(told))


class Browser:
    """A running browser."""

    def __init__(self, endpoint: str, loop: asyncio.AbstractEventLoop) -> None:
        self._endpoint = endpoint
        self._loop = loop

    @contextmanager
    def page(
        self, place: Path | str, fragment: str = "", *, width: int = 1280, height: int = 800, dark: bool = False
    ) -> Iterator[Page]:
        """Open a file or an address and wait until its script says it is ready."""
        page = Page(self._endpoint, self._loop)
        url = place if isinstance(place, str) else place.resolve().as_uri()
        try:
            page.open(url + fragment, width=width, height=height, dark=dark)
            yield page
        finally:
            page.close()


class Page:
    """One tab."""

    def __init__(self, endpoint: str, loop: asyncio.AbstractEventLoop) -> None:
        self._endpoint, self._loop = endpoint, loop
        self._number = 0
        self.requests: list[str] = []
        """Addresses that the page asked for."""

    def open(self, url: str, *, width: int, height: int, dark: bool) -> None:
        self._run(self._connect())
        self._session = ""
        self._context = self.call("Target.createBrowserContext")["browserContextId"]  # keeps nothing of other pages
        target = self.call("Target.createTarget", url="about:blank", browserContextId=self._context)["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Network.enable")
        self.resize(width, height)
        wishes = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        self.call("Emulation.setEmulatedMedia", features=[{"name": key, "value": wish} for key, wish in wishes.items()])
        self.call("Page.navigate", url=url)
        self.wait("((one) => one && (one.ready || (one.faults || '[]') !== '[]'))(document.documentElement?.dataset)")

    def close(self) -> None:
        self._session = ""
        self.call("Target.disposeBrowserContext", browserContextId=self._context)
        self._run(self._disconnect())

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while not self.ask(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            self.settle()

    def settle(self) -> None:
        """Until the page has drawn what was asked for."""
        self.ask("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)
        self.settle()

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)
        self.settle()

    def point(self, selector: str, *, click: bool = False) -> None:
        """Move the pointer onto the middle of an element."""
        x, y = self.ask(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)}); one.scrollIntoView({{block: 'center'}});"
            " const box = one.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        if click:
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def drop(self, selector: str, *files: Path) -> None:
        """Let files fall onto an element, as if dragged from a folder."""
        x, y = self.ask(
            f"(() => {{ const box = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        dragged = {"items": [], "files": [str(path) for path in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=dragged)
        self.settle()

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        self.settle()
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))
        return path

    @property
    def faults(self) -> list[str]:
        """What went wrong in the page's script."""
        return json.loads(self.ask("document.documentElement.dataset.faults"))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        return self._run(self._exchange(message))

    async def _connect(self) -> None:
        import aiohttp

        self._client = aiohttp.ClientSession()
        self._socket = await self._client.ws_connect(self._endpoint, max_msg_size=0)

    async def _disconnect(self) -> None:
        await self._socket.close()
        await self._client.close()

    async def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        await self._socket.send_json(message)
        while True:
            answer = await self._socket.receive_json(timeout=_PATIENCE_SECONDS)
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == message["id"]:
                assert "error" not in answer, answer
                return answer["result"]

    def _run(self, work: Any) -> Any:
        return self._loop.run_until_complete(work)
