"""Arrays in `.npy` files are parsed here; nothing is unpickled."""

import io
import math
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)


def parsed_array(content: bytes, dtype: np.dtype[Scalar], shape: tuple[int, ...]) -> NDArray[Scalar]:
    """It returns the array that is the content of a `.npy` file. Only its header is parsed: no memory is taken for what
    the header alone says is there.

    Raises ValueError, or what numpy's parser trips over, for anything but an array of this type and shape.
    """
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("no array in the format of numpy, version 1.0")
    found, by_columns, kind = np.lib.format.read_array_header_1_0(file)
    if kind != dtype or found != shape or by_columns:
        raise ValueError(f"not an array of {' x '.join(map(str, shape))} of type {dtype}")
    if len(content) != file.tell() + dtype.itemsize * math.prod(shape):
        raise ValueError(f"{len(content)} bytes are not those of {' x '.join(map(str, shape))}")
    return np.frombuffer(content, dtype, offset=file.tell()).reshape(shape)
