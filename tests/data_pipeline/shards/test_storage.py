"""Remote sources: read through fsspec, cached whole, verified, shared by processes."""

import hashlib
import http.server
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import pytest
from support.mounts import with_mount
from support.numbered_data import config, numbers, write_split

from data_pipeline.errors import DataError
from data_pipeline.reading.stream import BatchStream, ValidationSet
from data_pipeline.shards.remote import filesystem_options
from data_pipeline.shards.storage import open_folder
from data_pipeline.text.source import TextSource

SAMPLES = 30


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    write_split(folder / "d", SAMPLES)
    write_split(folder / "d", 5, split="validation", first=5001)
    return folder


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, counts requests, holds shards while `open` is not set, and breaks the first `breaks`.

    The first `failures` requests are answered with `status`, or not at all where that is 0."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.requests: list[str] = []
        self.breaks = 0
        self.failures, self.status, self.body = 0, 0, b""
        self.open = threading.Event()
        self.open.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.SimpleHTTPRequestHandler):
    server: Server

    def fail(self) -> bool:
        """It answers as the server is to, if it is to."""
        if not self.server.failures:
            return False
        self.server.failures -= 1
        if self.server.status:
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(len(self.server.body)))
            self.end_headers()
            self.wfile.write(self.server.body if self.command == "GET" else b"")
        else:
            self.close_connection = True
        return True

    def do_HEAD(self) -> None:
        if not self.fail():
            super().do_HEAD()

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.fail():
            return
        if self.path.endswith(".tar"):
            self.server.open.wait(timeout=60)
        if self.path.endswith(".tar") and self.server.breaks:
            self.server.breaks -= 1
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
        else:
            super().do_GET()

    def translate_path(self, path: str) -> str:
        """A proxy is asked for whole URLs."""
        return super().translate_path(urlsplit(path).path)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """None but those of a test."""
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.shards.remote.WAITS", (0.01, 0.01, 0.01))


@pytest.fixture
def server(data: Path) -> Iterator[Server]:
    with Server(data) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def memory(data: Path) -> Iterator[str]:
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(data / "d"), "/bucket/d", recursive=True)
    yield "memory://bucket/d"
    filesystem.rm("/bucket", recursive=True)


def read(path: object, cache: Path | None = None, steps: int = 5) -> list[list[int]]:
    plan = config(path, cache=cache)
    with closing(BatchStream(TextSource(), plan, seed=1, data_rank=0, data_size=1)) as stream:
        return [numbers(next(stream)) for _ in range(steps)]


def test_a_memory_url_gives_what_the_folder_gives(data: Path, memory: str, tmp_path: Path) -> None:
    assert read(memory, tmp_path) == read(data / "d")
    assert read(f"{memory}/train/", tmp_path) == read(data / "d")
    with closing(
        ValidationSet(TextSource(), config(memory, cache=tmp_path), samples=None, data_rank=0, data_size=1)
    ) as validation:
        assert [sorted(numbers(step))[-5:] for step in validation] == [list(range(5001, 5006))]


def test_a_split_at_the_root_of_a_bucket(data: Path, tmp_path: Path) -> None:
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(data / "d" / "train"), "/root", recursive=True)
    assert read("memory://root", tmp_path) == read(data / "d")
    filesystem.rm("/root", recursive=True)


def test_a_file_url_is_a_local_folder(data: Path) -> None:
    assert read(f"file://{data}/d") == read(data / "d")


def test_http_shards_are_downloaded_once(data: Path, server: Server, tmp_path: Path) -> None:
    assert read(f"{server.url}/d", tmp_path) == read(data / "d")
    assert sum(name.endswith(".tar") for name in server.requests) == 5
    server.requests.clear()
    assert read(f"{server.url}/d", tmp_path) == read(data / "d")
    assert not any(name.endswith((".tar", ".npy")) for name in server.requests)


def test_a_web_server_needs_to_know_no_ranges(data: Path, server: Server, tmp_path: Path) -> None:
    """Nor does that of Python, which people try first. fsspec asks for ranges of files of more than 5 MiB."""
    content = b"0123456789abcdef" * (6 << 16)
    (data / "large.tar").write_bytes(content)
    wanted = len(content), hashlib.sha256(content).hexdigest()
    assert open_folder(server.url, tmp_path).local("large.tar", *wanted).read_bytes() == content
    with pytest.raises(DataError, match=r"large\.tar: larger than the 6000000 bytes"):
        open_folder(server.url, tmp_path).local("large.tar", 6_000_000, "0" * 64)
    with pytest.raises(DataError, match=r"large\.tar: SHA-256 is .*, the manifest says 00000"):
        open_folder(server.url, tmp_path).local("large.tar", len(content), "0" * 64)


def test_a_broken_download_is_tried_again(data: Path, server: Server, tmp_path: Path) -> None:
    server.breaks = 2
    assert read(f"{server.url}/d", tmp_path) == read(data / "d")
    assert sum(name.endswith(".tar") for name in server.requests) == 7


def test_a_download_that_never_works_is_named_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.breaks = 1000
    with pytest.raises(DataError, match=r"http://127.*text-00000\d\.tar: "):
        read(f"{server.url}/d", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".tar", ".partial")]


def test_remote_content_that_is_not_what_was_indexed_is_refused(memory: str, tmp_path: Path) -> None:
    filesystem = fsspec.filesystem("memory")
    for name in filesystem.ls("/bucket/d/train", detail=False):
        if name.endswith(".tar"):
            content = bytearray(filesystem.cat_file(name))
            content[700] ^= 1
            filesystem.pipe_file(name, bytes(content))
    with pytest.raises(DataError, match=r"text-00000\d\.tar: SHA-256 is .*, the manifest says"):
        read(memory, tmp_path)
    assert not list(tmp_path.rglob("*.tar"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nowhere", "no manifest.json and no train/manifest.json here"),
        ("nosuchprotocol://x", "nosuchprotocol://x: cannot be read"),
        ("http://127.0.0.1:9/x", "http://127.0.0.1:9/x"),
    ],
)
def test_a_url_that_leads_nowhere_is_named(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(url, tmp_path)


EVER = 10**6


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "the server answered 401 Unauthorized"),
        (403, "the server answered 403 Forbidden"),
        (404, "no manifest.json and no train/manifest.json here"),
        (410, "no manifest.json and no train/manifest.json here"),
        (500, r"the server answered 500 Internal Server Error \(tried 4 times\)"),
        (503, r"the server answered 503 Service Unavailable \(tried 4 times\)"),
        (0, r"cannot be read: .*\(tried 4 times\)"),
    ],
)
def test_what_the_server_said_is_told(server: Server, tmp_path: Path, status: int, message: str) -> None:
    server.failures, server.status = EVER, status
    with pytest.raises(DataError, match=rf"{server.url}/d.*: {message}"):
        read(f"{server.url}/d", tmp_path)


@pytest.mark.parametrize("status", [503, 429, 0])
def test_what_passes_is_tried_again(data: Path, server: Server, tmp_path: Path, status: int) -> None:
    server.failures, server.status = 5, status
    assert read(f"{server.url}/d", tmp_path) == read(data / "d")


def test_a_server_that_says_nothing_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipeline.shards.remote.SILENCE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/d"
        with pytest.raises(DataError, match=r"d/manifest.json: no answer in time \(tried 4 times\)"):
            read(url, tmp_path)


def test_a_web_page_instead_of_a_manifest_is_told(data: Path, server: Server, tmp_path: Path) -> None:
    server.failures, server.status, server.body = EVER, 200, b"<!DOCTYPE html><title>Log in</title>"
    with pytest.raises(DataError, match=r"d/manifest.json: the server sent a web page \(HTML\)"):
        read(f"{server.url}/d", tmp_path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:9/x", r"x/manifest.json: cannot be read: Cannot connect .*\(tried 4 times\)"),
        ("http://no-such-host.invalid/x", r"x/manifest.json: cannot be read: Cannot connect"),
    ],
)
def test_a_host_that_cannot_be_reached_is_told(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(url, tmp_path)


def test_a_server_without_a_certificate_is_told_at_once(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read: .*ssl") as raised:
        read(server.url.replace("http", "https") + "/d", tmp_path)
    assert "tried" not in str(raised.value)


def test_a_file_url_is_decoded(data: Path, tmp_path: Path) -> None:
    (tmp_path / "a b").symlink_to(data / "d")
    assert read(f"file://localhost{tmp_path}/a%20b") == read(data / "d")
    with pytest.raises(DataError, match="names another host"):
        read("file://a/b")


def test_a_missing_remote_file_is_named(memory: str, tmp_path: Path) -> None:
    fsspec.filesystem("memory").rm("/bucket/d/train/text-000003.tar")
    with pytest.raises(DataError, match=r"memory://bucket/d/train/text-000003\.tar: is missing"):
        read(memory, tmp_path)


FETCH = """
import sys
from pathlib import Path
from data_pipeline.shards.storage import open_folder
url, cache, name, size, sha256 = sys.argv[1:]
folder = open_folder(url, Path(cache))
print("ready", flush=True)
print(folder.local(name, int(size), sha256))
"""


def test_several_processes_download_a_shard_once(data: Path, server: Server, tmp_path: Path) -> None:
    name = "text-000000.tar"
    content = (data / "d" / "train" / name).read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    argv = [sys.executable, "-c", FETCH, f"{server.url}/d/train", tmp_path, name, len(content), sha256]
    server.open.clear()
    ranks = [
        subprocess.Popen([str(word) for word in argv], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert [rank.stdout.readline() for rank in ranks if rank.stdout] == ["ready\n"] * 3
    server.open.set()
    paths = {rank.communicate(timeout=60)[0].strip() for rank in ranks}
    assert [rank.returncode for rank in ranks] == [0, 0, 0]
    assert len(paths) == 1
    assert Path(paths.pop()).read_bytes() == content
    assert sum(request.endswith(".tar") for request in server.requests) == 1


def test_the_cache_lies_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    read(memory, steps=1)
    assert list((tmp_path / ".cache" / "surefoot").rglob("*.tar"))


def test_a_full_disk_under_the_cache_is_named(memory: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="file"):
        open_folder(f"{memory}/train", tmp_path / "file").local("text-000000.tar", 1, "0" * 64)


def test_a_cache_without_room_is_named_and_no_server(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    program = (
        "import fsspec\nfrom pathlib import Path\nfrom data_pipeline.shards.storage import open_folder\n"
        "fsspec.filesystem('memory').pipe('/far/a.tar', bytes(2 << 20))\n"
        f"open_folder('memory://far', Path({str(tmp_path / 'small')!r})).local('a.tar', 2 << 20, '0' * 64)"
    )
    ended = with_mount(["-t", "tmpfs", "-o", "size=1m", "none"], tmp_path / "small", ["-c", program])
    told = (
        f"DataError: data.cache: {tmp_path}/small: No space left on device; all files of remote data are kept"
    )
    assert told in ended.stderr
    assert "memory://far/a.tar" not in ended.stderr.splitlines()[-1]


def test_cache_is_asked_for_by_name_where_there_is_no_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(DataError, match=r"data\.cache: .* this user has no home; set data.cache to a folder"):
        open_folder("memory://nowhere", None)
    assert open_folder("memory://nowhere", tmp_path / "cache").name == "memory://nowhere"
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data\.cache: .*/file/x: Not a directory; set data.cache"):
        open_folder("memory://nowhere", tmp_path / "file" / "x")


def test_a_proxy_of_the_environment_is_asked(
    server: Server, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    assert read("http://data.invalid/d", tmp_path) == read(data / "d")
    assert all(path.startswith("http://data.invalid/d/") for path in server.requests)


def test_what_the_user_has_told_fsspec_counts(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fsspec.config.conf, "https", {"client_kwargs": {"headers": {"X-Token": "t"}}})
    options = filesystem_options(f"{server.url}/d")
    assert options["client_kwargs"]["headers"] == {"X-Token": "t"}
    assert options["client_kwargs"]["trust_env"]
