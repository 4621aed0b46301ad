"""The base of all sections of a configuration, and sections whose keys go by their `kind`."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class Section(BaseModel):
    """A frozen part of the configuration that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class OneOf:
    """Marks a field that holds one of several sections: its key `kind` says which, and is that of the first by default.

    Type checkers see the base class that the field is annotated with, so that code which knows no kind can use nothing
    but what all of them have.
    """

    def __init__(self, sections: Sequence[type[BaseModel]]) -> None:
        self.sections: Mapping[str, type[BaseModel]] = {kind_of(section): section for section in sections}
        """By kind."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Pydantic builds a tagged union out of the sections."""
        choices = {kind: handler.generate_schema(section) for kind, section in self.sections.items()}
        return core_schema.tagged_union_schema(choices, discriminator=self.kind_in)

    def kind_in(self, value: Any) -> Any:
        """The kind that a table or a section names, the first one where it names none."""
        first = next(iter(self.sections))
        return value.get("kind", first) if isinstance(value, Mapping) else getattr(value, "kind", first)


def kind_of(section: type[BaseModel]) -> str:
    """The kind of a section is the default of its key `kind`, which admits nothing else."""
    return str(section.model_fields["kind"].default)
