"""What a file holds is told from its name and its first bytes: text, JSON lines, or nothing that text is read from."""

import re
from pathlib import Path
from typing import BinaryIO, Literal

from data_pipeline.preparing.compression import opened_content, plain_name
from data_pipeline.preparing.documents import NotText
from data_pipeline.preparing.json_lines import JSON, JSON_ARRAY, JSON_LINES, first_record
from data_pipeline.shown import shown

Format = Literal["text", "jsonl"]

TABLES = (".csv", ".tsv")

AS_TEXT = "--format text takes it as it is"

_SIGNATURES = {
    rb"%PDF-": "a PDF document",
    rb"PK\x03\x04": "a zip archive, or a document that is one; unpack it",
    rb".{257}ustar": "a tar archive; unpack it",
    rb"PAR1\x15": "a Parquet file; write its texts as JSON lines",
    rb"\x1f\x8b": "compressed by gzip, but its name does not end in .gz",
    rb"BZh[1-9]1AY&SY": "compressed by bzip2, but its name does not end in .bz2",
    rb"\xfd7zXZ\x00": "compressed by xz, but its name does not end in .xz",
    rb"\x28\xb5\x2f\xfd": "compressed by zstd, but its name does not end in .zst",
    rb"\xff\xfe|\xfe\xff": "UTF-16 or UTF-32; `iconv -f UTF-16 -t UTF-8` converts it",
    JSON_ARRAY: f"a JSON array, not JSON lines (`jq -c '.[]'` makes them); {AS_TEXT}",
}


def format_of(path: Path, raw: BinaryIO, field: str) -> Format:
    """It tells how the open file `raw` is to be read; afterwards it stands somewhere in its first lines.

    JSON lines are known by their name, or by their first line if that is a JSON object with the field. Raises NotText
    for what is no text, and for what looks like data around text.
    """
    suffix = plain_name(path).suffix
    if suffix in JSON_LINES:
        return "jsonl"
    if suffix in TABLES:
        raise NotText(f"a table; {AS_TEXT}")
    content = opened_content(path, raw)
    head = content.peek()
    for signature, what in _SIGNATURES.items():
        if re.match(signature, head, re.DOTALL):
            raise NotText(what)
    record = first_record(content)
    if record is not None and field in record:
        return "jsonl"
    if record is not None:
        names = ", ".join(map(shown, record)) or "none"
        raise NotText(
            f"JSON lines without the field {shown(field)!r}, only {names}; choose with --field, or {AS_TEXT}"
        )
    if suffix == JSON:
        raise NotText(f"JSON, but not JSON lines; {AS_TEXT}")
    return "text"
