"""manifest.json says what a folder of shards holds, with the checksum of every file."""

import hashlib
import json
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field, model_validator

from data_pipeline.errors import DataError
from data_pipeline.shards.storage import Folder

MANIFEST = "manifest.json"

ManifestType = TypeVar("ManifestType", bound="Manifest")


class ShardEntry(BaseModel):
    """It describes one tar file and its index."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+-[0-9]{6}\.tar$")
    """File name of the shard; `index_name` gives that of its index."""
    samples: int = Field(gt=0)
    bytes: int = Field(gt=0)
    """Size of the shard."""
    sha256: str
    """Of the shard."""
    index_bytes: int = Field(gt=0)
    index_sha256: str


class Manifest(BaseModel):
    """Every kind of data has these facts; each kind adds its own in a subclass, in the `manifest.py` of its room."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Literal[1] = 1
    """Version of this file and of the index."""
    kind: str
    """Task that the samples are for."""
    split: Literal["train", "validation"]
    documents: int = Field(gt=0)
    """Texts, sentence pairs or recordings that the samples were made from."""
    samples: int = Field(gt=0)
    fields: tuple[str, ...] = Field(min_length=1)
    """Extensions of the members of every sample, in the order of the tar file, which is that of the alphabet."""
    shards: tuple[ShardEntry, ...] = Field(min_length=1)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def fingerprint(self) -> str:
        """It is a SHA-256 over everything above: equal fingerprints mean equal samples in equal order."""
        facts = self.model_dump(mode="json", exclude={"fingerprint"})
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @model_validator(mode="after")
    def _counts_agree(self) -> Self:
        if (total := sum(shard.samples for shard in self.shards)) != self.samples:
            raise ValueError(f"samples is {self.samples}, but the shards hold {total}")
        return self

    @model_validator(mode="after")
    def _fields_are_sorted(self) -> Self:
        """It refuses fields out of order: shards are written that way, and fields are found by their place."""
        if list(self.fields) != sorted(self.fields):
            raise ValueError(f"fields must be in the order of the tar file, {', '.join(sorted(self.fields))}")
        return self


def index_name(shard: str) -> str:
    """It returns the file name of a shard's index."""
    return shard.removesuffix(".tar") + ".index.npy"


def read_manifest(folder: Folder, kind: type[ManifestType]) -> ManifestType:
    """It reads and checks the manifest of a folder.

    Raises DataError when it is missing, malformed, of another version or kind, or edited by hand.
    """
    name = f"{folder.name}/{MANIFEST}"
    content = folder.read(MANIFEST)
    try:
        facts = dict(json.loads(content))
        claimed = facts.pop("fingerprint", None)
        manifest = kind.model_validate(facts)
    except (ValueError, TypeError) as error:
        raise DataError(f"{name}: {_first_fault(error)}") from error
    if claimed != manifest.fingerprint:
        raise DataError(f"{name}: fingerprint {claimed} does not fit its content; prepare the data again")
    return manifest


def _first_fault(error: Exception) -> str:
    if isinstance(error, ValidationError):
        fault = error.errors()[0]
        return f"{'.'.join(map(str, fault['loc'])) or 'content'}: {fault['msg']}"
    return f"not a manifest ({error})"
