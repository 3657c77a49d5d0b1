"""Arrays of NumPy and the bytes of a safetensors file: what goes in comes out."""

import numpy
import pytest

from grid_jupyter.client.tensor_files import read_arrays, write_arrays


@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">f8", ">i4", ">i8", "<i2"])
def test_arrays_of_either_byte_order_are_written_as_a_file_has_them(dtype: str):
    found = read_arrays(write_arrays({"a": numpy.array([[1, -2], [3, 4]], dtype).T, "b": numpy.array(7, dtype)}))
    assert found["a"].tolist() == [[1, 3], [-2, 4]]
    assert found["b"] == 7
