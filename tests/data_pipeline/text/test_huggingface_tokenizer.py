"""`AutoTokenizer` gives the ids of the tokenizer that was converted, whatever the text, and decodes them to it."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_pipeline.errors import DataError
from data_pipeline.text.huggingface import tokenizer_files
from data_pipeline.text.tokenizer import END_OF_TEXT, SPACE_MARK, Tokenizer, train_tokenizer

TEXTS = [
    Path(io.__file__).read_text(),
    Path(json.__file__).read_text(),
    "aaa aa aaaa  abab  ababa 日本 e\u0301" * 9,
]
NASTY = [
    "",
    " ",
    "  two  spaces ",
    "\t\n\r\n \n\n",
    "日本語 漢字",
    "\U0001f43e\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "e\u0301\u0323 \uff21\u2460",
    "a\0b\0",
    f"{SPACE_MARK}x{SPACE_MARK}{SPACE_MARK} {SPACE_MARK}",
    END_OF_TEXT,
    f"x{END_OF_TEXT} y",
    "<unk><s><0x41> <0x0A>",
    "1234567890" * 1000,
    "\ufeff\u202e\u200b\u2028",
    "\ue000\U0010ffff",
    " " * 1001,
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 700)


@pytest.fixture(scope="module", params=["gpt2", "gpt_neox", "llama"])
def converted(
    tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Any:
    """What `AutoTokenizer` makes of a folder that also holds the first form, as exports do."""
    folder = tmp_path_factory.mktemp("converted")
    for name, content in tokenizer_files(tokenizer, 128).items():
        (folder / name).write_text(json.dumps(content))
    (folder / "tokenizer.model").write_bytes(tokenizer.model)
    (folder / "config.json").write_text(json.dumps({"model_type": request.param}))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_nasty_texts(tokenizer: Tokenizer, converted: Any, text: str) -> None:
    ids = converted(text)["input_ids"]
    assert ids == tokenizer.encode(text)
    assert converted.decode(ids) == text


pieces_of_text = st.lists(
    st.sampled_from(["a", "ab", " ", "\n", SPACE_MARK, "é", "self", "  ", "0", "="])
).map("".join)


@given(st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), pieces_of_text))
def test_any_text(tokenizer: Tokenizer, converted: Any, text: str) -> None:
    ids = converted(text)["input_ids"]
    assert ids == tokenizer.encode(text)
    assert converted.decode(ids) == text


def test_documents_end_as_in_training(tokenizer: Tokenizer, converted: Any) -> None:
    assert len(converted) == tokenizer.vocabulary_size
    assert converted.eos_token_id == converted.bos_token_id == tokenizer.end_of_text


def test_what_is_saved_again_is_the_same(tokenizer: Tokenizer, converted: Any, tmp_path: Path) -> None:
    converted.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert [again(text)["input_ids"] for text in NASTY] == [tokenizer.encode(text) for text in NASTY]


@pytest.mark.parametrize("other", [{"model_type": "unigram"}, {"user_defined_symbols": ["zqx"]}])
def test_tokenizers_of_other_kinds_are_refused(other: dict[str, Any]) -> None:
    model = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "vocab_size": 600,
        "normalization_rule_name": "identity",
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "control_symbols": [END_OF_TEXT],
        "minloglevel": 2,
    }
    lines = iter("\n".join(TEXTS).splitlines())
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **settings | other)
    with pytest.raises(DataError, match="no counterpart in Hugging Face's tokenizers"):
        tokenizer_files(Tokenizer(model.getvalue()), 128)
