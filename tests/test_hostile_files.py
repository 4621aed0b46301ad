"""Whatever is in a file, reading it ends well or with the error of its format: no other, no signal, no file elsewhere.

Each format is read by all that reads it in earnest: what a reader lets pass must not trip who comes after it.
"""

import gzip
import hashlib
import io
import json
import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support.hostile import ODD, anything, changed_bytes, changed_json, changed_value, confined
from support.numbered_data import write_split
from support.pairs import pairs_config, write_pairs
from support.series import series_config, series_values, write_csv, write_series
from support.speech import DIGITS, speech_config, tone, wav, write_speech
from support.training import Layout, make_config

from data_pipeline.errors import DataError
from data_pipeline.preparing.record import TargetExists, make_once
from data_pipeline.series.scaler import parse_scaler
from data_pipeline.series.source import SeriesSource
from data_pipeline.series.table import TableForm, read_table
from data_pipeline.shards.dataset import Dataset
from data_pipeline.shards.shard import ShardIndex
from data_pipeline.shards.storage import LocalFolder
from data_pipeline.speech.audio import AudioForm, AudioRefused, Span, read_audio
from data_pipeline.speech.corpora.lhotse import parsed_cut
from data_pipeline.speech.corpora.nemo import parsed_line
from data_pipeline.speech.manifest import SpeechManifest
from data_pipeline.speech.source import SpeechSource
from data_pipeline.speech.units import parse_units
from data_pipeline.text.collate import TokenCollator
from data_pipeline.text.corpus import Corpus
from data_pipeline.text.manifest import TextManifest
from data_pipeline.text.tokenizer import train_tokenizer
from data_pipeline.translation.corpus import ParallelCorpus, RawFiles
from data_pipeline.translation.manifest import TranslationManifest
from data_pipeline.translation.source import TranslationSource
from launch.hang_detector import HangDetector
from launch.hosts import environment_file_problems, read_hostfile, select_slots
from launch.inspect import document, read_run, sections, summary
from launch.metrics import last_rows
from launch.reap import recorded
from pretrain.checkpoint.certificate import certify, read_certificate
from pretrain.checkpoint.lifecycle import candidates
from pretrain.checkpoint.manifest import (
    CheckpointLayout,
    FileRecord,
    Manifest,
    TensorRecord,
    read_manifest,
    seal,
    verify,
)
from pretrain.checkpoint.saved_tensors import SavedTensors
from pretrain.config.loader import changed_settings, dump_config, load_config
from pretrain.errors import CheckpointError, ConfigurationError
from pretrain.export.opened import open_model
from pretrain.ledger.file import LedgerFile
from pretrain.ledger.record import Kind, Record
from pretrain.metrics.jsonl import MetricsFile
from pretrain.plan.deepspeed_json import deepspeed_json
from pretrain.plan.plan import plan
from pretrain.runtime.heartbeat import Beat, Phase, beat_file, read_beats
from pretrain.step import TrainState

FEW, MANY = 300, 10_000

Chance = random.Random


@dataclass(frozen=True)
class Format:
    """A kind of file: how chance makes one, what reads it, and how that may end."""

    make: Callable[[Path], Callable[[Chance], bytes]]
    """It puts what else there must be into a folder, and returns what makes a file."""
    read: Callable[[Path, bytes], object]
    errors: tuple[type[Exception], ...] = ()


# Prepared data


def make_index(folder: Path) -> Callable[[Chance], bytes]:
    rows = np.array([(1024 * n, 1024, 7, (100,)) for n in range(3)], ShardIndex.dtype(1))

    def make(chance: Chance) -> bytes:
        odd, file = rows.copy(), io.BytesIO()
        for _ in range(chance.randint(0, 3)):
            name, value = (
                chance.choice(["offset", "size", "crc32", "fields"]),
                chance.choice([0, 1, 512, 2**31, 2**32 - 1]),
            )
            odd[name][chance.randrange(3)] = value << chance.choice([0, 0, 31]) if name == "offset" else value
        np.save(file, odd)
        content = file.getvalue()
        for old, new in (
            (b"(3,)", b"(%d,)" % chance.choice([-3, 0, 2, 10**18, 10**30])),
            (b"<u8", b"|O8"),
            (b"False", b"True "),
        ):
            content = content.replace(old, new) if chance.random() < 0.15 else content
        return content if chance.random() < 0.3 else anything(chance, content)

    return make


def read_index(folder: Path, content: bytes) -> None:
    ShardIndex.parse(content, "index", ("npy",), 3, 10_240)


def make_manifest(folder: Path) -> Callable[[Chance], bytes]:
    return changed_manifest(json.loads((write_split(folder, 10) / "train/manifest.json").read_text()))


def changed_manifest(facts: dict[str, Any]) -> Callable[[Chance], bytes]:
    def make(chance: Chance) -> bytes:
        odd = changed_value(chance, facts)
        if isinstance(odd, dict) and chance.random() < 0.7:
            stated = {name: value for name, value in odd.items() if name != "fingerprint"}
            odd["fingerprint"] = hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()
        content = json.dumps(odd).encode()
        return content if chance.random() < 0.7 else anything(chance, content)

    return make


def read_split(folder: Path, content: bytes) -> None:
    (folder / "train/manifest.json").write_bytes(content)
    with closing(Dataset(LocalFolder(folder / "train"), TextManifest)) as dataset:
        samples = [dataset.read(number) for number in range(min(len(dataset), 20))]
        TokenCollator(dataset.manifest)(samples)


def make_pair_manifest(folder: Path) -> Callable[[Chance], bytes]:
    return changed_manifest(json.loads((write_pairs(folder, 10) / "train/manifest.json").read_text()))


def read_pair_split(folder: Path, content: bytes) -> None:
    (folder / "train/manifest.json").write_bytes(content)
    source, data = TranslationSource(), pairs_config(folder)
    with closing(Dataset(LocalFolder(folder / "train"), TranslationManifest)) as dataset:
        source.check(dataset, data)
        source.buckets(dataset, data)
        source.collator(dataset.manifest, data)([dataset.read(n) for n in range(min(len(dataset), 20))])


def make_speech_manifest(folder: Path) -> Callable[[Chance], bytes]:
    return changed_manifest(json.loads((write_speech(folder, 3) / "train/manifest.json").read_text()))


def read_speech_split(folder: Path, content: bytes) -> None:
    (folder / "train/manifest.json").write_bytes(content)
    source, data = SpeechSource(), speech_config(folder)
    with closing(Dataset(LocalFolder(folder / "train"), SpeechManifest)) as dataset:
        source.check(dataset, data)
        source.buckets(dataset, data)
        samples = [dataset.read(number) for number in range(min(len(dataset), 3))]
        source.collator(dataset.manifest, data)(samples)
        "".join(map(source.describer(dataset), filter(lambda sample: sample.fields, samples)))


def make_lengths(folder: Path) -> Callable[[Chance], bytes]:
    """The manifest says what the file is, whatever that is."""
    lengths_N2 = np.load(write_speech(folder, 3) / "train/lengths.npy")

    def make(chance: Chance) -> bytes:
        odd, file = lengths_N2.copy(), io.BytesIO()
        for _ in range(chance.randint(0, 2)):
            odd[chance.randrange(3), chance.randrange(2)] = chance.choice([-(2**31), -1, 0, 1, 2**31 - 1])
        np.save(file, odd)
        content = file.getvalue()
        for old, new in (
            (b"(3, 2)", b"(%d, %d)" % (chance.choice([-3, 0, 5, 10**18]), chance.choice([-2, 2, 4, 10**9]))),
            (b"<i4", chance.choice([b"|O8", b"<f4", b">i4"])),
            (b"False", b"True "),
        ):
            content = content.replace(old, new) if chance.random() < 0.15 else content
        return content if chance.random() < 0.5 else anything(chance, content)

    return make


def read_lengths(folder: Path, content: bytes) -> None:
    (folder / "train/lengths.npy").write_bytes(content)
    facts = json.loads((folder / "train/manifest.json").read_text())
    facts["lengths"] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    stated = {name: value for name, value in facts.items() if name != "fingerprint"}
    facts["fingerprint"] = hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()
    (folder / "train/manifest.json").write_text(json.dumps(facts))
    with closing(Dataset(LocalFolder(folder / "train"), SpeechManifest)) as dataset:
        SpeechSource().buckets(dataset, speech_config(folder))


def make_units(folder: Path) -> Callable[[Chance], bytes]:
    sound = json.loads(DIGITS.content)
    return lambda chance: (
        changed_json(chance, sound) if chance.random() < 0.8 else anything(chance, DIGITS.content)
    )


def read_units_file(folder: Path, content: bytes) -> None:
    units = parse_units("units.json", content)
    text = units.decode(range(-1, units.count + 1))
    assert units.decode(units.encode(text)) == text
    assert parse_units("units.json", units.content).digest == units.digest


def make_series_manifest(folder: Path) -> Callable[[Chance], bytes]:
    return changed_manifest(
        json.loads((write_series(folder / "data", 400) / "test/manifest.json").read_text())
    )


def read_series_split(folder: Path, content: bytes) -> None:
    (folder / "data/test/manifest.json").write_bytes(content)
    source, data = SeriesSource(), series_config(folder / "data")
    with closing(source.open(LocalFolder(folder / "data/test"), data)) as dataset:
        source.check(dataset, data)
        samples = [dataset.read(number) for number in range(min(len(dataset), 20))]
        source.collator(dataset.manifest, data)(samples)
        "".join(map(source.describer(dataset), filter(lambda sample: sample.fields, samples)))


def make_scaler(folder: Path) -> Callable[[Chance], bytes]:
    sound = (write_series(folder / "data", 400) / "scaler.json").read_bytes()
    return lambda chance: (
        changed_json(chance, json.loads(sound)) if chance.random() < 0.8 else anything(chance, sound)
    )


def read_scaler(folder: Path, content: bytes) -> None:
    """The manifest says that it is that of the shards."""
    scaler = parse_scaler(content)
    assert parse_scaler(scaler.content) == scaler
    (folder / "data/scaler.json").write_bytes(content)
    path = folder / "data/train/manifest.json"
    facts = json.loads(path.read_text())
    facts["scaler"]["sha256"] = hashlib.sha256(content).hexdigest()
    stated = {name: value for name, value in facts.items() if name != "fingerprint"}
    facts["fingerprint"] = hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(facts))
    source, data = SeriesSource(), series_config(folder / "data")
    with closing(source.open(LocalFolder(folder / "data/train"), data)) as dataset:
        source.check(dataset, data)
        source.describer(dataset)(dataset.read(0))


def make_series(folder: Path) -> Callable[[Chance], bytes]:
    sound = write_csv(folder / "sound.csv", series_values(6)).read_bytes()
    return lambda chance: anything(chance, sound)


def read_series(folder: Path, content: bytes) -> None:
    (folder / "x.csv").write_bytes(content)
    table = read_table(str(folder / "x.csv"), TableForm(has_times=len(content) % 3 > 0))
    assert np.isfinite(table.values_ND).all()
    assert len(table) == len(table.lines_N) > 1
    f"{table.time(0)} {table.step_seconds} {table.place(1, table.columns[0])}".encode()


def make_prepared(folder: Path) -> Callable[[Chance], bytes]:
    return lambda chance: changed_json(chance, PREPARED)


PREPARED = {"format": 1, "task": "text", "files": {"count": 1, "bytes": 5, "sha256": "ab"}, "seed": 0}


def read_prepared(folder: Path, content: bytes) -> None:
    (folder / "made").mkdir(exist_ok=True)
    (folder / "made/prepare.json").write_bytes(content)
    assert make_once(folder / "made", PREPARED, lambda stage: stage, overwrite=False) is None


# Raw data


LINES = [{"text": "one", "n": 1}, {"text": "two \ud83d\udc3e", "meta": {"a": [1, 2]}}, {"text": ""}]


def make_lines(folder: Path) -> Callable[[Chance], bytes]:
    def make(chance: Chance) -> bytes:
        odd = chance.randrange(2 * len(LINES))
        lines = [
            changed_json(chance, line) if number == odd else json.dumps(line).encode()
            for number, line in enumerate(LINES)
        ]
        content = b"\n".join(lines)
        return content if chance.random() < 0.5 else anything(chance, content)

    return make


def read_lines(folder: Path, content: bytes) -> None:
    packed = {
        ".jsonl": content,
        ".jsonl.gz": gzip.compress(content),
        ".jsonl.zst": zstandard.compress(content),
    }
    chance = random.Random(content)
    suffix = chance.choice(list(packed))
    for left in folder.glob("lines.*"):
        left.unlink()
    path = folder / f"lines{suffix}"
    path.write_bytes(changed_bytes(chance, packed[suffix]) if chance.random() < 0.3 else packed[suffix])
    for source in (str(path), str(folder)):
        for text in Corpus([source], "text").documents():
            text.text.encode()


PAIRS = ["one\teins", "two words\tzwei W\u00f6rter", "\t"]
SOUND = {
    "pairs.tsv": "\n".join(PAIRS),
    "pairs.tsv.gz": "\n".join(PAIRS),
    "pairs.jsonl": "\n".join(
        json.dumps(dict(zip(("source", "target"), p.split("\t"), strict=True))) for p in PAIRS
    ),
    "pairs.en": "one\ntwo\nthree",
}


def make_pairs(folder: Path) -> Callable[[Chance], bytes]:
    """The name of the file stands in the first line."""

    def make(chance: Chance) -> bytes:
        name = chance.choice(list(SOUND))
        content = SOUND[name].encode()
        content = content if chance.random() < 0.3 else anything(chance, content)
        packed = gzip.compress(content) if name.endswith(".gz") else content
        return name.encode() + b"\n" + (changed_bytes(chance, packed) if chance.random() < 0.2 else packed)

    return make


def read_pairs(folder: Path, content: bytes) -> None:
    name, _, packed = content.partition(b"\n")
    path = folder / name.decode()
    path.write_bytes(packed)
    (folder / "pairs.de").write_text(SOUND["pairs.en"])
    raw = (
        RawFiles((str(path),), (f"{folder}/pairs.de",))
        if path.suffix == ".en"
        else RawFiles(pairs=(str(path),))
    )
    for pair in ParallelCorpus(raw, ("source", "target")).pairs():
        f"{pair.source}{pair.target}".encode()


UTTERANCE = {"audio_filepath": "a/1.wav", "text": "one", "duration": 0.25, "offset": 0.25, "speaker": 7}
CUT = {
    "id": "cut",
    "start": 0.5,
    "duration": 2.5,
    "channel": 0,
    "supervisions": [{"text": "one", "speaker": "ann"}],
    "recording": {"sources": [{"type": "file", "channels": [0], "source": "/a/1.wav"}], "transforms": None},
    "type": "MonoCut",
}


def make_utterance(folder: Path) -> Callable[[Chance], bytes]:
    """It makes a line of a manifest of NeMo."""
    (folder / "a").mkdir()
    (folder / "a/1.wav").write_bytes(wav(tone(0.7)))
    return lambda chance: changed_json(chance, UTTERANCE)


def read_utterance(folder: Path, content: bytes) -> None:
    line = parsed_line(content.decode(errors="surrogateescape"), "line 1")
    span = Span(line.offset or 0.0, line.duration)
    read_audio(folder / line.audio_filepath, AudioForm(8000, 5.0), span)


def make_cut(folder: Path) -> Callable[[Chance], bytes]:
    return lambda chance: changed_json(chance, CUT)


def read_cut(folder: Path, content: bytes) -> None:
    utterance = parsed_cut(content.decode(errors="surrogateescape"), "line 1")
    assert utterance.audio
    f"{utterance.group} {utterance.name}".encode()


# The folder of a run

TAG = "step00000002-a1"
FIELDS: dict[Kind, dict[str, Any]] = {
    Kind.RUN_START: {"host": "node", "layout": "tensor 1", "config_digest": "", "versions": {}},
    Kind.CONVERTED: {"tag": "step00000100-a1", "source": "runs/x", "layout": "tensor 2"},
    Kind.SUSPECT: {"signals": ["loss"]},
    Kind.ALARM: {
        "alarms": [{"signal": "loss", "kind": "high", "onset": 1, "value": 2.5, "threshold": "inf"}]
    },
    Kind.HOST_SUSPECT: {"rank": 0, "host": "node"},
    Kind.VETO: {"reason": "loss", "draws": [0, 4]},
    Kind.SEALED: {"tag": TAG},
    Kind.CERTIFIED: {"tag": TAG, "horizon": 2},
    Kind.ROLLBACK_INTENT: {
        "remedy": "skip",
        "onset": 3,
        "target_step": 2,
        "target_tag": TAG,
        "skip": [[8, 12]],
        "learning_rate_factor": 0.5,
        "reason": "loss rose",
        "learning_rate_until": 9,
    },
    Kind.LEARNING_RATE_EDIT: {"update": 2, "factor": 0.5, "return_updates": 10, "until": 9},
    Kind.ROLLBACK_DONE: {"seconds": 1.5, "tier": "disk", "proof": ""},
    Kind.CONDEMNED: {"tag": TAG, "reason": "older"},
    Kind.QUARANTINED: {"tag": TAG, "reason": "damaged"},
    Kind.REFUSED: {"tag": TAG},
    Kind.RESUMED: {"tag": TAG},
    Kind.REBASELINE: {"reason": "other settings", "declared": True},
    Kind.CALIBRATED: {"thresholds": {"loss": {"high": 5.0}}},
    Kind.LEFT_ALONE: {"reason": "it falls"},
    Kind.STOPPED: {"code": 5, "reason": "diverged"},
}


def make_ledger(folder: Path) -> Callable[[Chance], bytes]:
    with closing(LedgerFile(folder / "sound.jsonl")) as ledger:
        for step, (kind, fields) in enumerate(FIELDS.items(), start=1):
            ledger.append(Record(kind, step, step, 1 + step // 9, fields))
    records = [json.loads(line) for line in (folder / "sound.jsonl").read_text().splitlines()]
    (folder / "sound.jsonl").unlink()

    def make(chance: Chance) -> bytes:
        """Most have a chain that holds, so that what is in the records is read."""
        odd, lines, digest = list(records), [], "0" * 64
        place = chance.randrange(len(odd))
        odd[place] = changed_value(chance, odd[place])
        for record in odd:
            if isinstance(record, dict) and chance.random() < 0.98:
                record = {**record, "previous": digest}
            lines.append(json.dumps(record).encode())
            digest = hashlib.sha256(lines[-1]).hexdigest()
        content = b"\n".join(lines) + b"\n"
        return content if chance.random() < 0.8 else anything(chance, content)

    return make


def show(folder: Path) -> None:
    """What `surefoot inspect` does."""
    run = read_run(folder)
    json.dumps(document(run), allow_nan=False)
    for _, rows in [("", summary(run)), *sections(run)]:
        list(rows)


def read_ledger_file(folder: Path, content: bytes) -> None:
    (folder / "ledger.jsonl").write_bytes(content)
    show(folder)
    with closing(LedgerFile(folder / "ledger.jsonl")) as ledger:
        ledger.history.learning_rate_factor(5)


def make_metrics(folder: Path) -> Callable[[Chance], bytes]:
    rows = [
        {"step": 1, "loss": 2.5, "attempt": 1, "session": 1},
        {"step": 1, "validation_loss": 2.0, "session": 1},
    ]

    def make(chance: Chance) -> bytes:
        content = b"".join(changed_json(chance, row) + b"\n" for row in rows)
        return content if chance.random() < 0.6 else anything(chance, content)

    return make


def read_metrics(folder: Path, content: bytes) -> None:
    (folder / "metrics.jsonl").write_bytes(content)
    last_rows(folder / "metrics.jsonl")
    show(folder)
    with closing(MetricsFile(folder / "metrics.jsonl")) as metrics:
        metrics.append({"step": 2})


def make_heartbeat(folder: Path) -> Callable[[Chance], bytes]:
    beat = Beat(0, "node", os.getpid(), 5, 29500, 3, 3, Phase.STEP, 1.5)
    fields = {**vars(beat), "phase": "step"}
    return lambda chance: changed_json(chance, fields) if chance.random() < 0.8 else anything(chance, b"{}")


def read_heartbeat(folder: Path, content: bytes) -> None:
    path = beat_file(folder, 0)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    for beat in read_beats(folder).values():
        replace(beat, host="x")
    assert recorded(29500, folder) == []
    HangDetector(folder, 1.0).look()


# Checkpoints


def make_checkpoint(folder: Path) -> Callable[[Chance], bytes]:
    """It makes the manifest and the certificate in one."""
    checkpoint = folder / "checkpoints" / TAG
    checkpoint.mkdir(parents=True)
    (checkpoint / "rank_00000.pt").write_bytes(b"weights")
    record = FileRecord(size=7, sha256=hashlib.sha256(b"weights").hexdigest(), rank=0)
    layout = CheckpointLayout(tensor=1, pipeline=1, data=1, zero_stage=0, dtype="fp32")
    manifest = Manifest(
        tag=TAG,
        layout=layout,
        config_digest="",
        optimizer="adamw",
        run_id="r",
        tensors={},
        data_fingerprint="",
        state=TrainState(step=2),
        files={"rank_00000.pt": record},
        versions={"torch": "2"},
        checksums=(5,),
    )
    seal(checkpoint, manifest)
    certify(checkpoint, step=4, horizon=2)
    sound = [json.loads((checkpoint / name).read_text()) for name in ("MANIFEST.json", "CERTIFICATE.json")]

    def make(chance: Chance) -> bytes:
        first = changed_json(chance, sound[0]) if chance.random() < 0.7 else json.dumps(sound[0]).encode()
        digest = hashlib.sha256(first).hexdigest()
        second = changed_json(chance, {**sound[1], "manifest": digest})
        return b"\n\n".join([first, second])

    return make


def read_checkpoint(folder: Path, content: bytes) -> None:
    checkpoint = folder / "checkpoints" / TAG
    first, _, second = content.partition(b"\n\n")
    (checkpoint / "MANIFEST.json").write_bytes(first)
    (checkpoint / "CERTIFICATE.json").write_bytes(second)
    candidates(folder / "checkpoints")
    manifest = read_manifest(checkpoint)
    verify(checkpoint, manifest, manifest.files)
    assert manifest.total_bytes >= 0
    read_certificate(checkpoint)


SHARES = {"sharded": TensorRecord(shape=(4, 2), sharded=0, stacked=(2, 2)), "whole": TensorRecord(shape=(3,))}
TENSORS = {
    "weight/sharded": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "exp_avg/sharded@0": {"dtype": "F32", "shape": [3], "data_offsets": [16, 28]},
    "exp_avg/sharded@3": {"dtype": "F32", "shape": [1], "data_offsets": [28, 32]},
    "weight/whole": {"dtype": "BF16", "shape": [3], "data_offsets": [32, 38]},
}


def make_tensors(folder: Path) -> Callable[[Chance], bytes]:
    """It makes the tensors of one rank of two, those of the other are sound."""
    (folder / "state_00001.safetensors").write_bytes(
        tensor_file({name: entry for name, entry in TENSORS.items() if "whole" not in name}, 32)
    )

    def make(chance: Chance) -> bytes:
        header = changed_value(chance, TENSORS) if chance.random() < 0.8 else TENSORS
        content = tensor_file(header, chance.choice([38, 38, 38, 37, 39, 0]))
        return content if chance.random() < 0.7 else anything(chance, content)

    return make


def tensor_file(header: object, size: int) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def read_tensors(folder: Path, content: bytes) -> None:
    (folder / "state_00000.safetensors").write_bytes(content)
    records = [FileRecord(size=1, sha256="0" * 64, rank=rank) for rank in range(2)]
    manifest = Manifest(
        tag=TAG,
        layout=CheckpointLayout(tensor=2, pipeline=1, data=1, zero_stage=0, dtype="fp32"),
        config_digest="",
        optimizer="adamw",
        run_id="r",
        tensors=SHARES,
        data_fingerprint="",
        state=TrainState(step=2),
        files={f"state_{record.rank:05d}.safetensors": record for record in records},
        versions={},
    )
    saved = SavedTensors(folder, manifest)
    for name in saved.names:
        for kind in saved.kinds(name):
            assert saved.read(name, kind).shape == saved.shape(name)


# Configurations


def make_toml(folder: Path) -> Callable[[Chance], bytes]:
    table = make_config(Layout()).model_dump(mode="json", exclude_none=True, exclude={"data": {"kind"}})

    def make(chance: Chance) -> bytes:
        try:
            content = tomli_w.dumps(changed_value(chance, table)).encode()
        except (TypeError, ValueError, AttributeError):  # TOML has no word for it
            content = tomli_w.dumps(table).encode()
        return content if chance.random() < 0.5 else anything(chance, content)

    return make


def read_toml_file(folder: Path, content: bytes) -> None:
    chance = random.Random(content)
    path = folder / "config.toml"
    path.write_bytes(content)
    keys = [
        "run.steps",
        "data.sources",
        "model.attention.num_heads",
        "model",
        "a.b.c",
        "",
        "run..x",
        "model.kind",
    ]
    overrides = [f"{chance.choice(keys)}={chance.choice(ODD)}" for _ in range(chance.choice([0, 0, 1, 2]))]
    config = load_config(path, overrides)
    assert load_config_text(folder, dump_config(config)) == config
    changed_settings(content.decode(errors="replace"), dump_config(config))


def load_config_text(folder: Path, text: str) -> Any:
    (folder / "again.toml").write_text(text)
    return load_config(folder / "again.toml")


def make_deepspeed(folder: Path) -> Callable[[Chance], bytes]:
    table = {
        "train_batch_size": "auto",
        "zero_optimization": {"stage": 0, "reduce_bucket_size": 1000},
        "bf16": {"enabled": False},
        "comms_logger": {"enabled": False, "prof_ops": ["all_reduce"]},
    }
    return lambda chance: (
        changed_json(chance, table) if chance.random() < 0.7 else anything(chance, json.dumps(table).encode())
    )


def read_deepspeed(folder: Path, content: bytes) -> None:
    (folder / "ds.json").write_bytes(content)
    config = make_config(Layout())
    config = config.model_copy(
        update={"run": config.run.model_copy(update={"deepspeed_config": folder / "ds.json"})}
    )
    deepspeed_json(config, plan(make_config(Layout()), 1).batch, 1000)


def make_hostfile(folder: Path) -> Callable[[Chance], bytes]:
    hosts = b"# cluster\nworker-0 slots=2\nme@10.0.0.1 slots=8\n\n::1 slots=1\n"

    def make(chance: Chance) -> bytes:
        line = f"{chance.choice(ODD)} slots={chance.choice(ODD)}\n".encode(errors="replace")
        return chance.choice([hosts, hosts + line, anything(chance, hosts)])

    return make


def read_hosts(folder: Path, content: bytes) -> None:
    chance = random.Random(content)
    (folder / "hosts").write_bytes(content)
    list(environment_file_problems(folder / "hosts"))
    slots = read_hostfile(folder / "hosts")
    select_slots(
        slots, str(chance.choice([*slots, *ODD])) + chance.choice(["", ":0", "@", ":0,9", f":{'9' * 5000}"])
    )


# Models from elsewhere

LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 8,
    "vocab_size": 16,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "head_dim": 4,
    "attention_bias": False,
    "use_cache": True,
}


def make_model(folder: Path) -> dict[str, torch.Tensor]:
    """A Llama as small as they come."""
    (folder / "config.json").write_text(json.dumps(LLAMA))
    block = "model.layers.0"
    shapes = {f"{block}.self_attn.{name}_proj.weight": (8, 8) for name in "qkvo"}
    shapes |= {f"{block}.mlp.{name}_proj.weight": (16, 8) for name in ("gate", "up")}
    shapes |= {f"{block}.{name}layernorm.weight": (8,) for name in ("input_", "post_attention_")}
    shapes |= {
        "model.embed_tokens.weight": (16, 8),
        "model.norm.weight": (8,),
        f"{block}.mlp.down_proj.weight": (8, 16),
    }
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return tensors


def make_settings(folder: Path) -> Callable[[Chance], bytes]:
    make_model(folder)
    return lambda chance: json.dumps(LLAMA).encode() if chance.random() < 0.1 else changed_json(chance, LLAMA)


def make_file_index(folder: Path) -> Callable[[Chance], bytes]:
    index = {
        "metadata": {"total_size": 1},
        "weight_map": dict.fromkeys(make_model(folder), "model.safetensors"),
    }
    return lambda chance: changed_json(chance, index)


def read_model(name: str) -> Callable[[Path, bytes], None]:
    def read(folder: Path, content: bytes) -> None:
        (folder / name).write_bytes(content)
        model = open_model(folder)
        assert sum(model.tensors.read(name).numel() for name in model.tensors.names) > 100

    return read


FORMATS = {
    "config.json": Format(make_settings, read_model("config.json"), (ConfigurationError, CheckpointError)),
    "index of tensors": Format(
        make_file_index, read_model("model.safetensors.index.json"), (CheckpointError,)
    ),
    "index": Format(make_index, read_index, (DataError,)),
    "manifest": Format(make_manifest, read_split, (DataError,)),
    "prepare.json": Format(make_prepared, read_prepared, (TargetExists,)),
    "JSON lines": Format(make_lines, read_lines, (DataError,)),
    "pairs": Format(make_pairs, read_pairs, (DataError,)),
    "manifest of pairs": Format(make_pair_manifest, read_pair_split, (DataError,)),
    "manifest of speech": Format(make_speech_manifest, read_speech_split, (DataError,)),
    "lengths of speech": Format(make_lengths, read_lengths, (DataError,)),
    "units of speech": Format(make_units, read_units_file, (DataError,)),
    "manifest of series": Format(make_series_manifest, read_series_split, (DataError,)),
    "scaler of series": Format(make_scaler, read_scaler, (DataError,)),
    "series": Format(make_series, read_series, (DataError,)),
    "utterance of NeMo": Format(make_utterance, read_utterance, (DataError, AudioRefused)),
    "cut of lhotse": Format(make_cut, read_cut, (DataError,)),
    "ledger": Format(make_ledger, read_ledger_file, (CheckpointError,)),
    "metrics": Format(make_metrics, read_metrics),
    "heartbeat": Format(make_heartbeat, read_heartbeat),
    "checkpoint": Format(make_checkpoint, read_checkpoint, (CheckpointError,)),
    "tensors": Format(make_tensors, read_tensors, (CheckpointError,)),
    "configuration": Format(make_toml, read_toml_file, (ConfigurationError,)),
    "DeepSpeed JSON": Format(make_deepspeed, read_deepspeed, (ConfigurationError,)),
    "hostfile": Format(make_hostfile, read_hosts, (ConfigurationError,)),
}

SEEDS = st.integers(0, 2**64 - 1)
AMOUNTS = [FEW, pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]


def chosen(examples: int) -> settings:
    """Few inputs are the same each time, many are others each time."""
    return settings(
        max_examples=examples,
        derandomize=examples == FEW,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("examples", AMOUNTS)
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_read_or_refused(tmp_path: Path, name: str, examples: int) -> None:
    folder, format_ = tmp_path / "inside", FORMATS[name]
    folder.mkdir()
    make = format_.make(folder)
    ends = {"read": 0, "refused": 0}

    @chosen(examples)
    @given(SEEDS)
    def check(seed: int) -> None:
        content = make(random.Random(seed))
        with confined(folder):
            try:
                format_.read(folder, content)
                ends["read"] += 1
            except format_.errors:
                ends["refused"] += 1

    check()
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert ends["read"], "no input was sound enough to get past the first look"
    assert ends["refused"] or not format_.errors


# Tokenizers, whose reader is in C++: in a process of their own, so that a signal is seen


READER = """
import struct, sys
from contextlib import suppress
from data_pipeline.errors import DataError
from data_pipeline.text.tokenizer import Tokenizer

answers = sys.stdout.buffer
while head := sys.stdin.buffer.read(4):
    answer = b"r"
    try:
        tokenizer = Tokenizer(sys.stdin.buffer.read(struct.unpack("<I", head)[0]))
        tokenizer.decode(tokenizer.encode("two  words \\u2581 \\x00\\n\\uff21 <|endoftext|>"))
        tokenizer.decode([tokenizer.end_of_text])
        for ids in (range(tokenizer.vocabulary_size), [tokenizer.vocabulary_size], [2**31], [2**63], [-1]):
            with suppress(DataError):
                tokenizer.decode(ids)
    except DataError:
        answer = b"d"
    except BaseException as error:
        answer = repr(error).replace("\\n", " ").encode(errors="backslashreplace")
    answers.write(answer + b"\\n")
    answers.flush()
"""


def fields_of(message: bytes) -> list[tuple[int, bytes | int]]:
    """The fields of a protobuf message: key and content."""
    found: list[tuple[int, bytes | int]] = []
    place = 0
    while place < len(message):
        key, place = varint(message, place)
        if key & 7 == 0:
            value, place = varint(message, place)
            found.append((key, value))
        else:
            size, place = varint(message, place) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], place)
            found.append((key, message[place : place + size]))
            place += size
    return found


def varint(message: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, place = message[place], place + 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, place


def message_of(fields: list[tuple[int, bytes | int]]) -> bytes:
    parts = []
    for key, value in fields:
        parts.append(as_varint(key))
        if isinstance(value, int):
            parts.append(as_varint(value))
        else:
            parts += [as_varint(len(value)), value] if key & 7 == 2 else [value]
    return b"".join(parts)


def as_varint(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    return bytes([*digits, value])


NUMBERS = [0, 1, 2, 3, 4, 5, 6, 7, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
FLOATS = [struct.pack("<f", value) for value in (float("nan"), float("inf"), float("-inf"), 1e38, 0.0)]
WORDS = [b"", b"\xff\xfe", b"\0", b"<unk>", b"<|endoftext|>", b"<0x41>", "\u2581".encode(), b"a" * 70_000]
NORMALIZER = 3 << 3 | 2


def odd_model(chance: Chance, model: bytes) -> bytes:
    """It is a model with fields changed: pieces, scores, kinds, settings, and the compiled tables of the normalizer."""
    fields = fields_of(model)
    for _ in range(chance.randint(1, 4)):
        place = chance.choice(
            [chance.randrange(len(fields)), len(fields) - chance.randint(1, min(3, len(fields)))]
        )
        key, value = fields[place]
        match chance.randrange(6):
            case 0:
                fields.insert(chance.randrange(len(fields)), fields[place])
            case 1 if len(fields) > 1:
                del fields[place]
            case 2 if key & 7 == 2:
                fields[place] = (key, chance.randbytes(chance.randint(0, 40)))
            case 3:
                head = struct.pack("<I", chance.choice([*NUMBERS[:12], 4, 1024]))
                table = head + chance.randbytes(chance.choice([0, 4, 16, 1024, 2048]))
                fields.append((NORMALIZER, message_of([(2 << 3 | 2, table)])))
            case _ if isinstance(value, bytes) and key & 7 == 2:
                try:
                    inner = fields_of(value)
                except (IndexError, KeyError):
                    continue
                if inner:
                    spot = chance.randrange(len(inner))
                    inner[spot] = odd_field(chance, *inner[spot])
                    fields[place] = (
                        key,
                        message_of(
                            [*inner, (chance.randint(1, 60) << 3, chance.choice(NUMBERS))][
                                : len(inner) + chance.randint(0, 1)
                            ]
                        ),
                    )
    return message_of(fields)


def odd_field(chance: Chance, key: int, value: bytes | int) -> tuple[int, bytes | int]:
    if isinstance(value, int):
        return key, chance.choice(NUMBERS)
    return key, chance.choice(FLOATS if key & 7 == 5 else WORDS if key & 7 == 2 else [value])


@pytest.fixture
def reader() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(
        [sys.executable, "-c", READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("examples", AMOUNTS)
def test_a_tokenizer_is_read_or_refused(reader: "subprocess.Popen[bytes]", examples: int) -> None:
    assert reader.stdin
    assert reader.stdout
    model = train_tokenizer(
        ["the run keeps its feet while loss falls and every rank agrees on what it saw " * 3], 300
    ).model
    ends = {b"r\n": 0, b"d\n": 0}

    @chosen(examples)
    @given(SEEDS)
    def check(seed: int) -> None:
        chance = random.Random(seed)
        odd = odd_model(chance, model) if chance.random() < 0.6 else anything(chance, model)
        assert reader.stdin
        assert reader.stdout
        reader.stdin.write(struct.pack("<I", len(odd)) + odd)
        reader.stdin.flush()
        answer = reader.stdout.readline()
        assert answer in ends, f"ended with {answer or reader.wait(60)!r}"
        ends[answer] += 1

    check()
    assert all(ends.values()), "no input was sound enough to get past the first look"
