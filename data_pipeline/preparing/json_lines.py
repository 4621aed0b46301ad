"""JSON lines, and other JSON, are told from text by name and first line: as text they would be learned with their keys
and brackets."""

import re
from io import BufferedReader
from pathlib import Path
from typing import Any

from data_pipeline.preparing.compression import opened_content, plain_name
from data_pipeline.preparing.documents import LONGEST_ROW, first_object

JSON_LINES = (".jsonl", ".ndjson", ".jsonlines")
JSON = ".json"

JSON_ARRAY = rb'(\xef\xbb\xbf)?\s*\[\s*\{\s*"'
_BRACE = re.compile(rb"(\xef\xbb\xbf)?\s*\{")


def first_record(content: BufferedReader) -> dict[str, Any] | None:
    """It returns the JSON object that the first line is which holds anything; None where it is none. Afterwards
    `content` stands somewhere in its first lines."""
    if not _BRACE.match(content.peek()):
        return None
    lines = iter(lambda: content.readline(LONGEST_ROW), b"")
    return first_object(
        next(filter(bytes.strip, (line.removeprefix(b"\xef\xbb\xbf") for line in lines)), b"")
    )


def told_json(path: Path, raw: BufferedReader) -> str:
    """It says what of JSON the file at `path`, which is open as `raw`, holds; empty where it is taken for text.

    Afterwards `raw` stands at its beginning. Raises DataError for a packed file that is damaged.
    """
    suffix = plain_name(path).suffix
    if suffix in JSON_LINES:
        return "JSON lines by its name"
    if suffix == JSON:
        return "JSON by its name"
    content = opened_content(path, raw)
    is_array = re.match(JSON_ARRAY, content.peek())
    found = "a JSON array" if is_array else "JSON lines" if first_record(content) else ""
    raw.seek(0)
    return found
