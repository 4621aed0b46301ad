import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.checkpoint.tag import Tag


@given(attempt=st.integers(1, 999_999_999), step=st.integers(0, 10**18 - 1))
def test_name_and_tag_are_the_same_thing(attempt: int, step: int) -> None:
    tag = Tag(attempt=attempt, step=step)
    assert Tag.parse(str(tag)) == tag


@given(st.text() | st.from_regex(r"step\d{1,12}-a\d{1,4}\n?"))
def test_a_tag_has_one_spelling(name: str) -> None:
    tag = Tag.parse(name)
    assert tag is None or str(tag) == name


NO_TAGS = [
    "../step00000010-a1",
    "step00000010-a1/",
    ".step00000010-a1",
    "step10-a1",
    "step000000100-a1",
    "step00000010",
    "step00000010-a0",
    "step00000010-a01",
    "step00000010-a1.quarantined",
    "step00000010-a1.retired",
    "latest",
    "global_step10",
    "step00000010-a1\n",
    "step0000001\u0660-a1",
    "",
]


@pytest.mark.parametrize("name", NO_TAGS)
def test_other_names_are_no_tags(name: str) -> None:
    assert Tag.parse(name) is None


def test_order_is_by_age() -> None:
    left_behind, after_return = Tag(attempt=7, step=3000), Tag(attempt=8, step=1200)
    assert sorted([after_return, left_behind]) == [left_behind, after_return]
