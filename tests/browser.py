"""A headless Chromium, driven over a pipe by its DevTools protocol: no driver has to be installed.

https://chromedevtools.github.io/devtools-protocol/; messages are JSON, each ended by a zero byte.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextlib.contextmanager
def browser(profile):
    """A page of a Chromium whose profile lies in the folder `profile`. Skips where there is none."""
    program = next(filter(None, map(shutil.which, _NAMES)), None)
    if program is None:
        pytest.skip(f"install Chromium (apt-get install chromium), for one of {', '.join(_NAMES)}")
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()

    # It reads commands from 3 and writes to 4.
    piped = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{from_write}', "bash"]
    flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")
    process = subprocess.Popen(
        [*piped, program, *flags, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(to_read, from_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(from_write)
    try:
        yield Page(to_write, from_read)
    finally:
        process.kill()
        process.wait()
        os.close(to_write)
        os.close(from_read)


class Page:
    """What a person does with a page, and what it did behind their back."""

    def __init__(self, to_write, from_read):
        self._to, self._from = to_write, from_read
        self._buffer, self._number, self._session = b"", 0, None
        self.requests, self.complaints = [], []
        target = next(t for t in self._ask("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self._ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def resize(self, width, height, *, dark=False, contrast=False, mobile=False):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self._ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        more = {"name": "prefers-contrast", "value": "more" if contrast else "no-preference"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme, more])

    def open(self, path):
        self._ask("Page.navigate", url=path.resolve().as_uri())
        self.wait("document.readyState === 'complete' && location.protocol === 'file:'")

    def run(self, script):
        """The value of an expression; a promise is waited for."""
        options = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = self._ask("Runtime.evaluate", expression=script, **options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"]["value"] if "value" in answer["result"] else None

    def wait(self, condition, seconds=20):
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"never: {condition}"
            time.sleep(0.05)

    def press(self, key, code=0):
        known = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39}
        code = {**known, "ArrowDown": 40, " ": 32}[key] if key in known or key in ("ArrowDown", " ") else code
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code or ord(key[0])}
        text = {"Enter": "\r"}[key] if key == "Enter" else key if len(key) == 1 else ""
        self._ask("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **event)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **event)

    def drag(self, start, end):
        """With the mouse's button down, from a point (x, y) of the window to another."""
        for kind, (x, y), buttons in (
            ("mousePressed", start, 1),
            ("mouseMoved", end, 1),
            ("mouseReleased", end, 0),
        ):
            more = {"button": "left", "buttons": buttons, "clickCount": 1}
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def screenshot(self, path, *, whole=False):
        answer = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _ask(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if "id" in answer and answer["id"] == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _read(self):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], 60)
            assert ready, "Chromium says nothing"
            piece = os.read(self._from, 1 << 20)
            assert piece, "Chromium has ended"
            self._buffer += piece
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def _note(self, event):
        values = event["params"]
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])
        elif event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(values["exceptionDetails"])
        elif event["method"] == "Runtime.consoleAPICalled" and values["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.complaints.append(values["args"])
        elif event["method"] == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.complaints.append(values["entry"]["text"])
