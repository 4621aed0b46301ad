"""Shards: plain webdatasets whose every byte is accounted for."""

import io
import pickle
import random
import resource
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from support.numbered_data import LENGTH, write_split

from data_pipeline.errors import DataError
from data_pipeline.shards.dataset import Dataset
from data_pipeline.shards.shard import SampleDamaged, ShardIndex, ShardReader, index_shard
from data_pipeline.shards.storage import LocalFolder
from data_pipeline.shards.writer import ShardWriter
from data_pipeline.text.manifest import TextManifest

SAMPLES = 10
SAMPLE_BYTES = 1024
"""A header and one block of content."""


def read_all(folder: Path) -> tuple[list[int], list[str]]:
    """First ids of the sound samples, and the damage of the others."""
    with closing(Dataset(LocalFolder(folder), TextManifest)) as dataset:
        samples = [dataset.read(number) for number in range(len(dataset))]
    sound = [int(np.load(io.BytesIO(sample.fields[0]))[0]) for sample in samples if sample.fields]
    return sound, [sample.damage for sample in samples if sample.damage]


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.binary(max_size=1500), st.binary(max_size=600)), min_size=1, max_size=12),
    st.integers(1, 5),
)
def test_what_was_written_is_read_back_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, contents: list[tuple[bytes, bytes]], shard_samples: int
) -> None:
    """Samples of several fields, as translation and speech have them."""
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, "pairs", shard_samples) as writer:
        for number, (source, target) in enumerate(contents):
            writer.write(f"pair-{number}", {"tgt.txt": target, "src.txt": source})
        shards = writer.finish()
    assert [shard.name for shard in shards] == [f"pairs-{n:06d}.tar" for n in range(len(shards))]
    read = []
    for shard in shards:
        path = folder / shard.name
        content = path.with_suffix(".index.npy").read_bytes()
        index = ShardIndex.parse(content, "index", ("src.txt", "tgt.txt"), shard.samples, shard.bytes)
        with closing(ShardReader(path, index, shard.name)) as reader:
            order = random.Random(0).sample(range(len(index)), len(index))
            fields = {number: tuple(bytes(field) for field in reader.read(number)) for number in order}
        read += [fields[number] for number in range(len(index))]
    assert read == contents


def test_a_plain_webdataset_reads_the_shards(tmp_path: Path) -> None:
    write_split(tmp_path, SAMPLES, shard_samples=4)
    urls = [str(path) for path in sorted((tmp_path / "train").glob("*.tar"))]
    assert len(urls) == 3
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"train-{n:06d}" for n in range(1, SAMPLES + 1)]
    for number, sample in enumerate(samples, 1):
        assert sample["npy"].dtype == np.uint16
        assert sample["npy"].tolist() == [number] * (LENGTH + 1)


def flip(byte: int) -> Callable[[bytes], bytes]:
    return lambda content: content[:byte] + bytes([content[byte] ^ 1]) + content[byte + 1 :]


IN_HEADER = 3 * SAMPLE_BYTES + 5
IN_DATA = 3 * SAMPLE_BYTES + 512 + 20
IN_PADDING = 4 * SAMPLE_BYTES - 7


@pytest.mark.parametrize("byte", [IN_HEADER, IN_DATA, IN_PADDING])
def test_a_flipped_bit_damages_its_sample_and_no_other(tmp_path: Path, byte: int) -> None:
    """A header bit, which makes webdataset lose the rest of the shard, a data bit, which it never notices."""
    path = write_split(tmp_path, SAMPLES, shard_samples=SAMPLES) / "train" / "text-000000.tar"
    path.write_bytes(flip(byte)(path.read_bytes()))
    sound, damaged = read_all(path.parent)
    assert sound == [1, 2, 3, *range(5, SAMPLES + 1)]
    assert damaged == [f"{path}: sample 3 at byte 3072: checksum mismatch"]


def test_a_zeroed_header_damages_its_sample_and_no_other(tmp_path: Path) -> None:
    path = write_split(tmp_path, SAMPLES, shard_samples=SAMPLES) / "train" / "text-000000.tar"
    content = path.read_bytes()
    path.write_bytes(content[: 3 * SAMPLE_BYTES] + bytes(512) + content[3 * SAMPLE_BYTES + 512 :])
    sound, damaged = read_all(path.parent)
    assert sound == [1, 2, 3, *range(5, SAMPLES + 1)]
    assert len(damaged) == 1


cuts = {
    "at a member boundary": 3 * SAMPLE_BYTES,
    "in a header": 3 * SAMPLE_BYTES + 100,
    "in data": 3 * SAMPLE_BYTES + 600,
    "end blocks missing": SAMPLES * SAMPLE_BYTES,
    "empty": 0,
}


@pytest.mark.parametrize("size", cuts.values(), ids=cuts.keys())
def test_a_cut_shard_is_refused_by_name(tmp_path: Path, size: int) -> None:
    path = write_split(tmp_path, SAMPLES, shard_samples=SAMPLES) / "train" / "text-000000.tar"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=rf"text-000000\.tar: changed since it was indexed: {size} bytes"):
        read_all(path.parent)


def test_a_shard_cut_while_it_is_open_damages_what_is_gone(tmp_path: Path) -> None:
    path = write_split(tmp_path, SAMPLES, shard_samples=SAMPLES) / "train" / "text-000000.tar"
    with closing(Dataset(LocalFolder(path.parent), TextManifest)) as dataset:
        assert dataset.read(0).fields
        path.write_bytes(path.read_bytes()[: 3 * SAMPLE_BYTES + 10])
        assert dataset.read(2).fields
        assert dataset.read(3).damage == f"{path}: sample 3 at byte 3072: 10 of 1024 bytes left"
        assert dataset.read(9).damage.endswith("0 of 1024 bytes left")


def test_a_wrong_sample_count_is_refused(tmp_path: Path) -> None:
    path = write_split(tmp_path, SAMPLES) / "train" / "manifest.json"
    path.write_text(path.read_text().replace('"samples":7', '"samples":8'))
    with pytest.raises(DataError, match="samples is 10, but the shards hold 11"):
        read_all(path.parent)


def parse_index(content: bytes, samples: int = 3, size: int = 10_240) -> ShardIndex:
    return ShardIndex.parse(content, "x.index.npy", ("npy",), samples, size)


def saved(array: np.ndarray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def rows(*offsets: int, size: int = 1024, field: int = 100) -> np.ndarray:
    return np.array([(offset, size, 0, (field,)) for offset in offsets], ShardIndex.dtype(1))


def archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, rows(0, 1024, 2048))
    return file.getvalue()


SOUND = saved(rows(0, 1024, 2048))

no_indices = {
    "empty": b"",
    "cut in the magic": SOUND[:4],
    "cut in the header": SOUND[:20],
    "cut in the rows": SOUND[:-1],
    "a byte too many": SOUND + b"\0",
    "a pickle": pickle.dumps([1]),
    "an archive": archive(),
    "a broken archive": archive()[:-30],
    "numbers": saved(np.zeros(3)),
    "10^30 rows": SOUND.replace(b"(3,)", b"(%d,)" % 10**30),
    "rows below zero": SOUND.replace(b"(3,)", b"(-3,)"),
    "two dimensions": saved(rows(0, 1024, 2048).reshape(3, 1)),
    "another version": SOUND[:6] + b"\x03" + SOUND[7:],
    "objects": SOUND.replace(b"'<u8'", b"'|O'  "),
    "brackets": SOUND[:10] + b"(" * (len(SOUND) - 10),
    "fewer rows than samples": saved(rows(0, 1024)),
    "more rows than samples": saved(rows(0, 1024, 2048, 3072)),
    "unsorted": saved(rows(1024, 0, 2048)),
    "overlapping": saved(rows(0, 512, 1024)),
    "a hole": saved(rows(0, 1024, 4096)),
    "an offset of 2^63": saved(rows(2**63, 2**63 + 1024, 2**63 + 2048)),
    "an offset of 2^64 - 1": saved(rows(0, 1024, 2**64 - 1)),
    "behind the end of the shard": saved(rows(0, 4096, 8192, size=4096, field=3500)),
    "a field larger than its sample": saved(rows(0, 1024, 2048, field=2**32 - 1)),
}


@pytest.mark.parametrize("content", no_indices.values(), ids=no_indices.keys())
def test_an_index_that_is_none_is_refused(content: bytes) -> None:
    assert len(parse_index(SOUND)) == 3
    with pytest.raises(DataError, match=r"^x\.index\.npy: "):
        parse_index(content)


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.mark,)


def test_a_pickled_index_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    content = saved(np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="not an array"):
        parse_index(content, samples=1)
    assert not mark.exists()
    np.load(io.BytesIO(content), allow_pickle=True)
    assert mark.exists()  # the bomb was live


def test_an_index_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """The shard is closed by then, and is not to be closed again."""
    (tmp_path / "text-000000.index.npy").mkdir()
    with (
        pytest.raises(DataError, match=r"index\.npy: Is a directory"),
        ShardWriter(tmp_path, "text", 1) as writer,
    ):
        writer.write("key", {"txt": b"text"})


def test_a_disk_that_is_full_at_the_end_of_a_shard_is_told(tmp_path: Path) -> None:
    """A limit on file sizes fails what is written last, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with (
            pytest.raises(DataError, match="tar: File too large"),
            ShardWriter(tmp_path, "text", 1) as writer,
        ):
            writer.write("key", {"txt": b"text"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "key", ["v1.5-x", "../x", "/x", "a//b", "a/", "", "__meta__", "a\nb", "a\\b", "\u00e9", "x" * 97]
)
def test_a_key_that_others_misread_is_refused(tmp_path: Path, key: str) -> None:
    with ShardWriter(tmp_path, "text", 10) as writer, pytest.raises(DataError, match="key"):
        writer.write(key, {"npy": b""})


@pytest.mark.parametrize("extension", ["pyd", "pkl", "pickle", "pth", "meta.pkl", "TXT", ".txt", "a/b"])
def test_an_extension_that_is_unpickled_or_misread_is_refused(tmp_path: Path, extension: str) -> None:
    with ShardWriter(tmp_path, "text", 10) as writer, pytest.raises(DataError, match="extension"):
        writer.write("key", {extension: b""})


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, size, link
    return info


hostile = {
    "symbolic link": ([member("a.txt", tarfile.SYMTYPE, link="/etc/passwd")], "not a plain file"),
    "hard link": ([member("a.txt", tarfile.LNKTYPE, link="b.txt")], "not a plain file"),
    "device": ([member("a.txt", tarfile.CHRTYPE)], "not a plain file"),
    "folder": ([member("a", tarfile.DIRTYPE)], "not a plain file"),
    "path out": ([member("../../a.txt")], "key"),
    "absolute path": ([member("/a.txt")], "key"),
    "pickle": ([member("a.pkl")], "unpickle"),
    "no extension": ([member("a")], "extension"),
    "a key twice": ([member("a.txt"), member("b.txt"), member("a.txt")], "key 'a' occurs twice"),
    "dotted keys merged": ([member("v1.5.txt"), member("v1.6.txt"), member("w.txt")], "has the fields"),
    "10 GB that are not there": ([member("a.txt", size=10 << 30)], "damaged or cut|end of data|out of range"),
    "long name": ([member("a" * 150 + ".txt")], "extended header"),
    "a pipe": ([member("a.txt", tarfile.FIFOTYPE)], "not a plain file"),
    "a contiguous file": ([member("a.txt", tarfile.CONTTYPE)], "not a plain file"),
    "a file with holes": ([member("a.txt", tarfile.GNUTYPE_SPARSE)], "not a plain file"),
    "a file of several volumes": ([member("a.txt", b"M")], "not a plain file"),
    "a size below zero": ([member("a.txt", size=-512)], "a size of -512 bytes"),
    "control characters": ([member("a\x1b[2J.txt")], r"'a\\x1b\[2J'"),
    "nothing": ([], "no samples"),
}


@pytest.mark.parametrize(("members", "message"), hostile.values(), ids=hostile.keys())
def test_a_hostile_tar_is_not_indexed(tmp_path: Path, members: list[tarfile.TarInfo], message: str) -> None:
    path = tmp_path / "hostile.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for info in members:
            tar.addfile(info, None)
    with pytest.raises(DataError, match=f"hostile.tar: .*({message})"):
        index_shard(path)


@pytest.mark.parametrize(
    "extended", [{"path": "../a.txt"}, {"size": "5"}, {"GNU.sparse.major": "1"}, {"hdrcharset": "BINARY"}]
)
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_extended_headers_are_not_indexed(tmp_path: Path, extended: dict[str, str], kind: bytes) -> None:
    path = tmp_path / "hostile.tar"
    options = {"pax_headers": extended} if kind == tarfile.XGLTYPE else {}
    info = member("a.txt")
    info.pax_headers = extended if kind == tarfile.XHDTYPE else {}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, **options) as tar:
        tar.addfile(info, None)
    with pytest.raises(DataError, match=r"hostile.tar: .*(extended header|key)"):
        index_shard(path)


damages = {
    "header bit": flip(IN_HEADER),
    "zeroed header": lambda content: content[:3072] + bytes(512) + content[3584:],
    "cut at a member boundary": lambda content: content[: 3 * SAMPLE_BYTES],
    "cut in a header": lambda content: content[: 3 * SAMPLE_BYTES + 100],
    "cut in data": lambda content: content[: 3 * SAMPLE_BYTES + 600],
    "end blocks missing": lambda content: content[: SAMPLES * SAMPLE_BYTES],
    "empty": lambda content: b"",
    "garbage behind the end": lambda content: content + b"x" * 512,
}


@pytest.mark.parametrize("damage", damages.values(), ids=damages.keys())
def test_a_damaged_tar_is_not_indexed(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """Python's own reader ends at such a place as if the archive ended there."""
    path = write_split(tmp_path, SAMPLES, shard_samples=SAMPLES) / "train" / "text-000000.tar"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"text-000000\.tar: "):
        index_shard(path)


def test_more_shards_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.shards.dataset.OPEN_SHARDS", 2)
    write_split(tmp_path, SAMPLES, shard_samples=1)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with closing(Dataset(LocalFolder(tmp_path / "train"), TextManifest)) as dataset:
        for number in [*range(SAMPLES), 0, 5, 0]:
            assert np.load(io.BytesIO(dataset.read(number).fields[0]))[0] == number + 1
        assert len(list(Path("/proc/self/fd").iterdir())) - before <= 5


def test_sample_damaged_is_no_data_error() -> None:
    """One is masked, the other ends the run."""
    assert not issubclass(SampleDamaged, DataError)
