"""Files of somebody hostile, or of a dying disk: valid ones with bytes and values changed, by the numbers of chance."""

import json
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = (
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
)
RUNS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "os.kill", "exec")


def nested(depth: int, leaf: Any = 0) -> Any:
    for _ in range(depth):
        leaf = [leaf] if depth % 2 else {"a": leaf}
    return leaf


ODD: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        511,
        512,
        2**31,
        2**32,
        2**53,
        2**63 - 1,
        2**63,
        2**64,
        -(2**63) - 1,
        10**30,
    ),
    *(10**400, 0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        "x",
        "..",
        "../x",
        "/etc/passwd",
        "~",
        "a\0b",
        "\x1b[2J",
        "\u202e",
        "\ud800",
        "\r\n",
        "[bold]",
        "[/]",
    ),
    *(
        "a" * 1000,
        "9" * 5000,
        "1e999",
        "nan",
        "\U0001f43e",
        "$(id)",
        "-oProxyCommand=x",
        "https://u:p@h/?sig=x",
    ),
    *([], {}, [[]], [0, 0], {"": ""}, nested(9), nested(50), nested(51)),
]
"""Values that some library trips over."""

CHUNKS = [
    *(
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\n",
        b"\r",
        b'"',
        b"\\",
        b"{",
        b"[",
        b"]",
        b"}",
        b",",
        b":",
        b"=",
        b" ",
    ),
    *(
        b"[" * 2000,
        b'{"a":' * 2000,
        b"9" * 5000,
        b"NaN",
        b"1e999",
        b"-",
        b"\\ud800",
        b"\x1b[2J",
        b"'''",
        b'"""',
        b"#",
    ),
]


def changed_bytes(chance: random.Random, content: bytes) -> bytes:
    """It flips, cuts, doubles and inserts bytes."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 5)):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0 if place < len(data):
                data[place] = chance.randrange(256)
            case 1:
                del data[place : place + chance.randint(1, 30)]
            case 2:
                data[place:place] = chance.choice(CHUNKS)
            case 3:
                del data[place:]
            case 4:
                data[place:place] = data[place : place + chance.randint(1, 60)]
            case _:
                data[place:place] = chance.randbytes(chance.randint(1, 12))
    return bytes(data)


def changed_value(chance: random.Random, value: Any) -> Any:
    """It replaces, removes, renames, adds and doubles parts of nested lists and dictionaries."""
    whole = [deepcopy(value)]
    for _ in range(chance.randint(1, 3)):
        holder, key = chance.choice(list(places(whole)))
        match chance.randrange(8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[str(chance.choice(ODD))] = holder.pop(key)
            case 2 if isinstance(holder, list):
                holder.insert(chance.randint(0, len(holder)), deepcopy(holder[key]))
            case 3:
                other, place = chance.choice(list(places(whole)))
                holder[key] = deepcopy(other[place])
            case _:
                holder[key] = deepcopy(chance.choice(ODD))
        if not whole:
            return chance.choice(ODD)
    return whole[0]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """It yields every place in nested lists and dictionaries, as a holder and a key."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def changed_json(chance: random.Random, value: Any) -> bytes:
    """It is JSON with values changed, now and then with bytes changed as well."""
    content = json.dumps(changed_value(chance, value), ensure_ascii=chance.random() < 0.5)
    written = content.encode(errors="surrogatepass")
    return changed_bytes(chance, written) if chance.random() < 0.3 else written


def anything(chance: random.Random, content: bytes) -> bytes:
    """It is bytes of chance, or a valid file with bytes changed."""
    return (
        chance.randbytes(chance.randint(0, 300)) if chance.random() < 0.1 else changed_bytes(chance, content)
    )


_folder: Path | None = None


@contextmanager
def confined(folder: Path) -> Iterator[None]:
    """It fails a test that changes a file outside of `folder`, or runs or unpickles anything."""
    global _folder
    _folder = folder
    try:
        yield
    finally:
        _folder = None


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    if _folder is None:
        return
    if event in RUNS and event != "exec":
        pytest.fail(f"{event} {arguments}")
    if event == "open" and not (arguments[2] or 0) & WRITING:
        return
    if event == "open" or event in CHANGES:
        path = arguments[0]
        if isinstance(path, str | bytes | os.PathLike):
            where = os.path.abspath(os.fsdecode(path))
            if not where.startswith((f"{_folder}{os.sep}", "/dev/null")) and where != str(_folder):
                pytest.fail(f"{event} of {where}, outside of {_folder}")


sys.addaudithook(_look)
