"""`surefoot rehearse` on a translation run: the watchdog takes it back when a fault has struck, and leaves its twin
alone."""

import json
import random
from pathlib import Path

import pytest

from data_pipeline.__main__ import main as prepare
from launch.cli import main
from pretrain.step import Remedy

WORDS = {
    "dog": "Hund",
    "cat": "Katze",
    "bird": "Vogel",
    "runs": "rennt",
    "sings": "singt",
    "sleeps": "schläft",
    "red": "rot",
    "green": "grün",
}
CONFIG = """
[run]
name = "words"
steps = 240
[model]
kind = "translation"
encoder_layers = 1
decoder_layers = 1
hidden_size = 32
source_vocabulary_size = 320
target_vocabulary_size = 320
attention = { num_heads = 2 }
[data]
sources = [{ path = "DATA" }]
max_source_length = 40
max_target_length = 40
micro_batch_size = 8
global_batch_size = 8
bucket_size = 8
[optimizer]
learning_rate = 5e-3
[schedule]
kind = "cosine"
warmup_steps = 20
[precision]
dtype = "fp32"
[checkpoint]
every_steps = 80
[evaluation]
every_steps = 120
[probes]
every_steps = 2
[watchdog]
window = 64
horizon = 16
memory_every_steps = 8
margin = 8
skip_after = 16
skipped_fraction = 0.9
"""


def write_words(folder: Path) -> Path:
    """Sentences that are translated word by word: each target says what its source does, in its order."""
    draw, sides = random.Random(3), (WORDS.__getitem__, str)
    sources = [draw.choices(list(WORDS), k=draw.randint(2, 8)) for _ in range(2000)]
    german, english = (["".join(f"{say(word)} " for word in words) for words in sources] for say in sides)
    for name, lines in (("de", german), ("en", english)):
        (folder / name).write_text("\n".join(line.strip() for line in lines))
    files = ["--source", str(folder / "en"), "--target", str(folder / "de"), "--out", str(folder / "data")]
    assert prepare(["translation", *files, "--vocabulary-size", "320", "--workers", "1"]) == 0
    return folder / "data"


@pytest.mark.slow
def test_shuffled_targets_are_noticed_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.toml").write_text(CONFIG.replace("DATA", str(write_words(tmp_path))))
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    words = [
        "rehearse",
        "words.toml",
        "--num-accelerators",
        "1",
        "--fault",
        "poisoned_samples@160+20",
        "--json",
    ]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert 0 <= told["delay"] <= 10
    assert told["false_alarms"] == 0
    (rollback,) = told["faulted"]["rollbacks"]
    assert rollback["remedy"] == Remedy.SKIP
    assert rollback["onset"] == 160
    assert told["faulted"]["lost"]["skipped_samples"] >= 160
    assert abs(told["relative_loss"]) < 0.2
    rows = (tmp_path / "runs/rehearsals/words-1/clean/metrics.jsonl").read_text().splitlines()
    seen = {key for row in rows for key in json.loads(row)}
    attentions = {"encoder_00", "decoder_00", "decoder_00/cross"}
    assert {key.partition("/")[2] for key in seen if key.startswith("attention_entropy_mean/")} == attentions
