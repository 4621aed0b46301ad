"""Prepared data of somebody hostile: what a manifest says is checked before any of it becomes a path or a size."""

import gzip
import hashlib
import http.server
import json
import os
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from support.numbered_data import config, numbers, write_split

from data_pipeline.errors import DataError
from data_pipeline.parsing import LARGEST_DOCUMENT
from data_pipeline.reading.stream import BatchStream
from data_pipeline.shards.dataset import Dataset
from data_pipeline.shards.manifest import read_manifest
from data_pipeline.shards.shard import ShardIndex
from data_pipeline.shards.storage import LocalFolder, open_folder
from data_pipeline.text.manifest import TextManifest
from data_pipeline.text.source import TextSource

Facts = dict[str, Any]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_split(tmp_path / "data", 10)


def stated(facts: Facts) -> str:
    """A manifest with the fingerprint that fits it, where one can be made."""
    facts = {name: value for name, value in facts.items() if name != "fingerprint"}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return json.dumps({**facts, "fingerprint": digest})


def edit(data: Path, change: Callable[[Facts], object]) -> None:
    path = data / "train/manifest.json"
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(stated(facts))


def shard(**changes: Any) -> Callable[[Facts], object]:
    return lambda facts: facts["shards"][0].update(changes)


def top(**changes: Any) -> Callable[[Facts], object]:
    return lambda facts: facts.update(changes)


def tokenizer(**changes: Any) -> Callable[[Facts], object]:
    return lambda facts: facts["tokenizer"].update(changes)


lies = {
    "a digest that leads out of the cache": shard(sha256="../../" + "a" * 58),
    "an absolute digest": shard(sha256="/" + "a" * 63),
    "a digest in capitals": shard(sha256="A" * 64),
    "a digest and a line break": shard(sha256="a" * 64 + "\n"),
    "a short digest": shard(index_sha256="a" * 63),
    "an empty digest": shard(index_sha256=""),
    "a digest with a NUL": shard(index_sha256="a" * 63 + "\0"),
    "a tokenizer's digest": tokenizer(sha256="../x"),
    "a shard elsewhere": shard(name="../text-000000.tar"),
    "a shard with a line break": shard(name="text-000000.tar\n"),
    "a tokenizer above": tokenizer(file=".."),
    "a tokenizer elsewhere": tokenizer(file="../../etc/passwd"),
    "a hidden tokenizer": tokenizer(file=".netrc"),
    "a size below zero": shard(bytes=-1),
    "a size beyond all disks": shard(bytes=10**30),
    "samples beyond all disks": shard(samples=2**62),
    "a size in words": shard(bytes="10240"),
    "a size that is true": shard(bytes=True),
    "a size with a fraction": shard(bytes=10240.5),
    "a shard twice": lambda facts: facts.update(samples=17, shards=[*facts["shards"], facts["shards"][0]]),
    "a field elsewhere": top(fields=["../../npy"]),
    "a field twice": top(fields=["npy", "npy"]),
    "no field": top(fields=[]),
    "ids that have wrapped": tokenizer(vocabulary_size=70_000),
    "a vocabulary beyond its type": tokenizer(vocabulary_size=2**33),
    "a loss that is none": top(unigram_cross_entropy=float("nan")),
    "another split": top(split="../train"),
    "an unknown key": top(hooks=["os.system"]),
    "a control character": top(kind="\x1b[2J"),
}


@pytest.mark.parametrize("change", lies.values(), ids=lies.keys())
def test_a_manifest_that_lies_is_refused(data: Path, change: Callable[[Facts], object]) -> None:
    edit(data, change)
    with pytest.raises(DataError, match=r"train/manifest\.json: ") as caught:
        read_manifest(LocalFolder(data / "train"), TextManifest)
    assert str(caught.value).isprintable()


broken = {
    "empty": b"",
    "a list": b"[]",
    "a number": b"1",
    "pairs": b'[["format", 1]]',
    "nested without end": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "a number of a million digits": b'{"format": ' + b"1" * 1_000_000 + b"}",
    "a number with an exponent": b'{"format": 1e999}',
    "NaN": b'{"format": NaN}',
    "a name twice": b'{"format": 1, "format": 1}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"format": 1}'.encode("utf-16"),
    "Latin-1": b'{"kind": "\xe9"}',
    "NUL": b"\0" * 100,
    "half a surrogate pair": b'{"kind": "\\ud800"}',
    "half a surrogate pair as a name": b'{"\\ud800": 1}',
}


@pytest.mark.parametrize("content", broken.values(), ids=broken.keys())
def test_a_manifest_that_is_none_is_refused(data: Path, content: bytes) -> None:
    (data / "train/manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=r"train/manifest\.json: "):
        read_manifest(LocalFolder(data / "train"), TextManifest)


def test_only_a_regular_file_is_read(data: Path) -> None:
    path = data / "train/manifest.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"manifest\.json: is not a regular file"):
        read_manifest(LocalFolder(data / "train"), TextManifest)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"manifest\.json: is not a regular file"):
        read_manifest(LocalFolder(data / "train"), TextManifest)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(DataError, match=r"manifest\.json: larger than"):
        read_manifest(LocalFolder(data / "train"), TextManifest)


# The cache


def test_a_folder_that_cannot_be_looked_into_is_no_fault_of_ours(data: Path) -> None:
    """One that is closed to this user, or a disk that fails; a name that is too long shows it to root as well."""
    with pytest.raises(DataError, match="File name too long"):
        BatchStream(TextSource(), config(data / ("x" * 300)), seed=1, data_rank=0, data_size=1)


@pytest.fixture
def served(data: Path) -> Iterator[str]:
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(data), "/hostile", recursive=True)
    yield "memory://hostile"
    filesystem.rm("/hostile", recursive=True)


def read(url: str, cache: Path) -> list[int]:
    plan = config(url, cache=cache, prefetch_steps=0)
    with closing(BatchStream(TextSource(), plan, seed=1, data_rank=0, data_size=1)) as stream:
        return numbers(next(stream))


def shards_in(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.tar"))


def test_a_cached_file_of_the_right_size_and_another_content_is_fetched_again(
    served: str, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    right = read(served, cache)
    before = {path: path.read_bytes() for path in cache.rglob("*") if path.suffix in (".tar", ".npy")}
    for path, content in before.items():
        path.write_bytes(bytes(len(content)))
    assert read(served, cache) == right
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("plant", ["link", "pipe", "folder"])
def test_what_is_planted_in_the_cache_is_not_used(served: str, tmp_path: Path, plant: str) -> None:
    cache, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    right = read(served, cache)
    for path in shards_in(cache):
        content = path.read_bytes()
        path.unlink()
        match plant:
            case "link":
                elsewhere.write_bytes(content)
                path.symlink_to(elsewhere)
            case "pipe":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
    if plant == "folder":
        with pytest.raises(DataError, match="s a directory"):
            read(served, cache)
    else:
        assert read(served, cache) == right
        assert not any(path.is_symlink() for path in shards_in(cache))


def test_links_planted_beside_a_download_are_not_followed(served: str, tmp_path: Path) -> None:
    cache, precious = tmp_path / "cache", tmp_path / "precious"
    right = read(served, cache)
    precious.write_text("mine")
    for path in shards_in(cache):
        path.unlink()
        path.with_suffix(".partial").symlink_to(precious)
    assert read(served, cache) == right
    assert precious.read_text() == "mine"
    for path in shards_in(cache):
        path.unlink()
        path.with_suffix(".lock").unlink()
        path.with_suffix(".lock").symlink_to(precious)
    with pytest.raises(DataError, match="link"):
        read(served, cache)
    assert precious.read_text() == "mine"


# Servers


class Server(http.server.ThreadingHTTPServer):
    """Answers each path as `answers` says."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        self.sent = 0


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        answer = self.server.answers.get(self.path)
        if answer is None:
            self.send_error(404)
            return
        try:
            answer(self)
        except OSError:  # the client has seen enough
            self.close_connection = True

    def do_HEAD(self) -> None:
        self.send_response(200 if self.path in self.server.answers else 404)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def endless(handler: http.server.BaseHTTPRequestHandler) -> None:
    """1 GB of spaces, without a word about the length."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(1024):
        handler.wfile.write(b" " * (1 << 20))
        handler.server.sent += 1 << 20  # type: ignore[attr-defined]


@lru_cache(maxsize=1)
def gigabyte() -> bytes:
    """1 GB of spaces in a megabyte."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return b"".join(packer.compress(b" " * (1 << 20)) for _ in range(1024)) + packer.flush()


def bomb(handler: http.server.BaseHTTPRequestHandler) -> None:
    content = gigabyte()
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


@pytest.mark.parametrize("answer", [endless, bomb])
def test_a_manifest_without_end_is_not_read_to_its_end(
    server: Server, tmp_path: Path, answer: Callable[[http.server.BaseHTTPRequestHandler], None]
) -> None:
    server.answers["/train/manifest.json"] = answer
    folder = open_folder(f"http://127.0.0.1:{server.server_port}/train", tmp_path)
    with pytest.raises(DataError, match=r"manifest\.json: larger than"):
        read_manifest(folder, TextManifest)
    assert server.sent < 2 * LARGEST_DOCUMENT


@pytest.mark.parametrize("answer", [endless, bomb])
def test_a_download_stops_at_the_size_of_the_manifest(
    server: Server, tmp_path: Path, answer: Callable[[http.server.BaseHTTPRequestHandler], None]
) -> None:
    server.answers["/text-000000.tar"] = answer
    folder = open_folder(f"http://127.0.0.1:{server.server_port}", tmp_path)
    with pytest.raises(DataError, match="larger than the 10240 bytes that the manifest says"):
        folder.local("text-000000.tar", 10_240, "a" * 64)
    assert server.sent < 1 << 28
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


def short(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "5")
    handler.end_headers()
    handler.wfile.write(b"short")


def test_a_download_that_is_too_short_is_refused(server: Server, tmp_path: Path) -> None:
    server.answers["/text-000000.tar"] = short
    folder = open_folder(f"http://127.0.0.1:{server.server_port}", tmp_path)
    with pytest.raises(DataError, match="5 bytes, the manifest says 10240"):
        folder.local("text-000000.tar", 10_240, "a" * 64)


def test_credentials_come_from_the_configuration_of_fsspec(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write((handler.headers["Authorization"] or "nobody").encode())

    server.answers["/x"] = answer
    monkeypatch.setitem(fsspec.config.conf, "http", {"headers": {"Authorization": "Bearer me"}})
    assert open_folder(f"http://127.0.0.1:{server.server_port}", tmp_path).read("x") == b"Bearer me"


@pytest.mark.parametrize(
    "url", ["https://me:secret@host/data", "https://me:se cret@host/data", "s3://bucket/data?sig=secret"]
)
def test_a_url_that_holds_a_secret_is_refused_and_the_secret_is_not_told(url: str) -> None:
    with pytest.raises(ValueError, match="must have no user, password or query"):
        config(url)


# Headers of a shard


def header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.GNU_FORMAT)


def trick(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 100) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return header(info)


tricks = {
    "a name above": trick("../../escaped.npy"),
    "an absolute name": trick("/tmp/escaped.npy"),
    "a symbolic link": trick("a.npy", tarfile.SYMTYPE, "/etc/passwd"),
    "a hard link": trick("a.npy", tarfile.LNKTYPE, "../escaped"),
    "a device": trick("a.npy", tarfile.CHRTYPE),
    "a pipe": trick("a.npy", tarfile.FIFOTYPE),
    "a file with holes": trick("a.npy", tarfile.GNUTYPE_SPARSE),
    "an extended header": trick("././@PaxHeader", tarfile.XHDTYPE),
    "an extended header for all": trick("pax_global_header", tarfile.XGLTYPE),
    "a size below zero": trick("a.npy", size=-512),
    "a size of 8 GB": trick("a.npy", size=8 << 30),
    "no header at all": bytes(512),
}


@pytest.mark.parametrize("head", tricks.values(), ids=tricks.keys())
def test_headers_of_a_shard_mean_nothing_to_the_reader(tmp_path: Path, head: bytes) -> None:
    """It goes by the index: what lies there is bytes, whatever the header in front of them claims."""
    data = write_split(tmp_path / "data", 3)
    path, index_path = data / "train/text-000000.tar", data / "train/text-000000.index.npy"
    content = head + path.read_bytes()[512:]
    path.write_bytes(content)
    rows = np.load(index_path)
    rows["crc32"][0] = zlib.crc32(content[: rows["size"][0]])
    np.save(index_path, rows)
    changes = {"sha256": path, "index_sha256": index_path}
    edit(data, shard(**{key: hashlib.sha256(file.read_bytes()).hexdigest() for key, file in changes.items()}))
    before = sorted(tmp_path.rglob("*"))
    with closing(Dataset(LocalFolder(data / "train"), TextManifest)) as dataset:
        samples = [dataset.read(number) for number in range(3)]
    assert [bytes(sample.fields[0])[-2:] for sample in samples] == [b"\1\0", b"\2\0", b"\3\0"]
    assert sorted(tmp_path.rglob("*")) == before
    ShardIndex.parse(index_path.read_bytes(), "index", ("npy",), 3, len(content))


def test_a_shard_that_was_compressed_is_no_shard(tmp_path: Path) -> None:
    data = write_split(tmp_path / "data", 3)
    path = data / "train/text-000000.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match="changed since it was indexed"):
        Dataset(LocalFolder(data / "train"), TextManifest)
