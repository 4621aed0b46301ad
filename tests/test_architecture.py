"""The rules about imports that import-linter cannot express, checked on the syntax tree of every module."""

import ast
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("data_pipeline", "parallel", "pretrain", "launch")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

OWNERS = {
    "apex": ("pretrain.runtime.kernels", "pretrain.optim.*"),
    "deepspeed": ("pretrain.backend.*",),
    "megatron": ("parallel.megatron",),
    "webdataset": ("data_pipeline.shards.*",),
    "jiwer": ("pretrain.tasks.speech.scores",),
    "rapidfuzz": ("pretrain.tasks.speech.objective",),
    "kenlm": ("pretrain.tasks.speech.language_model",),
    "matplotlib": ("pretrain.commands.forecast.plot",),
    "sacrebleu": ("pretrain.tasks.translation.scores",),
    "sentencepiece": ("data_pipeline.text.tokenizer",),
    "soundfile": ("data_pipeline.speech.audio",),
    "soxr": ("data_pipeline.speech.audio",),
    "torch.utils.tensorboard": ("pretrain.metrics.*",),
    "tensorboard": ("pretrain.metrics.*",),
    "transformers": ("pretrain.export.*",),
}
"""Third party -> patterns of the modules that may import it."""

REGISTRIES = ("pretrain.tasks.registry", "pretrain.tasks.kinds")


def folders(parent: str) -> list[Path]:
    """The packages in a folder of the repository."""
    return [path.parent for path in sorted((ROOT / parent).glob("*/__init__.py"))]


def has_source(folder: Path) -> bool:
    """Whether a room of data_pipeline is a kind of data: those can be prepared."""
    return (folder / "command.py").exists()


LAUNCH_MAY_IMPORT = (
    "data_pipeline.paths",
    "data_pipeline.files",
    "data_pipeline.parsing",
    "data_pipeline.program",
    "data_pipeline.shown",
    "pretrain.config",
    "pretrain.plan",
    "pretrain.ledger",
    "pretrain.errors",
    "pretrain.run_folder",
    "pretrain.step",
    "pretrain.checkpoint.lifecycle",
    "pretrain.checkpoint.tag",
    "pretrain.fault_injection.plan",
    "pretrain.runtime.heartbeat",
    "pretrain.runtime.libraries",
    "pretrain.runtime.run_folder_guard",
    "pretrain.runtime.run_lock",
    "pretrain.runtime.stacks",
    "pretrain.runtime.startup",
    "pretrain.runtime.units",
    "pretrain.watchdog.budgets",
)
"""What of ours the command line sees: rooms, and single modules of others, that need no torch (import-linter checks
that they stay so)."""


ON_TEXT = {"text": ("data_pipeline.translation.*", "data_pipeline.speech.*")}
"""Sentences and transcripts are text, tokenized by its room."""

ROOMS = {
    **{f"pretrain.tasks.{path.name}": REGISTRIES for path in folders("pretrain/tasks")},
    **{
        f"data_pipeline.{path.name}": ("pretrain.tasks.*", *ON_TEXT.get(path.name, ()))
        for path in folders("data_pipeline")
        if has_source(path)
    },
}
"""The room of each task and of each kind of data -> who else may import it."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Absolute names of what a module imports: `a.b` for `import a.b` and for `from a import b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


def is_inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def violations_of_ownership(module: str, tree: ast.AST) -> list[str]:
    names = [name for name, _ in imported(tree)]
    return [
        f"{module} imports {name}"
        for name in names
        for package, owners in OWNERS.items()
        if is_inside(name, package) and not any(fnmatch(module, owner) for owner in owners)
    ]


def violations_of_launch(module: str, tree: ast.AST) -> list[str]:
    allowed = ("launch", *LAUNCH_MAY_IMPORT)
    return [
        f"{module} imports {name}"
        for name, _ in imported(tree)
        if name.split(".")[0] in PACKAGES and not any(is_inside(name, other) for other in allowed)
    ]


def violations_of_rooms(module: str, tree: ast.AST) -> list[str]:
    """Imports of a task's room, or of a kind of data, from outside of it.

    Tasks may read kinds of data; of tasks only the registries know, and of kinds of data nobody else.
    """
    names = [name for name, _ in imported(tree)]
    return [
        f"{module} imports {name}"
        for name in names
        for room, visitors in ROOMS.items()
        if is_inside(name, room) and not any(fnmatch(module, visitor) for visitor in (f"{room}*", *visitors))
    ]


def lazy_imports(tree: ast.AST) -> list[int]:
    """Lines of imports that wait for a call, or that only type checkers see."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    late = [node for function in functions for _, node in imported(function)]
    for_checkers = [node for name, node in imported(tree) if name == "typing.TYPE_CHECKING"]
    return sorted({node.lineno for node in late + for_checkers})


def environment_reads(tree: ast.AST) -> list[int]:
    names = {"environ", "environb", "getenv", "putenv"}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in names]
    imports = [node for name, node in imported(tree) if name.rpartition(".")[2] in names]
    return sorted(node.lineno for node in attributes + imports)


LONGEST_FILE, LONGEST_FUNCTION = 350, 60


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_and_functions_fit(path: Path) -> None:
    text = path.read_text()
    functions = [
        n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert len(text.splitlines()) <= LONGEST_FILE
    assert [f.name for f in functions if (f.end_lineno or 0) - f.lineno >= LONGEST_FUNCTION] == []


def test_few_files_stand_beside_the_rooms_of_pretrain() -> None:
    assert len(list((ROOT / "pretrain").glob("*.py"))) <= 8


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_module_follows_the_laws(path: Path) -> None:
    module, tree = module_name(path), ast.parse(path.read_text())
    assert violations_of_ownership(module, tree) == []
    assert violations_of_rooms(module, tree) == []
    assert lazy_imports(tree) == [], "what a module needs is imported with it"
    if is_inside(module, "launch"):
        assert violations_of_launch(module, tree) == []
    elif module != "parallel.mesh":
        assert environment_reads(tree) == [], "the environment is read in launch/ and parallel/mesh.py"
    if path.name == "__init__.py":
        assert path.read_text() == ""


SOURCE = """
from typing import TYPE_CHECKING
def f():
    import deepspeed
    from os import environ
    from pretrain import engine
    import pretrain.tasks.gpt.config
    return os.getenv("X")
"""


def test_rules_notice_what_they_forbid() -> None:
    tree = ast.parse(SOURCE)
    assert violations_of_ownership("pretrain.trainer", tree) == ["pretrain.trainer imports deepspeed"]
    assert violations_of_ownership("pretrain.backend.setup", tree) == []
    assert violations_of_rooms("pretrain.trainer", tree) == [
        "pretrain.trainer imports pretrain.tasks.gpt.config"
    ]
    assert violations_of_rooms("pretrain.tasks.kinds", tree) == []
    assert violations_of_launch("launch.cli", tree) == [
        "launch.cli imports pretrain.engine",
        "launch.cli imports pretrain.tasks.gpt.config",
    ]
    assert lazy_imports(tree) == [2, 4, 5, 6, 7]
    assert environment_reads(tree) == [5, 8]


def test_files_of_tests_have_names_of_their_own() -> None:
    """Without `__init__.py` pytest imports each by its name alone."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
