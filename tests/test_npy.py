"""Reading .npy files: as numpy reads them, and nothing that is not whole."""

from io import BytesIO

import numpy as np
import pytest

from clamplib.files import HEAD_BYTES, InputError, load_array, read_array

MANY = np.arange(HEAD_BYTES).reshape(2, -1)  # more than is read with the header


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", ">f8", "<i2", "u1", "<u8", np.longdouble])
@pytest.mark.parametrize("shape", [(), (0,), (7,), (1, 5), (2, 0, 3), (3, 4, 5)])
def test_every_layout_is_read_as_numpy_reads_it(tmp_path, shape, dtype, order):
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    path = tmp_path / "a.npy"
    for _ in range(2):  # the second header is one that was parsed before
        values = values + 1
        np.save(path, np.asarray(values, dtype, order))
        for found in (load_array(path), read_array(BytesIO(path.read_bytes()))):
            assert (found.dtype, found.shape, found.flags.writeable) == (np.float32, shape, True)
            np.testing.assert_array_equal(found, np.load(path))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_long_files_of_every_version_are_read(tmp_path, version):
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, MANY, version)
        file.write(b"more")
    np.testing.assert_array_equal(load_array(tmp_path / "a.npy"), MANY)


def test_the_size_of_every_file_is_checked(tmp_path):
    np.save(tmp_path / "a.npy", MANY)
    load_array(tmp_path / "a.npy")
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "b.npy").write_bytes(data[:-1])  # the same header
    with pytest.raises(InputError, match=rf"b\.npy: expected {len(data)} bytes, .* got {len(data) - 1}"):
        load_array(tmp_path / "b.npy")


@pytest.mark.parametrize("array", [np.array([None]), np.array(["a"]), np.ones(2, complex), np.ones(2, "f4,f4")])
def test_only_real_numbers_are_read(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=r"a\.npy: expected real numbers, got dtype"):
        load_array(tmp_path / "a.npy")


@pytest.mark.parametrize("version", [(1, 1), (4, 0)])
def test_an_unknown_version_is_refused(tmp_path, version):
    np.save(tmp_path / "a.npy", MANY)
    data = bytearray((tmp_path / "a.npy").read_bytes())
    data[6:8] = version
    if version[0] > 1:  # its header has a length of four bytes
        data[10:10] = bytes(2)
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.npy: expected a \.npy file of"):
        load_array(tmp_path / "a.npy")


def test_nan_and_infinity_are_told(tmp_path):
    for value in (np.nan, np.inf, 1e300):
        np.save(tmp_path / "a.npy", np.array([1, value]))
        with pytest.raises(InputError, match=r"a\.npy: expected finite float32 numbers, got NaN or infinity"):
            load_array(tmp_path / "a.npy")
        assert not np.isfinite(read_array(BytesIO((tmp_path / "a.npy").read_bytes()))).all()
