"""Features are those of Kaldi, whatever the audio and the settings; normalized, none of them matters more."""

import warnings

import kaldi_native_fbank
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from support.features import features_config, sounds

from data_pipeline.speech.config import SpeechConfig
from data_pipeline.speech.features import LogMel, normalized, warped
from data_pipeline.speech.mel import mel

SILENCE = float(np.log(np.finfo(np.float32).eps))


def kaldi(data: SpeechConfig, audio: NDArray[np.float32]) -> NDArray[np.float32]:
    """What Kaldi makes of the audio in 16 bits. It rounds milliseconds down to samples."""
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = data.sample_rate
    options.frame_opts.frame_length_ms = (data.window + 0.25) * 1000 / data.sample_rate
    options.frame_opts.frame_shift_ms = (data.hop + 0.25) * 1000 / data.sample_rate
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = data.mel_bins
    computer = kaldi_native_fbank.OnlineFbank(options)
    computer.accept_waveform(data.sample_rate, 32768 * audio)
    computer.input_finished()
    return np.stack([computer.get_frame(frame) for frame in range(computer.num_frames_ready)])


def features_of(data: SpeechConfig, audio: NDArray[np.float32]) -> NDArray[np.float32]:
    features = LogMel(data)(torch.from_numpy(audio))
    assert features.dtype == torch.float32
    assert features.shape == (data.frames(len(audio)), data.mel_bins)
    return features.numpy()


def moved(power_TF: NDArray[np.float64], factor: float) -> NDArray[np.float64]:
    """Power at each frequency is that of the frequency which is scaled to it (Jaitly & Hinton 2013), one by one."""
    last, out = power_TF.shape[1] - 1, np.empty_like(power_TF)
    scaled_to = 0.875 * last * min(factor, 1)
    scaled_from = scaled_to / factor
    for frequency in range(last + 1):
        if frequency <= scaled_to:
            source = frequency / factor
        else:
            source = last - (last - frequency) * (last - scaled_from) / (last - scaled_to)
        below = min(int(source), last - 1)
        out[:, frequency] = (1 - source + below) * power_TF[:, below] + (source - below) * power_TF[
            :, below + 1
        ]
    return out


def formula(data: SpeechConfig, audio: NDArray[np.float32], warp: float = 1.0) -> NDArray[np.float64]:
    """The same in fp64, with a matrix of filters."""
    frames_TW = np.lib.stride_tricks.sliding_window_view(32768.0 * audio, data.window)[:: data.hop]
    frames_TW = frames_TW - frames_TW.mean(1, keepdims=True)
    before_TW = np.concatenate([frames_TW[:, :1], frames_TW[:, :-1]], 1)
    window_W = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(data.window) / (data.window - 1))) ** 0.85
    size = 2 ** int(np.ceil(np.log2(data.window)))
    power_TF = np.abs(np.fft.rfft((frames_TW - 0.97 * before_TW) * window_W, size)) ** 2
    edges = np.linspace(mel(20), mel(data.sample_rate / 2), data.mel_bins + 2)
    mels_F1 = np.array([[mel(number * data.sample_rate / size)] for number in range(size // 2 + 1)])
    rising_FM = (mels_F1 - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling_FM = (edges[2:] - mels_F1) / (edges[2:] - edges[1:-1])
    filters_FM = np.minimum(rising_FM, falling_FM).clip(0)
    if warp != 1:
        power_TF = moved(power_TF, warp)
    return np.log(np.maximum(power_TF @ filters_FM, np.finfo(np.float32).eps))


def agree(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> bool:
    """Whether features agree to 1e-3, but for energies 90 dB below the loudest of a frame: there Kaldi's are what fp32
    has left of the others."""
    mine, its = np.exp(ours.astype(np.float64)), np.exp(theirs.astype(np.float64))
    return bool((np.abs(mine - its) <= 1e-3 * its + 1e-9 * its.max(1, keepdims=True)).all())


@pytest.mark.parametrize("sample_rate", [8_000, 10_240, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("mel_bins", [23, 40, 80])
@pytest.mark.parametrize(("window", "hop"), [(0.025, 0.01), (0.02, 0.0125), (0.032, 0.008), (0.05, 0.06)])
def test_features_are_those_of_kaldi(sample_rate: int, mel_bins: int, window: float, hop: float) -> None:
    data = features_config(sample_rate=sample_rate, mel_bins=mel_bins, window_seconds=window, hop_seconds=hop)
    for name, audio in sounds(sample_rate).items():
        ours, theirs = features_of(data, audio), kaldi(data, audio)
        assert agree(ours, theirs), name
        if "tone" not in name:
            assert np.abs(ours - theirs).max() <= 1e-3, name


@pytest.mark.parametrize("sample_rate", [8_000, 16_000, 44_100])
def test_features_are_as_exact_as_those_of_kaldi(sample_rate: int) -> None:
    """Also far below a loud tone, and around a constant."""
    data = features_config(sample_rate=sample_rate, mel_bins=40)
    for name, audio in sounds(sample_rate).items():
        exact = formula(data, audio)
        ours, theirs = (
            np.abs(found - exact).max() for found in (features_of(data, audio), kaldi(data, audio))
        )
        assert ours <= max(1.5 * theirs, 1e-4), name


@pytest.mark.parametrize("sample_rate", [8_000, 16_000])
@pytest.mark.parametrize("warp", [0.5, 0.75, 0.999, 1.1, 1.3, 2.0])
def test_frequencies_are_scaled_as_the_formula_has_it(warp: float, sample_rate: int) -> None:
    data = features_config(sample_rate=sample_rate, mel_bins=40)
    for name in ("noise", "faint noise", "rising", "silence"):
        audio = sounds(sample_rate)[name]
        features = LogMel(data)(torch.from_numpy(audio), warp)
        assert features.dtype == torch.float32
        assert np.abs(features.numpy() - formula(data, audio, warp)).max() <= 1e-4, name


def test_a_factor_of_1_changes_no_bit() -> None:
    data, audio = features_config(), torch.from_numpy(sounds(16_000)["rising"])
    assert torch.equal(LogMel(data)(audio, 1.0), LogMel(data)(audio))
    power_TF = np.random.default_rng(0).exponential(size=(5, 129)).astype(np.float32)
    nearly = warped(power_TF, float(np.nextafter(1.0, 2.0)))
    assert np.array_equal(nearly, power_TF), "nor is there a jump"


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.25, 1.7])
def test_a_tone_is_heard_where_it_is_scaled_to(factor: float) -> None:
    """As far as the knee; silence and half the sample rate stay where they are."""
    power_TF = np.eye(129, dtype=np.float32)
    loudest = warped(power_TF, factor).argmax(1)
    for frequency in range(10, int(112 * min(1, 1 / factor)) - 1):
        assert abs(loudest[frequency] - factor * frequency) <= 0.5 * max(factor, 1)
    assert (loudest[0], loudest[128]) == (0, 128)


@settings(max_examples=30)
@given(samples=st.integers(0, 3000), seed=st.integers(0, 9))
def test_audio_of_any_length_has_the_frames_that_are_counted(samples: int, seed: int) -> None:
    """What is shorter than a window is as if silence followed."""
    data = features_config(mel_bins=20)
    audio = np.random.default_rng(seed).standard_normal(samples).astype(np.float32) / 8
    features = features_of(data, audio)
    assert np.isfinite(features).all()
    whole = np.pad(audio, (0, max(data.window - samples, 0)))
    assert np.abs(features - kaldi(data, whole)).max() <= 1e-3


def test_features_of_a_frame_do_not_depend_on_those_around_it() -> None:
    data = features_config()
    audio = sounds(16_000, seconds=3.0)["noise"]
    features = features_of(data, audio)
    for frame in (0, 63, 64, 200, len(features) - 1):
        start = frame * data.hop
        assert features_of(data, audio[start : start + data.window])[0].tolist() == features[frame].tolist()


def test_silence_and_constants_have_no_energy_at_all() -> None:
    data = features_config(sample_rate=48_000)
    for level in (0.0, 0.1, -1 / 3, 0.9999):
        assert (
            features_of(data, np.full(48_000, level, np.float32)).tolist()
            == [[np.float32(SILENCE)] * 80] * 98
        )


def test_what_is_no_number_does_not_spread_to_other_frames() -> None:
    audio = sounds(16_000)["noise"]
    audio[5000] = np.nan
    spoiled = np.isnan(features_of(features_config(), audio)).any(1)
    assert spoiled.nonzero()[0].tolist() == [29, 30, 31]


@settings(max_examples=60)
@given(
    sample_rate=st.sampled_from([1000, 8000, 16_000, 22_050, 44_100, 96_000]),
    window=st.floats(0.002, 0.1),
    mel_bins=st.integers(4, 200),
)
def test_every_filter_that_is_allowed_hears_something(sample_rate: int, window: float, mel_bins: int) -> None:
    try:
        data = features_config(sample_rate=sample_rate, window_seconds=window, mel_bins=mel_bins)
    except ValidationError:
        allowed = False
    else:
        allowed = True
        noise = np.random.default_rng(0).standard_normal(10 * data.window).astype(np.float32)
        assert (features_of(data, noise) > SILENCE).all()
    wide = features_config(sample_rate=sample_rate, window_seconds=1.0, mel_bins=4).model_copy(
        update={"window_seconds": window, "mel_bins": mel_bins}
    )
    noise = np.random.default_rng(0).standard_normal(10 * wide.window).astype(np.float32)
    assert allowed == (LogMel(wide)(torch.from_numpy(noise)).numpy() > SILENCE).all()


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("mel_bins", 128, "must be at most 126 with a window of 400 samples"),
        ("window_seconds", 5e-5, "must be at least 0.000125 at 16000 Hz: 2 samples"),
        ("hop_seconds", 2e-5, "must be at least 6.25e-05 at 16000 Hz: 1 samples"),
    ],
)
def test_settings_that_cannot_be_computed_with_are_refused(key: str, value: float, rule: str) -> None:
    with pytest.raises(ValidationError, match=rule) as refused:
        features_config(**{key: value})
    assert [error["loc"] for error in refused.value.errors()] == [(key,)]


def test_features_are_normalized_over_the_utterance() -> None:
    data = features_config(mel_bins=20)
    features = normalized(torch.from_numpy(features_of(data, sounds(16_000)["rising"])))
    assert features.dtype == torch.float32
    assert features.mean(0).abs().max() < 1e-5
    assert (features.std(0, correction=0) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("frames", [1, 2, 777])
def test_bins_that_do_not_change_become_zero(frames: int) -> None:
    features_TM = torch.full((frames, 3), SILENCE)
    features_TM[:, 1] = 0.1
    features_TM[::2, 2] = torch.nextafter(torch.tensor(SILENCE), torch.tensor(0.0))  # rounding is no sound
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = normalized(features_TM)
    assert not out[:, :2].any()
    assert out.abs().max() < 0.1


def test_loudness_does_not_matter_once_normalized() -> None:
    data, audio = features_config(mel_bins=20), sounds(16_000)["rising"]
    loud, soft = (normalized(torch.from_numpy(features_of(data, audio * gain))) for gain in (1.0, 0.25))
    torch.testing.assert_close(loud, soft, atol=1e-4, rtol=0)
