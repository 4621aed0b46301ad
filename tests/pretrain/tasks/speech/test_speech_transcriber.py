"""Recordings become what a model reads, and outputs that are given instead of a model's become transcripts."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data_pipeline.errors import DataError
from data_pipeline.speech.audio import decode_flac, encode_flac
from data_pipeline.speech.batch import SpeechBatch
from data_pipeline.speech.config import SpeechConfig
from data_pipeline.speech.features import LogMel, normalized
from data_pipeline.speech.units import CharacterUnits
from pretrain.errors import CheckpointError, ConfigurationError
from pretrain.tasks.examples import Example
from pretrain.tasks.speech import language_model
from pretrain.tasks.speech.config import output_frames
from pretrain.tasks.speech.examples import Transcriptions
from pretrain.tasks.speech.transcriber import SpeechTranscriber
from pretrain.tasks.transcriber import Decoding

RATE, STRIDE = 8000, 3
UNITS = CharacterUnits(" abc")
DATA = SpeechConfig.model_validate(
    {
        "sources": [{"path": "data"}],
        "sample_rate": RATE,
        "max_seconds": 2.0,
        "mel_bins": 8,
        "micro_batch_size": 2,
        "global_batch_size": 2,
    }
)
GREEDY = Decoding(beam=1)


def make_transcriber(decoding: Decoding = GREEDY) -> SpeechTranscriber:
    return SpeechTranscriber(DATA, STRIDE, UNITS, decoding)


def sound(path: Path, seconds: float, *, rate: int = RATE, channels: int = 1) -> Path:
    """It writes a tone that grows louder."""
    wave_N = np.sin(np.arange(round(seconds * rate)) * 0.2) * np.linspace(3e3, 3e4, round(seconds * rate))
    soundfile.write(path, np.stack([wave_N.astype(np.int16)] * channels, axis=1), rate)
    return path


def logits(*texts: str) -> torch.Tensor:
    """It returns those of a model that says these characters, one an output and `-` for the blank; behind the end of a
    text it says `c`."""
    longest = max(map(len, texts))
    ids = [["- abc".index(char) for char in text.ljust(longest, "c")] for text in texts]
    return 5.0 * torch.nn.functional.one_hot(torch.tensor(ids), UNITS.count).float()


def inputs_of(*texts: str) -> tuple[torch.Tensor, ...]:
    """It returns inputs with so many frames that there is an output for each character."""
    frames_B = torch.tensor([STRIDE * len(text) for text in texts])
    return torch.zeros(len(texts), int(frames_B.max()), DATA.mel_bins), frames_B


def test_file_is_heard_as_training_hears_it(tmp_path: Path) -> None:
    transcriber = make_transcriber()
    one = transcriber.read(sound(tmp_path / "one.flac", 0.5))
    assert one.seconds == 0.5
    assert one.heard.shape == (DATA.frames(RATE // 2), DATA.mel_bins)
    stored = encode_flac(soundfile.read(tmp_path / "one.flac", dtype="int16")[0], RATE)
    audio_N = torch.from_numpy(decode_flac(stored, RATE, RATE))
    assert torch.equal(one.heard, normalized(LogMel(DATA)(audio_N)))
    stereo = transcriber.read(sound(tmp_path / "stereo.wav", 0.5, channels=2))
    assert torch.equal(stereo.heard, one.heard)
    other = transcriber.read(sound(tmp_path / "other.wav", 0.25, rate=2 * RATE))
    features_BTM, frames_B = transcriber.inputs([one, other])
    assert frames_B.tolist() == [DATA.frames(RATE // 2), DATA.frames(RATE // 4)]
    assert torch.equal(features_BTM[1, : frames_B[1]], other.heard)
    assert not features_BTM[1, frames_B[1] :].any()


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    sound(tmp_path / "long.wav", 2.5)
    cases = {
        "none.wav": "No such file",
        "text.wav": "is no WAV, FLAC or Ogg",
        "silent.wav": "is silent",
        "long.wav": r"is longer than 2 s \(2\.5 s\)",
    }
    for name, told in cases.items():
        with pytest.raises(DataError, match=rf"{name}: .*{told}"):
            make_transcriber().read(tmp_path / name)


@pytest.mark.parametrize("beam", [1, 4])
def test_transcript_and_when_it_was_said(beam: int) -> None:
    said = "-aa-ab- c"
    (transcript,) = make_transcriber(Decoding(beam=beam)).transcripts(logits(said), inputs_of(said))
    assert transcript.text == "aab c"
    assert transcript.score == transcript.log_probability < 0
    assert [unit.text for unit in transcript.units] == list("aab c")
    output = STRIDE * DATA.hop / RATE
    times = [(unit.start / output, unit.end / output) for unit in transcript.units]
    assert np.array(times) == pytest.approx(np.array([(1, 3), (4, 5), (5, 6), (7, 8), (8, 9)]))


@pytest.mark.parametrize("beam", [1, 4])
def test_neither_batch_nor_padding_matters(beam: int) -> None:
    texts = ["-aa-ab- c", "b", "a-c-"]
    transcriber = make_transcriber(Decoding(beam=beam))
    together = transcriber.transcripts(logits(*texts), inputs_of(*texts))
    alone = [transcriber.transcripts(logits(text), inputs_of(text))[0] for text in texts]
    assert together == alone
    assert [one.text for one in alone] == ["aab c", "b", "ac"]
    order = [2, 0, 1]
    assert transcriber.transcripts(logits(*texts)[order], tuple(t[order] for t in inputs_of(*texts))) == [
        together[place] for place in order
    ]


def test_numbers_that_are_none_are_told() -> None:
    broken = logits("ab", "ab")
    broken[1, 0] = math.nan
    with pytest.raises(CheckpointError, match="computes no numbers"):
        make_transcriber().transcripts(broken, inputs_of("ab", "ab"))


def test_language_model_needs_kenlm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "KENLM", replace(language_model.KENLM, usable=False))
    with pytest.raises(ConfigurationError, match="pip install kenlm"):
        make_transcriber(Decoding(language_model=tmp_path / "words.arpa"))


# Batches of prepared data


def make_batch() -> SpeechBatch:
    """Two utterances, one of them damaged; the third is shorter than the batch."""
    (features_BTM, _), frames_B = inputs_of("-ab-", "-", "b-"), torch.tensor([10, 1, 4])
    units = [UNITS.encode("ab"), [], UNITS.encode("ba")]
    return SpeechBatch(
        features_BTM=features_BTM,
        frames_B=frames_B,
        units_BU=torch.tensor([[*ids, *[0] * (2 - len(ids))] for ids in units]),
        lengths_B=torch.tensor([len(ids) for ids in units]),
        weights_B=torch.tensor([1.0, 0.0, 1.0]),
    )


def test_references_are_those_of_utterances_that_count() -> None:
    assert make_transcriber().references(make_batch()) == ["ab", None, "ba"]


def test_examples_take_one_pass_and_end_where_utterances_do() -> None:
    examples = Transcriptions(DATA, STRIDE, UNITS)
    batch = make_batch()
    assert output_frames(batch.frames_B, STRIDE).tolist() == [4, 1, 2]
    passes = examples.passes([batch, batch])
    assert [[*map(len, inputs)] for inputs in next(passes)] == [[3, 3]] * 2
    chosen = [examples.choose(logits(*texts)) for texts in (("-ab-", "c", "b-"), ("cc-c", "-", "bab"))]
    with pytest.raises(StopIteration) as ended:
        passes.send(chosen)
    found = ended.value.value
    assert found == [
        Example("0.10 seconds", "ab", "ab"),
        None,
        Example("0.04 seconds", "ba", "b"),
        Example("0.10 seconds", "ab", "cc"),
        None,
        Example("0.04 seconds", "ba", "ba"),
    ]
    assert examples.metrics([one for one in found if one]) == pytest.approx({"wer": 2 / 4, "cer": 3 / 8})
    assert "greedily" in examples.description


def test_examples_of_a_model_that_computes_no_numbers_are_examples() -> None:
    """A run must not end of them."""
    examples = Transcriptions(DATA, STRIDE, UNITS)
    passes = examples.passes([make_batch()])
    next(passes)
    with pytest.raises(StopIteration) as ended:
        passes.send([examples.choose(torch.full((3, 4, UNITS.count), math.nan))])
    assert len(ended.value.value) == 3
