"""Which files a source names: each once, whatever links and patterns lead to it, and all else is told."""

import os
import socket
from pathlib import Path

import pytest

from data_pipeline.errors import DataError
from data_pipeline.preparing.source_files import HIDDEN, OURS, OUTSIDE, SourceFiles, check_apart
from data_pipeline.preparing.workspace import TargetExists


def find(*sources: object) -> SourceFiles:
    found = SourceFiles()
    for source in sources:
        found.add(str(source))
    return found


def names(found: SourceFiles, root: Path) -> list[str]:
    return [str(file.path.relative_to(root)) for file in found.files]


def left_out(found: SourceFiles, root: Path) -> dict[str, str]:
    return {str(Path(entry.name).relative_to(root)): entry.reason for entry in found.left_out}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in ("a.txt", "b/c.txt", "b/d.md", "e/f/g.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


TREE = ["a.txt", "b/c.txt", "b/d.md", "e/f/g.txt"]


def test_loops_end_and_what_has_two_names_is_read_once(tree: Path) -> None:
    (tree / "b" / "up").symlink_to("..")
    (tree / "e" / "round").symlink_to("round")
    (tree / "A").symlink_to("e")
    (tree / "same.txt").hardlink_to(tree / "a.txt")
    found = find(tree)
    assert names(found, tree) == TREE  # the true names count, although A comes first
    assert sorted(str(path.relative_to(tree)) for path in found.duplicates) == ["A", "b/up", "same.txt"]
    assert list(left_out(found, tree)) == ["e/round"]


@pytest.mark.parametrize("pattern", ["**/*.txt", "**", "*", "**/**"])
def test_a_pattern_ends_in_loops_too(tree: Path, pattern: str) -> None:
    for name in ("up", "over", "again"):
        (tree / "b" / name).symlink_to("..")
    text = [name for name in TREE if name.endswith(".txt") or "txt" not in pattern]
    assert names(find(tree / pattern), tree) == text


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt"]),
        ("*/*.txt", ["b/c.txt"]),
        ("[be]/**/*.txt", ["b/c.txt", "e/f/g.txt"]),
        ("b/?.md", ["b/d.md"]),
        ("e*", ["e/f/g.txt"]),
    ],
)
def test_what_a_pattern_matches_as_a_shell_would(tree: Path, pattern: str, expected: list[str]) -> None:
    assert names(find(tree / pattern), tree) == expected


@pytest.mark.parametrize(
    ("pattern", "least"),
    [("**/" * 20 + "*.txt", 1), ("**/d/" * 20 + "*.txt", 21), ("**/?/*/" * 20 + "**", 41)],
)
def test_a_pattern_of_many_any_number_of_folders_ends(tmp_path: Path, pattern: str, least: int) -> None:
    """There are more ways to match than could ever be tried."""
    written = [Path(*"d" * depth, "a.txt") for depth in (60, 41, 20, 19, 0)]
    for name in written:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(str(name))
    assert {*names(find(tmp_path / pattern), tmp_path)} == {
        str(name) for name in written if len(name.parts) >= least
    }


def test_a_pattern_looks_no_deeper_than_it_reaches(tree: Path) -> None:
    (tree / "b" / "out").symlink_to("/")
    os.mkfifo(tree / "b" / "pipe.txt")
    assert find(tree / "*.txt").left_out == []
    assert left_out(find(tree / "*/*.txt"), tree) == {"b/pipe.txt": "a pipe, socket or device"}


def test_links_that_lead_out_are_listed_and_can_be_named(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "book.txt").write_text("book")
    (tmp_path / "secret.txt").write_text("secret")
    (tree / "books").symlink_to("../books")
    (tree / "secret.txt").symlink_to(tmp_path / "secret.txt")
    (tree / "b" / "gone.txt").symlink_to("nowhere")
    found = find(tree)
    assert names(found, tree) == TREE
    listed = left_out(found, tree)
    assert listed.pop("b/gone.txt").startswith("a link to nothing")
    assert listed == {"books": OUTSIDE, "secret.txt": OUTSIDE}
    assert names(find(tree / "books", tree / "secret.txt"), tree) == ["books/book.txt", "secret.txt"]


def test_a_link_to_what_is_hidden_within_is_followed(tree: Path) -> None:
    """So do git-annex, DVC and Kubernetes lay out their folders."""
    (tree / ".store").mkdir()
    (tree / ".store" / "0123").write_text("content")
    (tree / "z.txt").symlink_to(".store/0123")
    found = find(tree)
    assert names(found, tree) == [*TREE, "z.txt"]
    assert left_out(found, tree) == {".store": HIDDEN}


def test_a_source_that_is_a_link_is_followed(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree)
    assert names(find(tmp_path / "link"), tmp_path / "link") == TREE
    assert find(tree, tmp_path / "link").duplicates == [tmp_path / "link" / name for name in TREE]


def test_sources_that_overlap_are_counted_once(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree.parent)
    found = find("tree", tree, "tree/b/c.txt", f"file://{tree}", f"file://localhost{tree}")
    assert names(found, Path("tree")) == TREE
    assert len(found.duplicates) == 13
    assert [file.named for file in found.files] == [False, True, False, False]


def test_a_file_url_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "caf\u00e9.txt").write_text("x")
    assert len(find(f"file://{tmp_path}/a%20b/caf%C3%A9.txt").files) == 1
    with pytest.raises(DataError, match="names another host; on this one it is file:///data/x"):
        find("file://data/x")
    with pytest.raises(DataError, match="%00 is a NUL character"):
        find("file:///data/a%00b")
    with pytest.raises(DataError, match="is no file of this machine; download it first"):
        find("https://example.org/a.txt")


def test_pipes_sockets_and_unreadable_folders_are_listed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tree / "pipe")
    monkeypatch.chdir(tree)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        found = find(tree)
    assert left_out(found, tree) == dict.fromkeys(["pipe", "socket"], "a pipe, socket or device")
    with pytest.raises(DataError, match="is a pipe, socket or device; sources are read several times"):
        find(tree / "pipe")


def test_an_unreadable_folder_is_listed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another user than root, for whom everything is readable."""
    (tree / "b").chmod(0)
    monkeypatch.chdir(tree)
    user = os.geteuid()
    try:
        os.seteuid(65534 if user == 0 else user)
        found = find(".")
    finally:
        os.seteuid(user)
        (tree / "b").chmod(0o755)
    assert left_out(found, Path(".")) == {"b": "Permission denied"}
    assert names(found, Path(".")) == ["a.txt", "e/f/g.txt"]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "names")
    os.mkdir(folder)
    for name in (b"caf\xe9.txt", b"new\nline", b"esc\x1b[2J"):
        Path(os.fsdecode(os.path.join(folder, name))).write_text("x")
    assert len(find(os.fsdecode(folder)).files) == 3
    with pytest.raises(DataError, match=r"caf\\udce9: no such file"):
        find(os.fsdecode(os.path.join(folder, b"caf\xe9")))


@pytest.mark.parametrize("mark", ["prepare.json", "manifest.json"])
def test_prepared_data_is_no_raw_data(tree: Path, mark: str) -> None:
    (tree / "e" / mark).write_text('{"format": 1, "task": "text", "kind": "text", "split": "x", "files": {}}')
    assert left_out(find(tree), tree) == {"e": OURS}
    with pytest.raises(DataError, match="is prepared data, which is no raw data"):
        find(tree / "e")
    (tree / "e" / mark).write_text('{"name": "a file of somebody else by that name"}')
    assert len(find(tree / "e").files) == 2


def test_output_and_sources_lie_apart(tree: Path) -> None:
    (tree.parent / "link").symlink_to(tree)
    for out in (tree / "data", tree, tree.parent / "link" / "data"):
        with pytest.raises(TargetExists, match=r"lies in the source .*; choose another --out"):
            check_apart(out, find(tree))
    for out in (tree / "b", tree.parent / "link" / "b", tree.parent):
        with pytest.raises(TargetExists, match=r"holds the source .*; choose another --out"):
            check_apart(out, find(tree / "b" / "c.txt"))
    check_apart(tree / "data", find(tree / "*.txt"))
    check_apart(tree.parent / "data", find(tree))


def test_a_source_that_is_left_out_as_a_whole_says_why(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a").symlink_to(tree)
    with pytest.raises(
        DataError, match=r"no files in such a folder or pattern \(.*links/a: a link that leads"
    ):
        find(tmp_path / "links")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(DataError, match="dangling: is a link to nothing"):
        find(tmp_path / "dangling")
