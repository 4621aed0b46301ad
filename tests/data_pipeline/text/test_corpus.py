"""Documents from files as users have them."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pytest
import zstandard

from data_pipeline.errors import DataError
from data_pipeline.preparing.documents import LONGEST_ROW
from data_pipeline.preparing.source_files import LeftOut
from data_pipeline.text.corpus import LONG_FILE, PYTHON_STDLIB, Corpus


def texts(*sources: object, field: str = "text") -> list[str]:
    return [document.text for document in Corpus([str(source) for source in sources], field).documents()]


def lines(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def test_files_folders_and_patterns_in_order_each_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.py", ".hidden", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["a.md", "b.txt", "sub/c.py"]
    assert texts(tmp_path / "b.txt", tmp_path) == ["b.txt", "a.md", "sub/c.py"]
    assert texts(tmp_path / "**" / "*.py") == ["sub/c.py"]


def test_text_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo  \n\n\tthree\rfour".encode())
    assert texts(tmp_path / "a.txt") == ["one\r\ntwo  \n\n\tthree\rfour"]


def test_a_long_file_is_cut_at_line_ends(tmp_path: Path) -> None:
    content = "".join(f"line {number} of a long file\n" for number in range(LONG_FILE // 20))
    (tmp_path / "long.txt").write_text(content)
    pieces = texts(tmp_path / "long.txt")
    assert len(pieces) > 100
    assert all(piece.endswith("\n") for piece in pieces)
    assert "".join(pieces) == content


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    content = lines({"text": "one\n", "x": 1}, {"text": ""}, {"text": "two"}) + b"\n"
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(content) if suffix != ".zst" else compress(content[:9]) + compress(content[9:]))
    assert texts(path) == ["one\n", "two"]


def test_rows_without_text_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "one"}, {"text": ""}, {"text": ""}, {"text": " "}))
    corpus = Corpus([str(tmp_path)], "text")
    corpus.survey()
    assert {name: corpus.summary[name] for name in ("documents", "empty")} == {"documents": 2, "empty": 2}


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_cut_compressed_file_is_named(tmp_path: Path, suffix: str) -> None:
    content = b"".join(lines({"text": f"{number * 7919 % 10007}"}) for number in range(50_000))
    compress = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
    compressed = compress(content)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(compressed[: len(compressed) - 3])
    with pytest.raises(DataError, match=rf"a\.txt{suffix}: the compressed file is damaged or cut"):
        texts(path)
    path.write_bytes(b"plainly not compressed")
    with pytest.raises(DataError, match="damaged or cut"):
        texts(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (lines({"title": "x", "body": "y"}), "no field 'text', only title, body; choose with --field"),
        (lines({"text": 3}), "field 'text' is no string"),
        (lines(["text"]), "not a JSON object"),
        (b'{"text": "x"\n', "not JSON"),
        (b'{"text": "\xff"}\n', "not JSON"),
    ],
)
def test_a_line_that_does_not_fit_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "fine"}) + line)
    with pytest.raises(DataError, match=rf"a\.jsonl, line 2: {message}"):
        texts(tmp_path / "a.jsonl")


PACKERS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
LONG_TEXT = "".join(f"{number * 7919 % 10007} words\n" for number in range(40_000))


@pytest.mark.parametrize("suffix", ["", *PACKERS])
@pytest.mark.parametrize("bad", [b"\xff", b"\0", b"\xe4\xb8"], ids=["not UTF-8", "NUL", "cut character"])
def test_nothing_of_a_file_that_is_left_out_is_read(tmp_path: Path, suffix: str, bad: bytes) -> None:
    """The bad byte is the last of a file that is long enough for many documents."""
    (tmp_path / "a.txt").write_text("fine")
    content = LONG_TEXT.encode() + bad
    (tmp_path / f"b.txt{suffix}").write_bytes(PACKERS.get(suffix, bytes)(content))
    corpus = Corpus([str(tmp_path)], "text")
    assert [document.text for document in corpus.documents()] == ["fine"]
    assert [Path(entry.name).name for entry in corpus.left_out] == [f"b.txt{suffix}"]
    assert corpus.summary["documents"] == corpus.summary["files"] == 1


@pytest.mark.parametrize("suffix", PACKERS)
def test_damage_and_cuts_of_every_compression_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix.upper()}"
    packed = PACKERS[suffix](LONG_TEXT.encode())
    path.write_bytes(packed)
    assert "".join(texts(path)) == LONG_TEXT
    damaged = bytearray(packed)
    damaged[-4 if suffix != ".gz" else -7] ^= 1  # a checksum, or what is behind all content
    for content in (packed[:-1], packed[: len(packed) // 2], bytes(damaged), b"", b"no such thing"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"the compressed file is damaged or cut"):
            texts(tmp_path)


@pytest.mark.parametrize("suffix", PACKERS)
def test_every_stream_of_a_compressed_file_is_read_or_named_as_damaged(tmp_path: Path, suffix: str) -> None:
    """Parallel packers write many streams; zeros behind one are padding, as of tapes and of xz."""
    path = tmp_path / f"a.txt{suffix}"
    first, second = (PACKERS[suffix](text.encode()) for text in (LONG_TEXT, "the end"))
    path.write_bytes(first + second)
    assert "".join(texts(path)) == LONG_TEXT + "the end"
    damaged = bytearray(second)
    damaged[1] ^= 1
    for rest in (bytes(damaged), second[1:], b"rubbish", second + b"x"):
        path.write_bytes(first + rest)
        with pytest.raises(DataError, match=r"the compressed file is damaged or cut"):
            texts(path)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_zeros_behind_a_stream_are_padding(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACKERS[suffix](b"one ") + bytes(20_000) + PACKERS[suffix](b"two") + bytes(4))
    assert "".join(texts(path)) == "one two"


@pytest.mark.parametrize(
    "name",
    [
        "a.json",
        "a.json.gz",
        "a.json.zst",
        "a.ndjson",
        "A.JSONL",
        "a.jsonl.bz2",
        "a.jsonl.xz",
        "part-0",
        "x.txt",
    ],
)
def test_json_lines_by_any_name(tmp_path: Path, name: str) -> None:
    content = b"\xef\xbb\xbf\n" + b'{"text": "one", "n": 1%s, "x": NaN}\n{"text": "two"}' % (b"0" * 5000)
    (tmp_path / name).write_bytes(PACKERS.get(Path(name).suffix, bytes)(content))
    assert texts(tmp_path) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b'[{"text": "x"}]', "a JSON array"),
        ("a.txt", b' [\n {\n  "text": "x"}]', "a JSON array"),
        ("a.json", b'{\n "text": "x"\n}', "JSON, but not JSON lines"),
        (
            "a",
            b'{"title": "x", "url": "y"}\n',
            "JSON lines without the field 'text', only title, url; choose with --field",
        ),
        ("a.csv", b"text,label\nx,1\n", "a table; --format text takes it as it is"),
        ("a.tsv.gz", gzip.compress(b"text\tlabel\n", mtime=0), "a table"),
        ("a.pdf", b"%PDF-1.4 plain", "a PDF document"),
        ("a.txt", b"PK\x03\x04 rest", "a zip archive"),
        ("a.txt", b"x" * 257 + b"ustar  \0", "a tar archive"),
        ("a.tar.gz", gzip.compress(b"x" * 257 + b"ustar  \0", mtime=0), "a tar archive"),
        ("a.txt", gzip.compress(b"text", mtime=0), "compressed by gzip, but its name does not end in .gz"),
        ("a.txt", "text".encode("utf-16"), "UTF-16"),
        ("a.txt", "text".encode("utf-16-le"), "holds NUL bytes"),
        ("a.parquet", b"PAR1\x15\x04rest", "a Parquet file"),
    ],
)
def test_what_only_looks_like_text(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    (tmp_path / "z.txt").write_text("fine")
    corpus = Corpus([str(tmp_path)], "text")
    assert [document.text for document in corpus.documents()] == ["fine"]
    assert [entry.reason.startswith(reason) for entry in corpus.left_out] == [True]
    with pytest.raises(DataError) as raised:
        texts(tmp_path / name)
    assert str(raised.value).startswith(f"{tmp_path / name}: {reason}")


def test_text_that_begins_like_json_is_text(tmp_path: Path) -> None:
    contents = ['{"text": one', "{}{}", "[1] note", '{ "a": \n', "{" * 100_000]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.txt").write_text(content)
    assert texts(tmp_path) == contents


def test_a_format_can_be_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(lines({"text": "x"}) + b"\0")
    assert [d.text for d in Corpus([str(tmp_path)], "text", "text").documents()] == ['{"text": "x"}\n\0']
    (tmp_path / "a.csv").write_bytes(lines({"text": "x"}))
    assert [d.text for d in Corpus([str(tmp_path)], "text", "jsonl").documents()] == ["x"]


def test_a_long_line_is_cut_at_whitespace(tmp_path: Path) -> None:
    """As in text8, which is one line of 100 MB; without whitespace it is cut between characters."""
    words = " ".join(f"word{number}" for number in range(200_000))
    (tmp_path / "a.txt").write_text(words)
    pieces = texts(tmp_path)
    assert len(pieces) > 20
    assert "".join(pieces) == words
    assert all(piece[-1] == " " for piece in pieces[:-1])
    (tmp_path / "a.txt").write_text("\u4e2d\U0001f43e" * 200_000)
    pieces = texts(tmp_path)
    assert len(pieces) > 5
    assert "".join(pieces) == "\u4e2d\U0001f43e" * 200_000


def test_a_long_row_is_cut_and_counted(tmp_path: Path) -> None:
    words = "\ufeff" + " ".join(f"word{number}" for number in range(200_000))
    (tmp_path / "a.jsonl").write_bytes(lines({"text": words}, {"text": "short"}))
    corpus = Corpus([str(tmp_path)], "text")
    pieces = [document.text for document in corpus.documents()]
    assert pieces[-1] == "short"
    assert "".join(pieces[:-1]) == words
    assert corpus.summary["cut"] == 1
    assert corpus.summary["documents"] == len(pieces) > 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "' + b"x" * (LONGEST_ROW + 1), "line 1: longer than 64 MiB"),
        ("a.txt.gz", gzip.compress(b"x" * (80 << 20), mtime=0), "unpacks to more than 250 times its size"),
        ("a.txt.bz2", bz2.compress(b"x" * (80 << 20), 1), "unpacks to more than 250 times its size"),
        ("a.txt.zst", zstandard.compress(b"x" * (80 << 20)), "unpacks to more than 250 times its size"),
        ("a.jsonl", b"[" * 1_000_000 + b"\n", "line 1: not JSON: nested too deeply"),
        ("a.jsonl", b'{"a":' * 100_000 + b"\n", "line 1: not JSON: nested too deeply"),
    ],
)
def test_caps_are_told_by_their_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        texts(tmp_path)


def test_a_window_of_zstd_that_takes_too_much_memory_is_told(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=29, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.txt.zst").write_bytes(packer.compress(b"text") + packer.flush())
    with pytest.raises(DataError, match="window of more than 128 MiB"):
        texts(tmp_path)


def test_a_file_that_changes_under_the_reader_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("before")
    corpus = Corpus([str(tmp_path)], "text")
    corpus.survey()
    (tmp_path / "a.txt").write_text("behind all this")
    with pytest.raises(DataError, match=r"a\.txt: has changed while it was read"):
        list(corpus.documents())


def test_another_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"body": "x"}))
    assert texts(tmp_path / "a.jsonl", field="body") == ["x"]


def test_what_is_not_text_is_left_out_of_folders_and_listed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "b.txt").write_text("fine")
    (tmp_path / "c.jsonl").write_bytes(lines({"text": "\ud83d"}, {"text": "good"}))
    corpus = Corpus([str(tmp_path)], "text")
    for _ in range(2):  # a second survey does not count twice
        corpus.survey()
        assert [document.text for document in corpus.documents()] == ["fine", "good"]
        assert corpus.left_out == (
            LeftOut(f"{tmp_path}/a.txt", "not UTF-8 (unexpected end of data)"),
            LeftOut(f"{tmp_path}/c.jsonl, line 1", "half a surrogate pair"),
        )


def test_a_file_that_was_named_must_be_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ok \xff")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8"):
        texts(tmp_path / "a.txt")


@pytest.mark.parametrize("source", ["missing.txt", "*.nothing", ""])
def test_a_source_without_files_is_named(tmp_path: Path, source: str) -> None:
    with pytest.raises(DataError, match="no such file, and no files"):
        texts(tmp_path / source)


def test_consumed_bytes_add_up(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines({"text": "x"}, {"text": "y"})))
    (tmp_path / "b.txt").write_text("some text")
    corpus = Corpus([str(tmp_path)], "text")
    assert sum(document.consumed for document in corpus.documents()) == corpus.bytes


def test_the_standard_library_of_an_interpreter_below_a_folder_named_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "test" / "lib"
    for name in ("a.py", "test/b.py", "site-packages/c.py", "json/tests/d.py", "json/e.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(root)})
    assert texts(PYTHON_STDLIB) == ["a.py", "json/e.py"]


def test_the_standard_library() -> None:
    corpus = Corpus([PYTHON_STDLIB], "text")
    assert corpus.bytes > 5_000_000
    assert any(path.name == "argparse.py" for path in corpus.files)
    assert not any({"test", "tests", "site-packages"} & set(path.parts) for path in corpus.files)
    assert list(corpus.files) == sorted(corpus.files)
