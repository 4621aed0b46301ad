"""Corpora of all formats list the same utterances, and what is not of a format is refused by name."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.speech import encoded, tone, wav, write_manifest

from data_pipeline.__main__ import main
from data_pipeline.errors import DataError
from data_pipeline.preparing.source_files import SourceFiles
from data_pipeline.speech.audio import Span
from data_pipeline.speech.corpora.corpora import Corpora, RawCorpora
from data_pipeline.speech.corpora.utterance import Utterance

TEXTS = {"19-198-0000": "ONE TWO", "19-198-0001": "THREE", "26-495-0000": "FOUR FIVE"}


def listed(kind: str, *paths: Path) -> list[Utterance]:
    return list(Corpora(RawCorpora(tuple((kind, str(path)) for path in paths))).utterances())


def facts(utterances: Sequence[Utterance]) -> list[tuple[object, ...]]:
    return [(one.audio, one.text, one.span, one.speaker) for one in utterances]


def librispeech(folder: Path) -> Path:
    for name, text in TEXTS.items():
        chapter = folder / "dev" / Path(*name.split("-")[:2])
        chapter.mkdir(parents=True, exist_ok=True)
        (chapter / f"{name}.flac").write_bytes(encoded(tone(0.5), "FLAC", "PCM_16"))
        with (chapter / f"{'-'.join(name.split('-')[:2])}.trans.txt").open("a") as file:
            file.write(f"{name} {text}\n")
    return folder


def kaldi(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in {"wav.scp": "a a.wav\nb b.wav\n", "text": "a one\nb two three\n", **files}.items():
        (folder / name.replace("_scp", ".scp")).write_text(content)
    return folder


def cut(**changes: Any) -> dict[str, Any]:
    """A cut as lhotse 1.x writes it."""
    recording = {
        "id": "rec",
        "sources": [{"type": "file", "channels": [0, 1], "source": "/audio/rec.wav"}],
        "sampling_rate": 16000,
        "num_samples": 160000,
        "duration": 10.0,
        "channel_ids": [0, 1],
    }
    supervision = {
        "id": "sup",
        "recording_id": "rec",
        "start": 0.0,
        "duration": 2.5,
        "channel": 1,
        "text": "one two",
        "speaker": "ann",
    }
    return {
        "id": "cut",
        "start": 1.5,
        "duration": 2.5,
        "channel": 1,
        "supervisions": [supervision],
        "recording": recording,
        "type": "MonoCut",
        **changes,
    }


def cuts(path: Path, *rows: dict[str, Any]) -> Path:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


# NeMo


def test_a_manifest_of_nemo(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"audio_filepath": "a/1.wav", "duration": 2.5, "text": "one", "speaker": "ann", "lang": "en"},
        {"audio_filepath": "/abs/2.wav", "offset": 1.25, "duration": 1, "text": "two", "speaker": 7},
        {"audio_filepath": "../3.wav", "speaker": "", "offset": None},
    ]
    path = write_manifest(tmp_path / "list/m.json", rows)
    folder = tmp_path / "list"
    assert facts(listed("manifest", path)) == [
        (folder / "a/1.wav", "one", Span(0.0, 2.5), "ann"),
        (Path("/abs/2.wav"), "two", Span(1.25, 1.0), "7"),
        (folder / "../3.wav", None, Span(), None),
    ]
    packed = tmp_path / "list/m.json.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert facts(listed("manifest", packed)) == facts(listed("manifest", path))
    assert listed("manifest", path)[1].place == f"{path}, line 2"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[]", "Input should be"),
        ("{", "not JSON"),
        ('{"text": "one"}', "audio_filepath: Field required"),
        ('{"audio_filepath": ""}', "audio_filepath: is empty"),
        ('{"audio_filepath": "a\\u0000b"}', "audio_filepath: .*NUL"),
        ('{"audio_filepath": "a\\ud800"}', "audio_filepath: holds half a surrogate pair"),
        ('{"audio_filepath": ["a", "b"]}', "audio_filepath: Input should be a valid string"),
        ('{"audio_filepath": "a", "duration": "2.5"}', "duration: Input should be a valid number"),
        ('{"audio_filepath": "a", "duration": 0}', "duration: Input should be greater than 0"),
        ('{"audio_filepath": "a", "offset": -1}', "offset: Input should be greater than or equal to 0"),
        ('{"audio_filepath": "a", "duration": NaN}', "NaN is no number of JSON"),
        ('{"audio_filepath": "a", "duration": 1e999}', "beyond the largest number"),
        ('{"audio_filepath": "a", "text": ["one"]}', "text: Input should be a valid string"),
        ('{"audio_filepath": "a", "audio_filepath": "b"}', "stands there more than once"),
    ],
)
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"audio_filepath": "x"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=f"m.jsonl, line 3: .*{told}"):
        listed("manifest", path)


# LibriSpeech


def test_a_folder_of_librispeech(tmp_path: Path) -> None:
    folder = librispeech(tmp_path / "LibriSpeech")
    found = listed("librispeech", folder)
    assert [(one.name, one.text, one.speaker) for one in found] == [
        (name, text, name.split("-")[0]) for name, text in TEXTS.items()
    ]
    assert all(one.audio and one.audio.name == f"{one.name}.flac" for one in found)
    assert [one.name for one in listed("librispeech", folder / "dev/26")] == ["26-495-0000"]
    assert [one.speaker for one in listed("librispeech", folder / "dev/26/495")] == ["26"]


def test_what_lacks_its_other_half_is_listed(tmp_path: Path) -> None:
    """So that it is counted where it is left out. A name cannot lead out of the folder."""
    folder = librispeech(tmp_path / "LibriSpeech")
    (tmp_path / "secret.flac").write_bytes(b"")
    (folder / "dev/19/198/19-198-0002.flac").write_bytes(b"")
    with (folder / "dev/19/198/19-198.trans.txt").open("a") as file:
        file.write("19-198-0003 SIX\n../../../../secret OUT\n19-198-0004\n")
    found = {one.name: (one.audio and one.audio.name, one.text) for one in listed("librispeech", folder)}
    assert found["19-198-0002"] == ("19-198-0002.flac", None)
    assert found["19-198-0003"] == (None, "SIX")
    assert found["19-198-0004"] == (None, "")
    assert found["../../../../secret"] == (None, "OUT")


def test_an_id_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    folder = librispeech(tmp_path / "LibriSpeech")
    with (folder / "dev/19/198/19-198.trans.txt").open("a") as file:
        file.write("19-198-0000 ANOTHER\n")
    with pytest.raises(DataError, match=r"line 3: the id 19-198-0000 stands there already \(.*line 1\)"):
        listed("librispeech", folder)


def test_a_folder_without_transcripts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(b"")
    with pytest.raises(DataError, match=r"has no file \*.trans.txt; name a folder as LibriSpeech's"):
        listed("librispeech", tmp_path)


def test_links_that_lead_out_of_a_folder_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cache of downloads, or a split on another disk, would else be missing without a word."""
    folder, disk = librispeech(tmp_path / "LibriSpeech"), tmp_path / "disk"
    (folder / "dev/26").rename(disk)
    (folder / "dev/26").symlink_to(disk)
    audio = folder / "dev/19/198/19-198-0000.flac"
    audio.rename(tmp_path / "blob")
    audio.symlink_to(tmp_path / "blob")
    out = ["--out", str(tmp_path / "out"), "--left-out-budget", "0.6", "--validation-fraction", "0"]
    words = ["speech", "--librispeech", str(folder), "--workers", "1", *out]
    assert main(words) == 0
    told = capsys.readouterr().err
    assert f"left out: {audio}, {folder}/dev/26: a link that leads out of the source" in told
    assert "left out: 19-198-0000 (" in told
    assert "): has no audio that is read: a link that leads out of the source; name what it leads to" in told
    (folder / "dev/19/198/19-198.trans.txt").rename(tmp_path / "blob.trans.txt")
    with pytest.raises(DataError, match=r"\.trans\.txt \(.*: a link that leads out of the source"):
        listed("librispeech", folder)


# Kaldi


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_folder_of_kaldi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.chdir(tmp_path)
    folder = kaldi(tmp_path / "data", utt2spk="a ann\nb bob\n")
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes().replace(b"\n", end.encode()))
    assert facts(listed("kaldi", folder)) == [
        (tmp_path / "a.wav", "one", Span(), "ann"),
        (tmp_path / "b.wav", "two three", Span(), "bob"),
    ]


def test_segments_of_kaldi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = kaldi(
        tmp_path / "data",
        segments="a-1 a 0.5 1.75\na-2 a 2 -1\nx-1 x 0 1\n",
        text="a-1 one\na-2\tTWO  words\nb-1 alone\n",
    )
    assert facts(listed("kaldi", folder)) == [
        (tmp_path / "a.wav", "one", Span(0.5, 1.25), None),
        (tmp_path / "a.wav", "TWO  words", Span(2.0, None), None),
        (None, None, Span(0.0, 1.0), None),
        (None, "alone", Span(), None),
    ]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (
            {"wav_scp": "a a.wav\nb touch {mark} |\n"},
            r"wav.scp, line 2: is a command \(touch .*, and none is run here",
        ),
        ({"wav_scp": "a -\n"}, r"wav.scp, line 1: is a command \(-\)"),
        ({"wav_scp": "a\n"}, "wav.scp, line 1: is empty"),
        ({"wav_scp": "a a.wav\na b.wav\n"}, r"wav.scp, line 2: the id a stands there already \(.*line 1\)"),
        ({"text": "a one\nb two\na three\n"}, "text, line 3: the id a stands there already"),
        ({"segments": "a-1 a 1\n"}, "segments, line 1: a 1: stands for a recording, a start and an end"),
        ({"segments": "a-1 a 1 2 0\n"}, "segments, line 1: a 1 2 0: .*, and a channel is not read"),
        ({"segments": "a-1 a x 2\n"}, "segments, line 1: could not convert"),
        ({"segments": "a-1 a nan 2\n"}, "segments, line 1: .*starts and ends where no segment does"),
        ({"segments": "a-1 a 2 1\n"}, "segments, line 1: .*starts and ends where no segment does"),
        ({"segments": "a-1 a 0 1\na-1 a 1 2\n"}, "segments, line 2: the id a-1 stands there already"),
    ],
)
def test_what_kaldi_would_not_list_is_refused_and_nothing_is_run(
    tmp_path: Path, files: dict[str, str], told: str
) -> None:
    mark = tmp_path / "mark"
    folder = kaldi(
        tmp_path / "data", **{name: text.replace("{mark}", str(mark)) for name, text in files.items()}
    )
    with pytest.raises(DataError, match=told):
        listed("kaldi", folder)
    assert not mark.exists()


def test_a_folder_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    (kaldi(tmp_path / "data") / "text").unlink()
    with pytest.raises(DataError, match="data/text: no such file"):
        listed("kaldi", tmp_path / "data")
    with pytest.raises(DataError, match=r"is no folder; name one with wav\.scp and text"):
        listed("kaldi", tmp_path / "data/wav.scp")


# lhotse


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_cuts_of_lhotse(tmp_path: Path, name: str) -> None:
    path = cuts(tmp_path / name, cut(), cut(id="other", supervisions=[], channel=0))
    assert facts(listed("lhotse", path)) == [
        (Path("/audio/rec.wav"), "one two", Span(1.5, 2.5, 1), "ann"),
        (Path("/audio/rec.wav"), None, Span(1.5, 2.5, 0), None),
    ]
    assert [one.name for one in listed("lhotse", path)] == ["cut", "other"]


@pytest.mark.parametrize(
    ("start", "duration", "span"),
    [
        (0.5, 1.0, Span(2.0, 1.0, 1)),
        (0.04, 2.5, Span(1.5, 2.5, 1)),  # rounded
        (0.01, 1.0, Span(1.51, 1.0, 1)),
        (1.5, 1.04, Span(3.0, 1.0, 1)),
    ],
)
def test_a_cut_is_heard_where_its_supervision_lies(
    tmp_path: Path, start: float, duration: float, span: Span
) -> None:
    said = {"start": start, "duration": duration, "text": "one"}
    (found,) = listed("lhotse", cuts(tmp_path / "cuts.jsonl", cut(supervisions=[said])))
    assert (found.text, found.span) == ("one", span)


SOURCE = {"type": "file", "channels": [0], "source": "/audio/rec.wav"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"type": "MixedCut"}, "is of type MixedCut, and only MonoCut is read"),
        ({"type": "MultiCut", "channel": [0, 1]}, "is of type MultiCut"),
        ({"channel": 2}, r"channel 2 is none of \[0, 1\]"),
        (
            {"supervisions": [{"start": -0.5, "duration": 1}]},
            "lies at -0.5 to 0.5 s of its 2.5 s, .*keep_excessive",
        ),
        (
            {"supervisions": [{"start": -0.03, "duration": 0.02}]},
            "lies at -0.03 to -0.01 s of its 2.5 s, .*keep_excessive",
        ),
        ({"supervisions": [{"start": 2, "duration": 1}]}, "lies at 2 to 3 s of its 2.5 s"),
        ({"supervisions": [{"channel": 1}]}, "its supervision is of channel 1, and the cut of 0"),
        ({"supervisions": [{}, {}]}, "has 2 supervisions, and an utterance has one; trim_to_supervisions"),
        ({"recording": None}, "recording: Input should be"),
        (
            {"recording": {"sources": [SOURCE], "transforms": [{"name": "Speed"}]}},
            "has transforms, which are not",
        ),
        (
            {"recording": {"sources": [{**SOURCE, "type": "command", "source": "sox x |"}]}},
            "first of type command",
        ),
        ({"recording": {"sources": [SOURCE, SOURCE]}}, "its recording has 2 sources"),
        ({"recording": {"sources": [{**SOURCE, "source": "a\0b"}]}}, "NUL"),
        ({"duration": 0}, "duration: Input should be greater than 0"),
        ({"id": ""}, "id: String should have at least 1 character"),
    ],
)
def test_cuts_that_are_not_simple_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    path = cuts(
        tmp_path / "cuts.jsonl", cut(), cut(**{"id": "odd", "supervisions": [], "channel": 0, **changes})
    )
    with pytest.raises(DataError, match=f"cuts.jsonl, line 2: .*{told}"):
        listed("lhotse", path)


def test_cuts_have_ids_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 2: the id cut stands there already \(.*line 1\)"):
        listed("lhotse", cuts(tmp_path / "cuts.jsonl", cut(), cut()))


# All of them


@pytest.mark.parametrize("kind", ["manifest", "lhotse"])
def test_a_list_is_a_file_of_this_machine(tmp_path: Path, kind: str) -> None:
    for path, told in ((tmp_path, "no such file, and no files in such"), (tmp_path / "x", "no such file")):
        with pytest.raises(DataError, match=told):
            listed(kind, path)
    with pytest.raises(DataError, match="is no file of this machine; download it first"):
        Corpora(RawCorpora(((kind, "https://example.org/a.jsonl"),)))
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(DataError, match="is no file"):
        listed(kind, tmp_path)


def test_corpora_of_all_formats_come_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order in which they are named, in one command."""
    monkeypatch.chdir(tmp_path)
    stereo = np.stack([tone(1.0, 300), tone(1.0, 500)], 1)
    (tmp_path / "a.wav").write_bytes(wav(stereo))
    libri = librispeech(tmp_path / "LibriSpeech")
    manifest = write_manifest(tmp_path / "m.jsonl", [{"audio_filepath": "a.wav", "text": "NEMO"}])
    folder = kaldi(tmp_path / "data", wav_scp="a a.wav\n", segments="a-1 a 0.25 0.75\n", text="a-1 KALDI\n")
    recording = {"sources": [{"type": "file", "channels": [0, 1], "source": "a.wav"}]}
    said = {"start": 0.0, "duration": 1.0, "text": "one two"}
    path = cuts(
        tmp_path / "cuts.jsonl", cut(recording=recording, start=0.0, duration=1.0, supervisions=[said])
    )
    words = ["--lhotse", path, "--kaldi", folder, "--manifest", manifest, manifest, "--librispeech", libri]
    common = ["--validation-fraction", 0, "--workers", 1, "--sample-rate", 8000, "--out", tmp_path / "out"]
    assert main(["speech", *map(str, [*words, *common])]) == 0
    lengths = np.load(tmp_path / "out/train/lengths.npy")
    assert lengths[:, 0].tolist() == [8000, 4000, 8000, 8000, 4000, 4000, 4000]
    assert lengths[:, 1].tolist() == [
        len(text) for text in ("one two", "KALDI", "NEMO", "NEMO", *TEXTS.values())
    ]
    said = capsys.readouterr().out
    assert "  number 1, from 0, of 2 channels taken: 1\n" in said
    assert "  mean of 2 channels taken: 3\n" in said


def test_a_corpus_lists_the_same_each_time(tmp_path: Path) -> None:
    corpora = Corpora(RawCorpora((("librispeech", str(librispeech(tmp_path / "x"))),)))
    assert list(corpora.utterances()) == list(corpora.utterances())
    assert isinstance(corpora.found, SourceFiles)
