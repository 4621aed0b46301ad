"""Sections that go by their kind: which one is read, what is said of a wrong one."""

import pickle
from typing import Annotated, Literal

import pytest
from pydantic import ValidationError

from pretrain.config.keys import walk
from pretrain.config.problems import explain
from pretrain.section import OneOf, Section, kind_of


class Shape(Section):
    kind: str
    name: str = ""


class Circle(Shape):
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


class Square(Shape):
    kind: Literal["square"] = "square"
    side: int


class Drawing(Section):
    shape: Annotated[Shape, OneOf((Circle, Square))]


def test_the_kind_says_which_section_is_read() -> None:
    assert isinstance(Drawing.model_validate({"shape": {"kind": "square", "side": 2}}).shape, Square)
    assert Drawing.model_validate({"shape": {"radius": 2}}).shape == Circle(radius=2)
    assert kind_of(Square) == "square"


def test_sections_survive_dumps_and_pickles() -> None:
    drawing = Drawing(shape=Square(side=3))
    assert Drawing.model_validate(drawing.model_dump(mode="json")) == drawing
    assert Drawing.model_validate_json(drawing.model_dump_json(), strict=True) == drawing
    assert pickle.loads(pickle.dumps(drawing)) == drawing


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"kind": "star"}, 'shape.kind = "star": must be "circle", "square"'),
        ({"kind": "square"}, "shape.side: required"),
        ({"kind": "square", "side": "x"}, 'shape.side = "x": must be a whole number'),
        (
            {"kind": "square", "side": 1, "radius": 2},
            'shape.radius = 2: unknown key; it is a key of kind = "circle"',
        ),
        ({"radios": 2}, "shape.radios = 2: unknown key; did you mean shape.radius?"),
    ],
)
def test_what_is_wrong_is_told_in_the_words_of_the_user(table: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Drawing.model_validate({"shape": table}, strict=True)
    assert words in next(str(fault) for fault in explain(Drawing, caught.value))


def test_keys_of_all_kinds_are_known_each_once() -> None:
    keys = [key for key, _ in walk(Drawing)]
    assert keys == ["shape", "shape.kind", "shape.name", "shape.radius", "shape.side"]
