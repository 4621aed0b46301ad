"""Paths that people write are expanded once, or refused with the reason."""

import argparse
import os
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from data_pipeline.paths import (
    LocationSetting,
    PathSetting,
    escaped,
    expanded,
    location_argument,
    path_argument,
)


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "/home/me"),
        ("~/runs", "/home/me/runs"),
        ("~root/x", os.path.expanduser("~root/x")),
        ("$SCRATCH/runs", "/scratch/me/runs"),
        ("${SCRATCH}2", "/scratch/me2"),
        ("s3://bucket$SCRATCH", "s3://bucket/scratch/me"),
        ("a$$b", "a$b"),
        ("$$SCRATCH", "$SCRATCH"),
        ("./~", "./~"),
        ("a~b", "a~b"),
        ("costs 5$", "costs 5$"),
    ],
)
def test_expansion(text: str, path: str) -> None:
    assert expanded(text) == path


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("$UNSET/runs", r"\$UNSET is not set"),
        ("${UNSET}", r"\$UNSET is not set"),
        ("$EMPTY/runs", r"\$EMPTY is not set"),
        ("~nobody-of-that-name/x", "there is no user nobody-of-that-name"),
    ],
)
def test_what_cannot_be_expanded_is_named(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        expanded(text)
    with pytest.raises(argparse.ArgumentTypeError, match=told):
        path_argument(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("s3://bucket/mine", "s3://bucket/mine is a URL"),
        ("file:///data/mine", "is a URL, and must be a path on this machine"),
        ("", "is empty"),
        ("a\0b", "holds a NUL character"),
    ],
)
def test_what_is_no_path_here_makes_no_folder_of_that_name(text: str, told: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=told):
        path_argument(text)
    with pytest.raises(ValidationError, match=told):
        TypeAdapter(PathSetting).validate_python(text)


def test_locations_may_be_urls() -> None:
    assert location_argument("s3://bucket/$SCRATCH") == "s3://bucket//scratch/me"
    with pytest.raises(ValidationError, match="NUL"):
        TypeAdapter(LocationSetting).validate_python("s3://bucket/\0")


def test_an_empty_location_is_not_the_current_directory() -> None:
    """A shell makes it of a variable without a value; everything here would be read."""
    with pytest.raises(argparse.ArgumentTypeError, match="is empty"):
        location_argument("")
    with pytest.raises(ValidationError, match="is empty"):
        TypeAdapter(LocationSetting).validate_python("")


@pytest.mark.parametrize("path", ["/a/$b", "$$", "~", "~/x", "plain", "${SCRATCH}"])
def test_escaped_paths_come_back(path: str) -> None:
    assert os.path.normpath(expanded(escaped(path))) == path


def test_arguments_that_exist_are_meant_as_they_stand(home: Path) -> None:
    """A shell expands `*` to names like these."""
    for name in ("$UNSET", "~draft"):
        (home / name).touch()
        assert location_argument(name) == name
    assert path_argument("~/corpus") == Path("/home/me/corpus")
