"""A headless Chromium opens one page and says what stands on it."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
PATIENCE_SECONDS = 90.0


def text_of_page(url: str, profile: Path, wanted: list[str]) -> str:
    """It returns the visible text of a page, less white space, once it has everything wanted or patience has run
    out."""
    with _chromium(url, profile) as port:
        return asyncio.run(_read_until(port, wanted))


@contextmanager
def _chromium(url: str, profile: Path) -> Iterator[int]:
    """It keeps a browser open with this page, and yields the loopback port of its debugging protocol."""
    arguments = [*FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", "--window-size=1400,1000"]
    process = subprocess.Popen(
        [str(CHROMIUM), *arguments, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield _debugging_port(profile / "DevToolsActivePort")
    finally:
        process.terminate()
        process.wait()


def _debugging_port(announcement: Path) -> int:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not announcement.is_file() or not announcement.read_text():
        if time.monotonic() > deadline:
            raise TimeoutError("Chromium did not start")
        time.sleep(0.1)
    return int(announcement.read_text().splitlines()[0])


async def _read_until(port: int, wanted: list[str]) -> str:
    question = {"id": 1, "method": "Runtime.evaluate", "params": {"expression": "document.body.innerText"}}
    deadline = time.monotonic() + PATIENCE_SECONDS
    text = ""
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json") as response:
            pages = [target for target in await response.json() if target["type"] == "page"]
        async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            while time.monotonic() < deadline and not all(word in text for word in wanted):
                await asyncio.sleep(0.2)
                await socket.send_json(question)
                answer = await socket.receive_json()
                text = "".join(answer.get("result", {}).get("result", {}).get("value", "").split())
    return text
