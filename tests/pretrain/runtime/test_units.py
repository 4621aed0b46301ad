"""Sizes are told in units that fit them."""

import pytest

from pretrain.runtime.units import in_units


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.00 KiB"),
        (300_000, "293 KiB"),
        (12.5 * 2**20, "12.5 MiB"),
        (2**30, "1.00 GiB"),
        (5 * 2**60, "5120 PiB"),
    ],
)
def test_units_fit(size: float, text: str) -> None:
    assert in_units(size) == text
