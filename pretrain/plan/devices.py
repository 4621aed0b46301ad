"""Devices and links are known by rates, which makers' data sheets declare and users may declare otherwise."""

from collections.abc import Sequence

from pydantic import Field, ValidationError

from pretrain.config.keys import nearest
from pretrain.config.problems import explain
from pretrain.errors import ConfigurationError
from pretrain.runtime.throughput import peak_tflops
from pretrain.section import Section


class DeviceRates(Section):
    """What one device, and its links to others, can do at best; efficiencies say how much of that is reached."""

    bf16_tflops: float = Field(gt=0)
    """Dense matrix products in bf16, TFLOP/s."""
    fp32_tflops: float = Field(gt=0)
    """Products in fp32 without TF32, which torch does not use by default, TFLOP/s."""
    memory_gb: float = Field(gt=0)
    """Memory, in 1e9 bytes."""
    memory_gb_per_second: float = Field(gt=0)
    """Its bandwidth."""
    gpus_per_node: int = Field(default=8, gt=0)
    """Devices of a node, which have fast links to each other."""
    link_gb_per_second: float = Field(gt=0)
    """Of a device to the others of its node, in one direction."""
    link_microseconds: float = Field(default=3.0, ge=0)
    """Latency of a hop between them; an assumption, as is that of the network."""
    network_gb_per_second: float = Field(gt=0)
    """Of a device to other nodes, in one direction."""
    network_microseconds: float = Field(default=5.0, ge=0)
    """Latency of a hop between nodes."""
    host_microseconds: float = Field(default=30.0, ge=0)
    """Latency of a TCP message from process to process (gloo), by which ranks agree on a step; an assumption."""
    matmul_efficiency: float = Field(default=0.7, gt=0, le=1)
    """Fraction of TFLOP/s that matrix products reach; an assumption."""
    bandwidth_efficiency: float = Field(default=0.8, gt=0, le=1)
    """Fraction of every bandwidth that is reached; an assumption."""

    def flops_per_second(self, dtype: str) -> float:
        """It returns the peak for products in a compute dtype."""
        return 1e12 * (self.bf16_tflops if dtype == "bf16" else self.fp32_tflops)


def _nvidia(name: str, **rates: float) -> DeviceRates:
    return DeviceRates.model_validate({"bf16_tflops": peak_tflops(name), **rates})


DEVICES = {
    # NVIDIA's data sheets of A100 80GB SXM, H100 SXM and H200 SXM: NVLink counts both directions there, 600 and
    # 900 GB/s. Networks are those of DGX A100 (8 x 200 Gbit/s) and DGX H100 and H200 (8 x 400 Gbit/s).
    "a100": _nvidia(
        "A100",
        fp32_tflops=19.5,
        memory_gb=80,
        memory_gb_per_second=2039,
        link_gb_per_second=300,
        network_gb_per_second=25,
    ),
    "h100": _nvidia(
        "H100",
        fp32_tflops=67,
        memory_gb=80,
        memory_gb_per_second=3350,
        link_gb_per_second=450,
        network_gb_per_second=50,
    ),
    "h200": _nvidia(
        "H200",
        fp32_tflops=67,
        memory_gb=141,
        memory_gb_per_second=4800,
        link_gb_per_second=450,
        network_gb_per_second=50,
    ),
}
"""Devices that are known by name."""


def device_rates(name: str, changes: Sequence[str]) -> DeviceRates:
    """It returns the rates of a known device with changes, each a `KEY=VALUE`.

    Raises ConfigurationError for an unknown key and for a value that cannot be.
    """
    rates = DEVICES[name].model_dump()
    for text in changes:
        key, _, value = text.partition("=")
        if key not in rates:
            similar = nearest(key, rates)
            hint = f"did you mean {' or '.join(similar)}?" if similar else f"known are {', '.join(rates)}"
            raise ConfigurationError(f"--rate {text}: there is no rate {key}; {hint}")
        try:
            rates[key] = float(value)
        except ValueError:
            raise ConfigurationError(
                f"--rate {text}: must be a number, for example {key}={rates[key]:g}"
            ) from None
    try:
        return DeviceRates.model_validate(rates)
    except ValidationError as error:
        raise ConfigurationError("--rate: not a rate", explain(DeviceRates, error)) from None
