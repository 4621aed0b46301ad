"""manifest.json says what a folder of shards holds, with the checksum of every file."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, computed_field, model_validator

from data_pipeline.errors import DataError
from data_pipeline.parsing import Digest, parse_json, parsed_as
from data_pipeline.shards.remote import RemoteBusy
from data_pipeline.shards.storage import Folder, open_folder
from data_pipeline.shown import shown

MANIFEST = "manifest.json"
FORMAT = 1
"""Of manifests and indices."""

Count = Annotated[int, Field(gt=0, lt=2**53)]
"""A number of things, or a size in bytes, that there can be."""

Extension = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_]*(\.[a-z0-9_]+)*$", max_length=100)]

ManifestType = TypeVar("ManifestType", bound="Manifest")


class ShardEntry(BaseModel):
    """It describes one tar file and its index."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+-[0-9]{6}\.tar$")
    """File name of the shard; `index_name` gives that of its index."""
    samples: Count
    bytes: Count
    """Size of the shard."""
    sha256: Digest
    """Of the shard."""
    index_bytes: Count
    index_sha256: Digest


class Manifest(BaseModel):
    """Every kind of data has these facts; each kind adds its own in a subclass, in the `manifest.py` of its room."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: Literal[1] = 1
    """Version of this file and of the index."""
    kind: str
    """Task that the samples are for."""
    split: Literal["train", "validation", "test"]
    documents: Count
    """Texts, sentence pairs or recordings that the samples were made from."""
    samples: Count
    fields: tuple[Extension, ...] = Field(min_length=1, max_length=64)
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
        if list(self.fields) != (ordered := sorted({*self.fields})):
            raise ValueError(f"fields must be in the order of the tar file, each once, {', '.join(ordered)}")
        return self

    @model_validator(mode="after")
    def _shards_differ(self) -> Self:
        """It refuses a shard that is listed twice: all but one of its checksums would never be looked at."""
        names = [shard.name for shard in self.shards]
        if len({*names}) < len(names):
            raise ValueError(f"shards: {len(names)} are listed under {len({*names})} names")
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
    with parsed_as(DataError, name):
        facts = dict(parse_json(content))
        check_readable(facts, kind.model_fields["kind"].default)
        claimed = facts.pop("fingerprint", None)
        # Strict in JSON's own types: nothing is taken for a number or a string that is none.
        manifest = kind.model_validate_json(json.dumps(facts), strict=True)
        if claimed != manifest.fingerprint:
            raise ValueError(f"fingerprint {shown(claimed)} does not fit its content; prepare the data again")
    return manifest


def check_readable(facts: Any, wanted: object) -> None:
    """It raises ValueError where the facts of a manifest say that it is of another version's format, or of another kind
    of data than is read."""
    if type(found := facts.get("format", FORMAT)) is int and found != FORMAT:
        raise ValueError(
            f"format {found}, and this version of Surefoot has format {FORMAT}; read the data with the version that "
            "made it, or prepare it again"
        )
    if "kind" in facts and (found := facts["kind"]) != wanted:
        raise ValueError(
            f"is data of kind {shown(found)!r}, but what is read here is of kind {wanted!r}; model.kind says what is "
            f"read, and `surefoot prepare {wanted}` makes that"
        )


def split_folder(path: str, split: str, cache: Path | None) -> Folder:
    """It returns the folder of a split: `path` itself where it has a manifest, else the folder named `split` in it.

    Raises DataError when there is neither, with what a server said if that was not just that it has none, and for a
    validation or test split that would be trained on.
    """
    folder = folder_with_manifest(path, split, cache)
    name = f"{folder.name}/{MANIFEST}"
    with parsed_as(DataError, name):
        found = parse_json(folder.read(MANIFEST))["split"]
    if split == "train" and found in ("validation", "test"):
        raise DataError(
            f"{name}: this is a {found} split, and what is trained on tells nothing where a run is validated; "
            "name the folder above it, or the train split in that"
        )
    return folder


def folder_with_manifest(path: str, split: str, cache: Path | None) -> Folder:
    """It returns what `split_folder` does, whatever split is there. It raises what that raises, but for the last."""
    folder = open_folder(path, cache)
    refusal: DataError | None = None
    for candidate in (folder, folder.child(split)):
        try:
            if candidate.has(MANIFEST):
                return candidate
        except RemoteBusy:
            raise
        except DataError as error:  # some servers answer so for what they do not have
            refusal = refusal or error
    raise refusal or DataError(
        f"{path}: no {MANIFEST} and no {split}/{MANIFEST} here; make them with `surefoot prepare`"
    )
