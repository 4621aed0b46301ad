"""It tells how well the hardware is used: TFLOP/s and model FLOP utilisation (MFU, arXiv 2204.02311 appendix B)."""

import re
from dataclasses import dataclass

# Dense bf16 peaks in TFLOP/s, from the makers' data sheets. All words of a key must be in the device's name.
_PEAK_TFLOPS = {
    "A10": 125.0,
    "A100": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "A800": 312.0,
    "GH200": 989.4,
    "H100": 989.4,
    "H100 NVL": 835.5,
    "H100 PCIe": 756.5,
    "H200": 989.4,
    "H200 NVL": 835.5,
    "H800": 989.4,
    "L4": 121.0,
    "L40S": 362.0,
    "MI250X": 191.5,  # one of its two dies, which is what a process sees
    "MI300X": 1307.4,
    "MI325X": 1307.4,
}


def peak_tflops(device_name: str) -> float | None:
    """It returns the dense bf16 peak of a device by the name that torch gives it; None if unknown."""
    words = set(re.findall(r"\w+", device_name))
    known = [key for key in _PEAK_TFLOPS if words.issuperset(key.split())]
    return _PEAK_TFLOPS[max(known, key=len)] if known else None


@dataclass(frozen=True)
class Throughput:
    """It turns tokens per second of the whole run into the use of one device."""

    flops_per_token: float
    """Of the model, forward and backward, without recomputation."""
    devices: int
    peak_tflops: float | None = None
    """Of one device; None: unknown, no utilisation."""

    def measures(self, tokens_per_second: float) -> dict[str, float]:
        """It returns `tflops`, in TFLOP/s per device, and `mfu`, a fraction of 1, where the peak is known. Tokens count
        once for each pass over them."""
        tflops = tokens_per_second * self.flops_per_token / self.devices / 1e12
        if self.peak_tflops is None:
            return {"tflops": tflops}
        return {"tflops": tflops, "mfu": tflops / self.peak_tflops}
