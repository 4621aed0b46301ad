"""CERTIFICATE.json says that a run stayed healthy after a checkpoint, and that its bytes are still right.

It lies beside the manifest and names its digest: it vouches for that checkpoint and no other.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from data_pipeline.files import replace_file
from data_pipeline.parsing import Digest
from data_pipeline.shown import shown
from pretrain.checkpoint.manifest import MANIFEST, Document, parse_document, read_text
from pretrain.errors import CheckpointError

CERTIFICATE = "CERTIFICATE.json"


class Certificate(Document):
    """It is given to a sealed checkpoint once the steps after it were healthy."""

    format: Literal[1] = 1
    tag: str
    step: int = Field(ge=0, lt=2**53)
    """The step at which it was certified."""
    horizon: int = Field(ge=0, lt=2**53)
    """Healthy steps since the checkpoint that it rests on."""
    manifest: Digest
    """SHA-256 of the manifest."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """Empty. It is there since readers of this format ask for it."""


def certify(folder: Path, *, step: int, horizon: int) -> Certificate:
    """It writes the certificate of a checkpoint, durably; its bytes have been verified.

    Raises CheckpointError without a manifest, and OSError.
    """
    certificate = Certificate(tag=folder.name, step=step, horizon=horizon, manifest=_manifest_digest(folder))
    replace_file(folder / CERTIFICATE, certificate.model_dump_json(indent=1))
    return certificate


def read_certificate(folder: Path) -> Certificate:
    """It reads a certificate; raises CheckpointError if it is missing, not understood, or vouches for another
    checkpoint."""
    path = folder / CERTIFICATE
    certificate = parse_document(path, read_text(path), Certificate)
    if certificate.tag != folder.name or certificate.manifest != _manifest_digest(folder):
        raise CheckpointError(
            f"{path}: this is the certificate of another checkpoint ({shown(certificate.tag)})"
        )
    return certificate


def _manifest_digest(folder: Path) -> str:
    return hashlib.sha256(read_text(folder / MANIFEST)).hexdigest()
