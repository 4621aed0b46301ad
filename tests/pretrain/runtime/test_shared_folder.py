"""Hosts that have a folder of their own under the name of the run's are told before the first step."""

import os
from pathlib import Path

import pytest
from support.distributed import run_distributed
from support.training import Layout, make_config, make_mesh

from pretrain.errors import ConfigurationError
from pretrain.runtime import shared_folder
from pretrain.runtime.shared_folder import check_shared


def look(places: list[Path]) -> str:
    """It looks from a current directory that is another one for each rank, as hosts have other disks."""
    mesh = make_mesh(make_config(Layout(data=2)).parallel)
    before = Path.cwd()
    os.chdir(places[mesh.rank])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_folder, "SECONDS", 0.5)
        try:
            check_shared(Path("runs/test"), mesh)
        except ConfigurationError as error:
            return str(error)
        finally:
            os.chdir(before)
    return ""


@pytest.mark.parametrize("inner", ["", "checkpoints"])
def test_a_host_with_a_folder_of_its_own_is_named(tmp_path: Path, inner: str) -> None:
    for name in ("here", "elsewhere"):
        (tmp_path / name / "runs/test" / inner).mkdir(parents=True)
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    told, again = run_distributed(look, 2, [here, elsewhere])
    assert told == again
    assert f"run.folder: {Path('runs/test') / inner} is another folder for rank 1 on " in told
    assert run_distributed(look, 2, [here, here]) == ["", ""]
    assert [path for path in here.rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be_written_to_is_told_by_all(tmp_path: Path) -> None:
    told, again = run_distributed(look, 2, [tmp_path, tmp_path])
    assert told == again
    assert "No such file" in told
