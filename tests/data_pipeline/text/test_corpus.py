"""Documents from files as users have them."""

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from data_pipeline.errors import DataError
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


def test_another_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"body": "x"}))
    assert texts(tmp_path / "a.jsonl", field="body") == ["x"]


def test_what_is_not_text_is_left_out_of_folders_and_listed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "b.txt").write_text("fine")
    (tmp_path / "c.jsonl").write_bytes(lines({"text": "\ud83d"}, {"text": "good"}))
    corpus = Corpus([str(tmp_path)], "text")
    for _ in range(2):  # a second reading does not count twice
        assert [document.text for document in corpus.documents()] == ["fine", "good"]
        assert corpus.skipped == [
            f"{tmp_path}/a.txt: not UTF-8",
            f"{tmp_path}/c.jsonl, line 1: half a surrogate pair",
        ]


def test_a_file_that_was_named_must_be_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ok \xff")
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 text"):
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
