"""Units take transcripts to ids and back, and their file says which they are."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.errors import DataError
from data_pipeline.speech.manifest import UnitsEntry
from data_pipeline.speech.units import BLANK, CharacterUnits, PieceUnits, Units, parse_units, read_units
from data_pipeline.text.tokenizer import train_tokenizer

CHARACTERS = CharacterUnits(" 'aeéß\N{PAW PRINTS}")
TEXTS = ["one two three", "seven eight nine zero"] * 20


@pytest.fixture(scope="module")
def pieces() -> PieceUnits:
    return PieceUnits(train_tokenizer(TEXTS, 300))


def copies(units: Units) -> list[Units]:
    return [units, parse_units(units.file, units.content), pickle.loads(pickle.dumps(units))]


@given(st.text(st.sampled_from(CHARACTERS.characters)))
def test_characters_come_back(text: str) -> None:
    for units in copies(CHARACTERS):
        ids = units.encode(text)
        assert units.decode(ids) == text
        assert BLANK not in ids
        assert (units.count, units.digest) == (8, CHARACTERS.digest)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_pieces_spell_any_text(pieces: PieceUnits, text: str) -> None:
    ids = pieces.encode(text)
    assert pieces.decode(ids) == text
    assert BLANK not in ids
    assert all(0 < number < pieces.count for number in ids)


def test_copies_of_pieces_are_the_same(pieces: PieceUnits) -> None:
    for units in copies(pieces):
        assert units.encode(TEXTS[0]) == pieces.encode(TEXTS[0])
        assert (units.count, units.digest) == (300, pieces.digest)


def test_blanks_and_what_is_no_id_are_left_out_and_repeats_stay(pieces: PieceUnits) -> None:
    a, e = CHARACTERS.encode("ae")
    assert CHARACTERS.decode([BLANK, a, a, BLANK, a, -1, e, 8, 10**9]) == "aaae"
    ids = pieces.encode("nine")
    end_of_text = next(n for n, piece in enumerate(pieces._tokenizer.pieces()) if piece.text.startswith("<|"))
    assert pieces.decode([BLANK, *ids, end_of_text, -1, *ids, 300]) == "ninenine"


def test_characters_outside_are_named_once() -> None:
    with pytest.raises(ValueError, match=r"no units: 'x', '\\\\u202e'$"):
        CHARACTERS.encode("ax\u202exe")


def test_half_a_character_is_refused(pieces: PieceUnits) -> None:
    with pytest.raises(ValueError, match="transcript"):
        pieces.encode("a\ud800")


@pytest.mark.parametrize("characters", [[], ["a", "a"], ["ab"], [""], ["\ud800"], map(chr, range(1, 70_000))])
def test_what_is_no_alphabet_is_refused(characters: list[str]) -> None:
    with pytest.raises(ValueError, match="characters"):
        CharacterUnits(characters)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b'{"format": 2, "characters": ["", "a"]}', "format"),
        (b'{"characters": ["", "a"], "characters": ["", "b"]}', "more than once"),
        (b'{"characters": ["_", "a"]}', "blank"),
        (b'{"characters": ["", "a", "a"]}', "differ"),
        (b'{"characters": ["", "ab"]}', "not one character"),
        (b'{"characters": [""]}', "at least 2"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=rf"units.json: no units of transcripts: .*{said}"):
        parse_units("units.json", content)


def test_pieces_need_a_blank() -> None:
    with pytest.raises(DataError, match=r"units.model: .*not a sentencepiece model"):
        parse_units("units.model", CHARACTERS.content)


def test_whichever_file_is_there_is_read(pieces: PieceUnits, tmp_path: Path) -> None:
    for units in (CHARACTERS, pieces):
        beside: Mapping[str, bytes] = {units.file: units.content}
        assert read_units(beside.__getitem__).digest == units.digest
        UnitsEntry(file=units.file, sha256=units.digest, count=units.count)
    with pytest.raises(DataError, match=r"no units of transcripts: .*units.json.*units.model"):
        read_units(lambda name: (tmp_path / name).read_bytes())


def test_the_file_is_json_with_the_ids_as_places() -> None:
    characters = json.loads(CHARACTERS.content)["characters"]
    assert characters == ["", " ", "'", "a", "e", "é", "ß", "\N{PAW PRINTS}"]
