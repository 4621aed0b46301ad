import json
from pathlib import Path

import pytest

from pretrain.checkpoint.certificate import CERTIFICATE, certify, read_certificate
from pretrain.checkpoint.manifest import MANIFEST, CheckpointLayout, Manifest, seal
from pretrain.errors import CheckpointError
from pretrain.step import TrainState

TAG = "step00000100-a1"
FACTS = {"median_loss": 2.5, "alarms": 0, "method": "median", "tev": None, "quiet": True}
"""As certificates of earlier versions may hold."""


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    folder = tmp_path / TAG
    folder.mkdir()
    manifest = Manifest(
        tag=TAG,
        layout=CheckpointLayout(tensor=1, pipeline=1, data=1, zero_stage=0, dtype="fp32"),
        config_digest="c0ffee",
        optimizer="adamw",
        run_id="r",
        tensors={},
        data_fingerprint="f00d",
        state=TrainState(step=100),
        files={},
        versions={},
    )
    seal(folder, manifest)
    return folder


def test_what_is_written_is_read(sealed: Path) -> None:
    written = certify(sealed, step=228, horizon=128)
    assert read_certificate(sealed) == written
    assert (written.step, written.horizon, written.tag) == (228, 128, TAG)
    assert not list(sealed.glob(".*"))


def test_a_second_certificate_replaces_the_first(sealed: Path) -> None:
    certify(sealed, step=228, horizon=128)
    assert certify(sealed, step=300, horizon=200) == read_certificate(sealed)


def test_without_a_manifest_there_is_nothing_to_certify(sealed: Path) -> None:
    (sealed / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=f"{MANIFEST}: No such file"):
        certify(sealed, step=228, horizon=128)
    assert not (sealed / CERTIFICATE).exists()


def test_it_vouches_for_its_manifest_alone(sealed: Path) -> None:
    certify(sealed, step=228, horizon=128)
    text = (sealed / MANIFEST).read_text()
    (sealed / MANIFEST).write_text(text.replace("c0ffee", "c0ffe0"))
    with pytest.raises(CheckpointError, match="another checkpoint"):
        read_certificate(sealed)


def test_it_does_not_move_to_another_folder(sealed: Path) -> None:
    certify(sealed, step=228, horizon=128)
    with pytest.raises(CheckpointError, match="another checkpoint"):
        read_certificate(sealed.rename(sealed.with_name("step00000200-a2")))


def test_the_format_is_that_of_earlier_versions(sealed: Path) -> None:
    """Their readers ask for facts, and their certificates may have some."""
    certify(sealed, step=228, horizon=128)
    written = json.loads((sealed / CERTIFICATE).read_text())
    assert list(written) == ["format", "tag", "step", "horizon", "manifest", "facts"]
    assert (written["format"], written["facts"]) == (1, {})
    (sealed / CERTIFICATE).write_text(json.dumps({**written, "facts": FACTS}))
    assert read_certificate(sealed).step == 228
