"""What the probes find arrives in metrics.jsonl and TensorBoard, in whole runs."""

from pathlib import Path

import pytest
from support.distributed import run_distributed
from support.runs import metrics, run_config, run_to_end
from support.training import Layout
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PROBES = {"every_steps": 2, "histogram_every_steps": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A run of eight steps on two pipeline stages."""
    folder = tmp_path_factory.mktemp("probed")
    journal = {"tensorboard": True}
    config = run_config(Layout(pipeline=2, accumulation=3), folder, corpus, probes=PROBES, journal=journal)
    assert run_distributed(run_to_end, 2, config) == ["finished"] * 2
    return folder


def test_rows(folder: Path) -> None:
    assert list(metrics(folder, "tev_mean")) == list(range(1, 9))
    for name in (
        "tev_p99",
        "attention_entropy_min",
        "attention_entropy_mean/layer_01",
        "gradient_variance",
        "gradient_norm/layer_00",
        "sigma_max",
        "activation_rms/layer_01",
        "update_rms/embedding",
    ):
        assert list(metrics(folder, name)) == [2, 4, 6, 8], name


def test_curves_and_histograms(folder: Path) -> None:
    curves = EventAccumulator(str(folder / "test/tensorboard"), {"histograms": 0}).Reload()
    tags = curves.Tags()
    assert {
        "embedding/tev_mean",
        "attention/entropy_mean/layer_01",
        "train/gradient_variance/final_norm",
        "spectral/sigma_max",
        "spectral/sigma/layer_00/attention.output",
        "update/rms",
    } <= set(tags["scalars"])
    assert set(tags["histograms"]) == {"embedding/tev", "attention/entropy_of_heads"}
    events = curves.Histograms("embedding/tev")
    assert [event.step for event in events] == [4, 8]
    assert events[0].histogram_value.num == 300
