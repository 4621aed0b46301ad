"""`surefoot prepare translation` from raw files of all kinds to pairs, and what it refuses."""

import gzip
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import webdataset
import zstandard

from data_pipeline.__main__ import main
from data_pipeline.text.tokenizer import END_OF_TEXT, Tokenizer, train_tokenizer
from data_pipeline.translation.filters import Filter, Limits

WORDS = {"dog": "Hund", "cat": "Katze", "runs": "rennt", "sleeps": "schläft", "red": "rot", "old": "alt"}
OPTIONS = ["--validation-fraction", "0.2", "--workers", "1"]


def sentences(count: int = 40) -> tuple[list[str], list[str]]:
    """No two pairs are the same."""
    english, german = list(WORDS), list(WORDS.values())
    chosen = [[(number // 6**place) % 6 for place in range(3 + number % 3)] for number in range(count)]
    return [[" ".join(words[n] for n in line) for line in chosen] for words in (english, german)]  # type: ignore


SOURCES, TARGETS = sentences()
LONG = "".join(random.Random(0).choices("acdeglnoprst", k=300))
"""Of letters that there are, and of few pieces."""


def lines(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


@pytest.fixture
def raw(tmp_path: Path) -> list[str]:
    """The words of a command line that name two parallel files."""
    source, target = lines(tmp_path / "raw.en", SOURCES), lines(tmp_path / "raw.de", TARGETS)
    return ["--source", str(source), "--target", str(target)]


def run(out: Path, *words: object) -> int:
    tokenizer = [] if "--tokenizer" in words else ["--vocabulary-size", "300"]
    return main(["translation", "--out", str(out), *tokenizer, *OPTIONS, *map(str, words)])


def manifest(out: Path, split: str) -> dict[str, Any]:
    return dict(json.loads((out / split / "manifest.json").read_text()))


def summary(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "prepare.json").read_text())["summary"])


def pairs(out: Path, split: str) -> list[tuple[str, str]]:
    """What a plain webdataset reads, as text."""
    urls = [str(path) for path in sorted((out / split).glob("*.tar"))]
    entries = [manifest(out, split)[f"{side}_tokenizer"] for side in ("source", "target")]
    tokenizers = [Tokenizer.load(out / entry["file"]) for entry in entries]
    found = []
    for sample in webdataset.WebDataset(urls, shardshuffle=False).decode():
        sides = [sample[f"{side}.npy"].tolist() for side in ("source", "target")]
        assert [ids[-1] for ids in sides] == [tokenizer.end_of_text for tokenizer in tokenizers]
        source, target = (one.decode(ids[:-1]) for one, ids in zip(tokenizers, sides, strict=True))
        found.append((source, target))
    return found


def all_pairs(out: Path) -> list[tuple[str, str]]:
    return sorted(pairs(out, "train") + pairs(out, "validation"))


EXPECTED = sorted(zip(SOURCES, TARGETS, strict=True))


def test_parallel_files(tmp_path: Path, raw: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(out, *raw, "--shard-samples", 10) == 0
    told = capsys.readouterr().out
    assert "read 40 pairs from 2 files" in told
    assert "left out none" in told
    assert all_pairs(out) == EXPECTED
    for split in ("train", "validation"):
        kept, facts = pairs(out, split), manifest(out, split)
        assert facts["samples"] == len(kept)
        tokenizer = Tokenizer.load(out / "tokenizer.model")
        for side, place in (("source", 0), ("target", 1)):
            lengths = [len(tokenizer.encode(pair[place])) + 1 for pair in kept]
            assert facts[f"{side}_tokens"] == sum(lengths)
            assert facts[f"longest_{side}"] == max(lengths)
    assert manifest(out, "validation")["unigram_cross_entropy"] > 0
    assert len(manifest(out, "train")["shards"]) > 1
    order = [EXPECTED.index(pair) for pair in pairs(out, "train")]
    assert order == [
        EXPECTED.index(p) for p in zip(SOURCES, TARGETS, strict=True) if p in pairs(out, "train")
    ]


def table(folder: Path) -> Path:
    text = "".join(f"{source}\t{target}\r\n" for source, target in zip(SOURCES, TARGETS, strict=True))
    (folder / "both.tsv.gz").write_bytes(gzip.compress(text.encode()))
    return folder / "both.tsv.gz"


def json_lines(folder: Path) -> Path:
    rows = (
        json.dumps({"en": one, "de": other, "id": 3}) for one, other in zip(SOURCES, TARGETS, strict=True)
    )
    (folder / "both.jsonl.zst").write_bytes(zstandard.compress("\n".join(rows).encode()))
    return folder / "both.jsonl.zst"


def test_tables_and_json_lines_hold_both_sides(tmp_path: Path) -> None:
    assert run(tmp_path / "a", "--pairs", table(tmp_path)) == 0
    assert run(tmp_path / "b", "--pairs", json_lines(tmp_path), "--fields", "en", "de") == 0
    assert all_pairs(tmp_path / "a") == all_pairs(tmp_path / "b") == EXPECTED


def test_several_files_and_given_validation(tmp_path: Path, raw: list[str]) -> None:
    more = [
        lines(tmp_path / "more.en", ["a red dog"] * 2),
        lines(tmp_path / "more.de", ["ein roter Hund"] * 2),
    ]
    valid = [lines(tmp_path / "valid.en", ["old dog"]), lines(tmp_path / "valid.de", ["alter Hund"])]
    words = [raw[0], raw[1], more[0], raw[2], raw[3], more[1]]
    assert (
        run(tmp_path / "out", *words, "--validation-source", valid[0], "--validation-target", valid[1]) == 0
    )
    given = [*zip(SOURCES, TARGETS, strict=True), *[("a red dog", "ein roter Hund")] * 2]
    assert pairs(tmp_path / "out", "train") == given, "in the order of the files, and nothing is held out"
    assert pairs(tmp_path / "out", "validation") == [("old dog", "alter Hund")]


def test_other_processes_and_another_time_make_the_same(tmp_path: Path, raw: list[str]) -> None:
    for name, workers in (("a", 1), ("b", 2)):
        assert run(tmp_path / name, *raw, "--workers", workers) == 0
    made = [{path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in ("a", "b")]
    assert made[0] == made[1]


def test_made_again_it_is_left_alone_and_with_other_settings_refused(
    tmp_path: Path, raw: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "out", *raw) == run(tmp_path / "out", *raw) == 0
    assert "complete already" in capsys.readouterr().out
    assert run(tmp_path / "out", *raw, "--max-length", 30) == 2
    assert "(limits differ)" in capsys.readouterr().err
    swapped = [raw[0], raw[3], raw[2], raw[1]]
    assert run(tmp_path / "out", *swapped) == 2
    assert "(files differ)" in capsys.readouterr().err


def test_two_vocabularies(tmp_path: Path, raw: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "out", *raw, "--separate", "--vocabulary-size", 290) == 0
    assert "vocabulary 290\n" in capsys.readouterr().out
    entries = [manifest(tmp_path / "out", "train")[f"{side}_tokenizer"] for side in ("source", "target")]
    assert [entry["file"] for entry in entries] == ["source.model", "target.model"]
    assert entries[0]["sha256"] != entries[1]["sha256"]
    assert all_pairs(tmp_path / "out") == EXPECTED
    given = [tmp_path / "out" / entry["file"] for entry in entries]
    assert run(tmp_path / "again", *raw, "--tokenizer", *given) == 0
    assert manifest(tmp_path / "again", "train") == manifest(tmp_path / "out", "train")


def test_a_given_tokenizer_serves_both_sides(tmp_path: Path, raw: list[str]) -> None:
    tokenizer = train_tokenizer(SOURCES + TARGETS, 310)
    (tmp_path / "my.model").write_bytes(tokenizer.model)
    assert run(tmp_path / "out", *raw, "--tokenizer", tmp_path / "my.model") == 0
    entry = manifest(tmp_path / "out", "validation")["target_tokenizer"]
    assert entry == {"file": "tokenizer.model", "sha256": tokenizer.digest, "vocabulary_size": 310}


def test_what_is_left_out_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extra = [
        ("", "leer"),
        ("empty", "  "),
        ("same", "same"),
        (SOURCES[0], TARGETS[0]),
        ("x", "y" * 30),
        (LONG[:160], LONG[160:]),
    ]
    both = [*zip(SOURCES, TARGETS, strict=True), *extra]
    words: list[object] = []
    for side, texts in zip(("source", "target"), zip(*both, strict=True), strict=True):
        words += [f"--{side}", lines(tmp_path / side, texts)]
    words += ["--validation-pairs", lines(tmp_path / "v.tsv", ["dog\tHund", "\t", "cat\tKatze"])]
    assert run(tmp_path / "all", *words) == 0
    assert summary(tmp_path / "all")["left_out"] == {
        "train": {"a side is empty": 2},
        "validation": {"a side is empty": 1},
    }
    limits = ["--max-length", 60, "--max-ratio", 4, "--drop-copies", "--drop-untranslated"]
    capsys.readouterr()
    assert run(tmp_path / "some", *words, *limits) == 0
    assert summary(tmp_path / "some")["pairs"] == 49
    assert summary(tmp_path / "some")["left_out"] == {
        "train": {
            "a side is empty": 2,
            "target equal to source": 1,
            "copy of an earlier pair": 1,
            "longer than --max-length": 1,
            "lengths beyond --max-ratio": 1,
        },
        "validation": {"a side is empty": 1},
    }
    assert (
        "left out 2 of train (a side is empty), 1 of train (target equal to source)"
        in capsys.readouterr().out
    )
    assert pairs(tmp_path / "some", "train") == list(zip(SOURCES, TARGETS, strict=True))


def test_a_copy_has_the_same_two_sides() -> None:
    """Sentences out of JSON may hold line ends."""
    kept = Filter(Limits(max_length=None, max_ratio=None, drop_copies=True, drop_untranslated=False))
    pairs = [("a\nb", "c"), ("a", "b\nc"), (" a", "b\nc"), ("a", "bc"), ("ab", "c")]
    assert [kept.keeps_text(*pair) for pair in pairs] == [True, True, False, True, True]


def test_translations_of_one_sentence_stay_in_one_split(tmp_path: Path) -> None:
    rows = [
        f"{source}\t{target} {copy}"
        for copy in range(3)
        for source, target in zip(SOURCES, TARGETS, strict=True)
    ]
    assert run(tmp_path / "out", "--pairs", lines(tmp_path / "a.tsv", rows)) == 0
    train, validation = (
        {source for source, _ in pairs(tmp_path / "out", split)} for split in ("train", "validation")
    )
    assert not train & validation
    assert len(train) + len(validation) == len(SOURCES)


def test_line_ends_that_unicode_knows_keep_the_sides_in_step(tmp_path: Path) -> None:
    """As `str.splitlines` would not; a byte order mark and a last line without an end change nothing either."""
    (tmp_path / "a.en").write_bytes("\ufeffone\u2028half\x0b\nanother\r\nlast".encode())
    (tmp_path / "a.de").write_bytes("eins\neine\x85andere\nletzte\n".encode())
    words = ["--source", tmp_path / "a.en", "--target", tmp_path / "a.de", "--validation-fraction", "0"]
    assert run(tmp_path / "out", *words) == 0
    assert pairs(tmp_path / "out", "train") == [
        ("one\u2028half\x0b", "eins"),
        ("another", "eine\x85andere"),
        ("last", "letzte"),
    ]
    assert not (tmp_path / "out" / "validation").exists()


def refused(capsys: pytest.CaptureFixture[str], out: Path, *words: object, code: int = 3) -> str:
    assert run(out, *words) == code
    assert not out.exists()
    return capsys.readouterr().err


def test_unequal_files_are_named_with_their_counts(
    tmp_path: Path, raw: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    short = lines(tmp_path / "short.de", TARGETS[:37])
    told = refused(capsys, tmp_path / "out", *raw[:3], short)
    assert f"{raw[1]} has 40 lines, but {short} has 37; line by line they must be translations" in told
    told = refused(capsys, tmp_path / "out", "--source", short, "--target", raw[1])
    assert f"{short} has 37 lines, but {raw[1]} has 40" in told


@pytest.mark.parametrize(("source", "target"), [(5000, 5000), (5000, 3000), (3000, 5000)])
def test_blank_lines_keep_the_sides_in_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: int, target: int
) -> None:
    """However many there are: between sentences, beside them, and behind the last."""
    sides = [
        lines(tmp_path / name, [*texts[:20], *[""] * count, *texts[20:], "", "", last])
        for name, texts, count, last in (("a", SOURCES, source, ""), ("b", TARGETS, target, "x"))
    ]
    words = ["--source", sides[0], "--target", sides[1], "--validation-fraction", 0]
    if source != target:
        told = refused(capsys, tmp_path / "out", *words)
        assert f"has {source + 43:,} lines, but {sides[1]} has {target + 43:,}" in told
        return
    assert run(tmp_path / "out", *words) == 0
    assert pairs(tmp_path / "out", "train") == list(zip(SOURCES, TARGETS, strict=True))
    assert summary(tmp_path / "out")["pairs"] == source + 43
    assert summary(tmp_path / "out")["left_out"] == {"train": {"a side is empty": source + 3}}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "a.tsv",
            b"one\ttwo\nthree\n",
            "a.tsv, line 2: has 0 tabs; a row is a source, one tab and its target",
        ),
        ("a.tsv", b"one\ttwo\tthree\n", "a.tsv, line 1: has 2 tabs"),
        ("a.tsv", b"one\ttwo\n\xff\tx\n", "a.tsv, line 2: not UTF-8 (invalid start byte)"),
        ("a.tsv", "one\ttwo\n".encode("utf-16"), "a.tsv, line 1: holds NUL bytes"),
        (
            "a.jsonl",
            b'{"source": "x"}\n',
            "a.jsonl, line 1: no field 'target', only source; choose with --fields",
        ),
        ("a.jsonl", b'{"source": "x", "target": 3}\n', "a.jsonl, line 1: field 'target' is no string"),
        ("a.jsonl", b'{"source": "x", "target": "\\ud800"}\n', "field 'target' has half a surrogate pair"),
        ("a.jsonl", b"[1]\n", "a.jsonl, line 1: not a JSON object"),
        ("a.txt", b"one\ttwo\n", "is neither a table (.tsv) nor JSON lines"),
        ("a.tsv.gz", b"one\ttwo\n", "the compressed file is damaged or cut"),
        ("a.tsv", b"", "the train split has no pair"),
        ("a.tsv", b"\t\n\n \n", "the train split has no pair (3 left out: a side is empty)"),
    ],
)
def test_what_is_no_table_of_pairs_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    words = ["--pairs", tmp_path / name, "--validation-fraction", "0"]
    assert told in refused(capsys, tmp_path / "out", *words)


JSON_SIDE = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in SOURCES)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.en.jsonl", JSON_SIDE, "is JSON lines by its name"),
        ("x.en.NDJSON.gz", gzip.compress(JSON_SIDE), "is JSON lines by its name"),
        ("x.en", JSON_SIDE, "is JSON lines, and a side of a translation has a sentence a line"),
        ("x.en", b"\xef\xbb\xbf\n" + JSON_SIDE, "is JSON lines"),
        ("x.gz", gzip.compress(JSON_SIDE), "is JSON lines"),
        ("x.en", b'[\n  {"text": "x"}\n]\n', "is a JSON array"),
        ("x.json", b"[]\n", "is JSON by its name"),
        ("x.tsv", b"a\tb\n", "is a table by its name"),
    ],
)
@pytest.mark.parametrize("side", [1, 3])
def test_a_side_is_text_and_nothing_else(
    tmp_path: Path,
    raw: list[str],
    capsys: pytest.CaptureFixture[str],
    side: int,
    name: str,
    content: bytes,
    told: str,
) -> None:
    (tmp_path / name).write_bytes(content)
    raw[side] = str(tmp_path / name)
    found = refused(capsys, tmp_path / "out", *raw)
    assert f"{name}: {told}" in found
    assert "with --pairs" in found


def test_sentences_with_braces_are_a_side(tmp_path: Path) -> None:
    sides = (
        lines(tmp_path / "a", ["{}", "{ one", *SOURCES]),
        lines(tmp_path / "b", ["{}", "{ eins", *TARGETS]),
    )
    assert run(tmp_path / "out", "--source", sides[0], "--target", sides[1], "--validation-fraction", 0) == 0
    assert pairs(tmp_path / "out", "train")[:2] == [("{}", "{}"), ("{ one", "{ eins")]


def test_an_empty_validation_split_ends_the_command(
    tmp_path: Path, raw: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*raw, "--validation-pairs", lines(tmp_path / "v.tsv", [])]
    told = refused(capsys, tmp_path / "out", *words)
    assert told.endswith("the validation split has no pair; give more text or looser limits\n")
    long = lines(tmp_path / "long.tsv", ["word " * 50 + "\tWort"])
    told = refused(capsys, tmp_path / "out", *raw, "--validation-pairs", long, "--max-length", 40)
    assert "the validation split has no pair (1 left out: longer than --max-length)" in told


def test_a_tokenizer_that_does_not_fit_is_refused(
    tmp_path: Path, raw: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.model").write_bytes(b"no tokenizer")
    told = refused(capsys, tmp_path / "out", *raw, "--tokenizer", tmp_path / "bad.model")
    assert "bad.model: not a sentencepiece model" in told
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SOURCES),
        model_writer=model,
        vocab_size=300,
        model_type="bpe",
        normalization_rule_name="identity",
        byte_fallback=True,
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
        control_symbols=[END_OF_TEXT],
        unk_id=1,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    (tmp_path / "other.model").write_bytes(model.getvalue())
    told = refused(capsys, tmp_path / "out", *raw, "--tokenizer", tmp_path / "other.model")
    assert "other.model: id 0 must be that of the unknown piece, as it stands for padding" in told


def test_files_are_named_one_by_one(
    tmp_path: Path, raw: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    lines(folder / "a.en", SOURCES)
    told = refused(capsys, tmp_path / "out", "--source", folder, *raw[2:])
    assert "folder: is no file; name the files one by one, in the order of the other side" in told
    assert "no such file" in refused(capsys, tmp_path / "out", "--source", tmp_path / "none", *raw[2:])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "name the files with --source and --target, or with --pairs"),
        (
            ["--source", "a", "b", "--target", "c"],
            "--source and --target name 2 and 1 files; name a target for each source",
        ),
        (
            ["--pairs", "a.tsv", "--validation-source", "b"],
            "--validation-source and --validation-target name 1 and 0 files",
        ),
        (
            ["--pairs", "a.tsv", "--tokenizer", "a", "b", "c"],
            "--tokenizer takes one file for both sides, or one for",
        ),
        (["--pairs", "a.tsv", "--tokenizer", "a", "--separate"], "give one of them"),
        (["--pairs", "a.tsv", "--max-ratio", "0.5"], "0.5 is not a number of 1 or more"),
        (["--pairs", "a.tsv", "--max-ratio", "inf"], "inf is not a number of 1 or more"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["translation", "--out", str(tmp_path / "out"), *words])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
