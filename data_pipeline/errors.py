"""These errors about data end a run with exit code 3."""


class DataError(Exception):
    """Data is missing, damaged or not what it claims to be; the message names file, key or sample."""
