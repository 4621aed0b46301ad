"""Sizes are told in units that fit them."""

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def in_units(size: float) -> str:
    """It tells a number of bytes with three digits, in the largest unit of which there is at least one."""
    unit = 0
    while abs(size) >= 1024 and unit < len(UNITS) - 1:
        size, unit = size / 1024, unit + 1
    digits = 0 if unit == 0 or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {UNITS[unit]}"
