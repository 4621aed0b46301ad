import pytest

from pretrain.runtime.throughput import Throughput, peak_tflops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40", None),
        ("AMD Instinct MI300X", 1307.4),
        ("cpu", None),
        ("", None),
    ],
)
def test_peak_of_devices(name: str, peak: float | None) -> None:
    assert peak_tflops(name) == peak


def test_use_of_one_device() -> None:
    measures = Throughput(flops_per_token=6e9, devices=8, peak_tflops=300.0).measures(
        tokens_per_second=200_000
    )
    assert measures == {"tflops": pytest.approx(150.0), "mfu": pytest.approx(0.5)}


def test_no_utilisation_without_a_peak() -> None:
    assert Throughput(flops_per_token=1e12, devices=1).measures(3.0) == {"tflops": 3.0}
