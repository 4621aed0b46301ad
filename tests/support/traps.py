"""A folder of the user's holds modules that are called as ours are, and as Python's: whoever imports one says so."""

from pathlib import Path

SAID = "a module of the user's was imported"
MODULES = (
    "launch",
    "parallel",
    "pretrain",
    "numpy",
    "pydantic",
    "random",
    "sitecustomize",
    "torch",
    "usercustomize",
)
PACKAGES = ("data_pipeline", "deepspeed")


def set_traps(folder: Path, *without: str) -> Path:
    """It makes the folder with all modules and packages but those that are named."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.py" for name in MODULES if name not in without]
    for name in PACKAGES:
        if name not in without:
            (folder / name).mkdir()
            paths += [folder / name / "__init__.py", folder / name / "__main__.py"]
    for path in paths:
        path.write_text(f"import sys\nprint({SAID!r}, __file__, file=sys.stderr)\nsys.exit(0)\n")
    return folder
