"""What a step asks of torch hardly grows with the methods and with what watches it, by `benchmarks/launches.py`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHALLOW, DEEP = "4", "8"
NUMBERS = ("operators", "solver_calls", "host_reads")
ADDED = {
    # by a layer, to a step of the base
    "sigma": 40,
    "probes, looking": 120,
    "probes, not looking": 40,
    "sigma, probes looking": 160,
    "watchdog": 0,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, float]]]:
    out = tmp_path_factory.mktemp("launches") / "launches.json"
    words = ["--depths", SHALLOW, DEEP, "--hidden", "32", "--arms", *ADDED, "--out", str(out)]
    subprocess.run([sys.executable, str(ROOT / "benchmarks/launches.py"), *words], check=True, cwd=ROOT)
    return dict(json.loads(out.read_text()))


def by_layer(costs: dict[str, dict[str, float]], number: str) -> float:
    return (costs[DEEP][number] - costs[SHALLOW][number]) / (int(DEEP) - int(SHALLOW))


@pytest.mark.parametrize("arm", ADDED)
def test_a_layer_adds_little(arm: str, found: dict[str, dict[str, dict[str, float]]]) -> None:
    operators, solver_calls, host_reads = (
        by_layer(found[arm], number) - by_layer(found["base"], number) for number in NUMBERS
    )
    assert by_layer(found["base"], "operators") > 100, "the count misses the layers themselves"
    assert operators <= ADDED[arm]
    assert solver_calls == host_reads == 0


def test_matrices_go_through_one_solver_call_of_each_kind(
    found: dict[str, dict[str, dict[str, float]]],
) -> None:
    # eigenvectors of the inner products, Cholesky's factor, and its inverse; all matrices have as many vectors
    assert found["sigma"][DEEP]["solver_calls"] == 3
