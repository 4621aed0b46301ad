"""A tokenizer is written in the form of Hugging Face's `tokenizers`, which `AutoTokenizer` reads.

Pieces are written with the spaces that they stand for. So nothing is to be replaced in a text, and U+2581, which
sentencepiece writes for a space, is a character like any other: it is spelled as bytes.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.text.tokenizer import END_OF_TEXT, PROBE, SPACE_MARK, Piece, Tokenizer

Merges = list[tuple[str, str]]

FIRST_TRIED, TRIED = 1024, 4096
"""Pieces that the converted tokenizer is tried on: the first ones, among which are those of a user, and so many more,
spread over the vocabulary."""
TRIED_TOGETHER = 8


def tokenizer_files(tokenizer: Tokenizer, sequence_length: int) -> dict[str, dict[str, Any]]:
    """It returns the content of `tokenizer.json` and `tokenizer_config.json`, by their names.

    Raises DataError for a tokenizer that is no byte-pair encoding, or has pieces that are found before it begins.
    """
    pieces = tokenizer.pieces()
    merges = _merges(pieces)
    _check(tokenizer, pieces, merges)
    return {
        "tokenizer.json": _tokenizer(pieces, merges),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": sequence_length,
            "bos_token": END_OF_TEXT,
            "eos_token": END_OF_TEXT,
            "unk_token": _unknown(pieces),
            # Characters of a text that read like a control piece are text.
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
        },
    }


def _tokenizer(pieces: Sequence[Piece], merges: Merges) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": piece.text, **flags, "special": True}
            for number, piece in enumerate(pieces)
            if piece.kind == "control"
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": _unknown(pieces),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece.text: number for number, piece in enumerate(pieces)},
            "merges": merges,
        },
    }


def _unknown(pieces: Sequence[Piece]) -> str:
    """It returns the control piece that stands for what nothing else does, which byte fallback leaves without use."""
    return next(piece.text for piece in pieces if piece.kind == "control" and piece.text != END_OF_TEXT)


def _merges(pieces: Sequence[Piece]) -> Merges:
    """It returns all pairs of pieces that make another one, in the order of the scores of what they make."""
    scores = {piece.text: piece.score for piece in pieces if piece.kind == "text"}
    return [
        (text[:cut], text[cut:])
        for text in sorted(scores, key=lambda text: -scores[text])
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]


def _check(tokenizer: Tokenizer, pieces: Sequence[Piece], merges: Merges) -> None:
    """It raises DataError where merging by these pairs gives other ids than the tokenizer."""
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    for text in _texts(pieces):
        if [ids[symbol] for symbol in _encoded(text, ids, ranks)] != tokenizer.encode(text):
            raise DataError(
                f"the tokenizer does not encode {text!r} as byte-pair encoding by the scores of its pieces does, "
                "so it has no counterpart in Hugging Face's tokenizers; one that `surefoot prepare text` trained has"
            )


def _texts(pieces: Sequence[Piece]) -> Iterator[str]:
    """It yields texts that the pieces occur in, and some that are nasty."""
    yield from (PROBE, f"a{SPACE_MARK} b{SPACE_MARK}{SPACE_MARK}", END_OF_TEXT, "<unk><0x41>", "\0\r\n")
    texts = [piece.text for piece in pieces if piece.kind == "text"]
    chosen = texts[:FIRST_TRIED] + texts[FIRST_TRIED :: max(1, len(texts) // TRIED)]
    for start in range(0, len(chosen), TRIED_TOGETHER):
        yield "".join(chosen[start : start + TRIED_TOGETHER])


def _encoded(text: str, ids: Mapping[str, int], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """It returns the pieces of a text as `tokenizers` finds them: the pair of the lowest rank is merged, the first of
    its kind, until there is none."""
    symbols = [symbol for char in text for symbol in ([char] if char in ids else _bytes(char))]
    while True:
        pairs = [ranks.get(pair, len(ranks)) for pair in pairwise(symbols)]
        best = min(pairs, default=len(ranks))
        if best == len(ranks):
            return symbols
        at = pairs.index(best)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


def _bytes(char: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in char.encode()]
