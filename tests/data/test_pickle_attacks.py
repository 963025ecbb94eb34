"""Pickles, torch's files and NumPy's files that ask for code, pointers, hours or gigabytes are refused at once."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import resource
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from xmodal.data.array_files import load_array, load_arrays, map_array
from xmodal.data.legacy import load_checkpoint, load_vocabulary
from xmodal.data.unpickling import PlainUnpickler, Refused

ROOM = 2 << 30
"""Bytes that a test may take beyond what its process has: each attack asks for more."""


@pytest.fixture(autouse=True)
def little_room():
    """Whoever believes a claim gets a MemoryError, which is no ValueError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def nested_tuples(levels: int, copies: int) -> bytes:
    """A key of tuples that hold the one before several times: hashing it goes through all of them."""
    level = b"".join(b"h" + bytes([number]) for number in [0] * copies)
    rest = b"".join(b"(" + level.replace(b"\0", bytes([n])) + b"tq" + bytes([n + 1]) for n in range(levels))
    return b"\x80\x02}(K\x01q\x00" + rest + b"K\x01u."


def shared_lists(levels: int) -> bytes:
    return (
        b"\x80\x02]q\x00"
        + b"".join(b"](" + b"h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(levels))
        + b"."
    )


DEEP = 200_000

BOMBS = {
    "a memo of a billion": b"\x80\x02Nr\xff\xff\xff\x0f.",
    "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 42) + b"abc.",
    "a bytearray that is not there": b"\x80\x05\x96" + struct.pack("<Q", 1 << 42) + b"abc.",
    "text that is not there": b"\x80\x02X\xff\xff\xff\xffabc.",
    "a frame that is not there": b"\x80\x04\x95" + struct.pack("<Q", 1 << 42) + b"N.",
    "exponential hashing": nested_tuples(60, 2),
    "exponential printing": b"\x80\x02c__builtin__\nstr\n" + shared_lists(60)[2:-1] + b"\x85R.",
    "lists that share": shared_lists(60),
    "deep tuples": b"\x80\x02}" + b"N" + b"\x85" * DEEP + b"K\x01s.",
    "deep lists": b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "colliding keys": b"\x80\x02}("
    + b"".join(b"\x8a\x10" + (k * (2**61 - 1)).to_bytes(16, "little") + b"N" for k in range(2**16, 2**16 + 30_000))
    + b"u.",
    "text many times over": b"\x80\x02](X"
    + struct.pack("<I", 1 << 20)
    + b"a" * (1 << 20)
    + b"q\x00"
    + b"c_codecs\nencode\nq\x01h\x00X\x06\x00\x00\x00latin1q\x02\x86R"
    + b"h\x01h\x00h\x02\x86R" * 9000
    + b"e.",
    "a dtype of gigabytes": b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n(X\x0b\x00\x00\x00S4000000000tR"
    + b"C\x01a\x86R.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_pickle_that_asks_for_hours_or_gigabytes_is_refused(name, tmp_path):
    if name == "a memo of a billion":  # it is None all the same
        assert PlainUnpickler(io.BytesIO(BOMBS[name])).load() is None
    else:
        with pytest.raises(ValueError, match=r"it ends within|it holds|its values"):
            PlainUnpickler(io.BytesIO(BOMBS[name]), arrays=True).load()
    (tmp_path / "vocabulary.pkl").write_bytes(BOMBS[name])
    with pytest.raises(ValueError, match=r"vocabulary\.pkl"):
        load_vocabulary(tmp_path / "vocabulary.pkl")


def test_attributes_are_given_to_objects_never_to_classes():
    before = dict(vars(argparse.Namespace))
    for state in (
        b"}X\x08\x00\x00\x00__repr__X\x01\x00\x00\x00xs",
        b"N}X\x08\x00\x00\x00__repr__X\x01\x00\x00\x00xs\x86",
    ):
        with pytest.raises(ValueError, match="it changes a type, which has no attributes"):
            PlainUnpickler(io.BytesIO(b"\x80\x02cargparse\nNamespace\n" + state + b"b.")).load()
    assert dict(vars(argparse.Namespace)) == before


class Reduced:
    """Pickled as a call, and perhaps a state."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


def object_fields(protocol=2) -> bytes:
    """An array whose bytes are addresses of objects, by a dtype that is given fields."""
    fields = {"a": (np.dtype("O"), 0)}
    state = (3, "|", None, ("a",), fields, 8, 8, 27)
    kind = Reduced(np.dtype, ("V8", False, True), state)
    make = np.empty(0).__reduce__()[0]
    return pickle.dumps(
        Reduced(make, (np.ndarray, (0,), b"b"), (1, (1,), kind, False, struct.pack("<Q", 0x4141))), protocol
    )


def object_values() -> bytes:
    make, kind = np.empty(0).__reduce__()[0], np.dtype("O")
    return pickle.dumps(Reduced(make, (np.ndarray, (0,), b"b"), (1, (1,), kind, False, struct.pack("<Q", 0x4141))), 2)


POINTERS = {
    "fields that are objects": object_fields(),
    "bytes as objects": object_values(),
    "a scalar that is an object": pickle.dumps(
        Reduced(np.float64(1).__reduce__()[0], (np.dtype("O"), struct.pack("<Q", 0x4141))), 2
    ),
    "a buffer of objects": pickle.dumps(
        Reduced(np.ones(1).__reduce_ex__(5)[0], (struct.pack("<Q", 0x4141), np.dtype("O"), (1,), "C")), 2
    ),
    "subarrays": pickle.dumps(
        Reduced(np.float64(1).__reduce__()[0], (Reduced(np.dtype, ("(100000,100000)f8",)), b"abc")), 2
    ),
}


@pytest.mark.parametrize("name", POINTERS)
def test_a_dtype_never_turns_bytes_into_pointers(name, tmp_path):
    with pytest.raises(ValueError, match=r"it h(olds|as)"):
        PlainUnpickler(io.BytesIO(POINTERS[name]), arrays=True).load()
    path = tmp_path / "7_info.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(POINTERS[name])
    with pytest.raises(ValueError, match=r"it h(olds|as)"):
        load_array(path)
    torch.save({"model": ({}, {}), "opt": {}}, tmp_path / "c.pth.tar")
    replace_record(tmp_path / "c.pth.tar", "data.pkl", lambda _: POINTERS[name])
    with pytest.raises(ValueError, match=r"c\.pth\.tar cannot be read as a torch checkpoint: it h(olds|as)"):
        load_checkpoint(tmp_path / "c.pth.tar")


def test_plain_arrays_and_types_are_still_read():
    values = {
        "numbers": np.arange(6, dtype=">i2").reshape(2, 3).T,
        "text": np.array(["a", "bcd"]),
        "bytes": np.array([b"a", b"bcd"]),
        "truth": np.array([True, False]),
        "empty": np.zeros((0, 4), "f2"),
        "objects": np.array([{"bbox": [1, 2]}, None], object),
    }
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        pickled = pickle.dumps(values, protocol)
        found = PlainUnpickler(io.BytesIO(pickled), arrays=True).load()
        for name, array in pickle.loads(pickled).items():
            assert found[name].dtype == array.dtype
            assert found[name].tolist() == array.tolist()


def test_large_vocabularies_are_within_the_steps():
    number = {f"word {n}": n for n in range(20_000)}
    for value in ({"word2idx": number, "idx2word": {n: w for w, n in number.items()}}, OrderedDict(number)):
        for protocol in (0, 2, 4):
            assert PlainUnpickler(io.BytesIO(pickle.dumps(value, protocol))).load() == value


def replace_record(path, ending, change):
    """Write a zip archive anew with one record changed."""
    with zipfile.ZipFile(path) as old:
        records = {member.filename: old.read(member) for member in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, data in records.items():
            new.writestr(name, change(data) if name.endswith(ending) else data)


def saved_checkpoint(path, weight, **options):
    torch.save({"model": ({"fc.weight": weight}, {}), "opt": {}}, path, **options)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_no_larger_than_what_is_stored_of_them(zipped, tmp_path):
    options = {"_use_new_zipfile_serialization": zipped}
    good = saved_checkpoint(tmp_path / "good.pth", torch.arange(12.0).reshape(3, 4).t(), **options)
    assert load_checkpoint(good).weight("image:fc.weight").shape == (4, 3)
    repeated = saved_checkpoint(tmp_path / "repeated.pth", torch.ones(8000).expand(90_000, 8000), **options)
    with pytest.raises(ValueError, match=r"claims a tensor of shape \(90000, 8000\), more than the 8000 numbers"):
        load_checkpoint(repeated)
    path = tmp_path / "claims.pth"
    whole = saved_checkpoint(path, torch.ones(77), **options).read_bytes()
    if zipped:
        replace_record(path, "data.pkl", lambda data: data.replace(b"KM", b"J\xff\xff\xff\x7f"))
    else:
        path.write_bytes(whole.replace(b"KM", b"J\xff\xff\xff\x7f"))
    with pytest.raises(
        ValueError, match=r"claims\.pth cannot be read as a torch checkpoint: it claims 8589934588 bytes"
    ):
        load_checkpoint(path)


def test_a_compressed_or_doubled_record_is_refused(tmp_path):
    path = saved_checkpoint(tmp_path / "c.pth", torch.zeros(1000))
    with zipfile.ZipFile(path) as old:
        records = {member.filename: old.read(member) for member in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in records.items():
            new.writestr(name, data)
    with pytest.raises(ValueError, match="is compressed, which torch's are not"):
        load_checkpoint(path)


def test_a_zip_archive_behind_an_old_checkpoint_does_not_hide_it(tmp_path):
    path = saved_checkpoint(tmp_path / "c.pth", Reduced(os.system, ("true",)), _use_new_zipfile_serialization=False)
    other = saved_checkpoint(tmp_path / "o.pth", torch.ones(3)).read_bytes()
    path.write_bytes(path.read_bytes() + other)
    with pytest.raises(ValueError, match=r"it asks for \w+\.system"):
        load_checkpoint(path)


def npy(path, header, data=b""):
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.write(data)
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"descr": "<f4", "shape": (1 << 31, 2048)}, "claims"),
        ({"descr": "<f4", "shape": (1 << 62, 1 << 62)}, "claims"),
        ({"descr": "<f4", "shape": (-1, 2)}, "whole numbers from 0"),
        ({"descr": [("a", "|O"), ("b", "<f4")], "shape": (1,)}, "wanted numbers or text"),
        ({"descr": [("a", "<f4"), ("b", "<f4")], "shape": (1,)}, "wanted numbers or text"),
        ({"descr": ("<f4", (1 << 10, 1 << 10)), "shape": ()}, "wanted numbers or text"),
        ({"descr": "<M8[s]", "shape": (1,)}, "wanted numbers or text"),
    ],
)
def test_headers_of_arrays_are_not_believed(header, message, tmp_path):
    path = npy(tmp_path / "7.npy", {"fortran_order": False, **header}, b"\0" * 64)
    for read in (load_array, map_array):
        with pytest.raises(ValueError, match=message):
            read(path)
    with zipfile.ZipFile(tmp_path / "7.npz", "w") as archive:
        archive.write(path, "x.npy")
    with pytest.raises(ValueError, match=message):
        load_arrays(tmp_path / "7.npz", {"x"})


def test_a_header_of_gigabytes_is_not_made_room_for(tmp_path):
    path = tmp_path / "7.npy"
    path.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", 0xFFFFFFF0) + b"{")
    for read in (load_array, map_array):
        with pytest.raises(ValueError, match="it ends within"):
            read(path)


def test_arrays_are_read_in_either_order_and_mapped(tmp_path):
    for array in (np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.zeros((0, 3))):
        np.save(tmp_path / "7.npy", array)
        assert load_array(tmp_path / "7.npy").tolist() == array.tolist() == map_array(tmp_path / "7.npy").tolist()


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "7.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 24,)})
        for _ in range(64):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 100_000
    with pytest.raises(ValueError, match=r"x has 671\d+ bytes, packed into 6\d+"):
        load_arrays(path, {"x"})
    np.savez_compressed(path, x=np.zeros((36, 2048), "f4"), y=np.ones(3))
    assert list(load_arrays(path, {"x"})) == ["x"]


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    for read in (load_array, map_array, load_checkpoint, load_vocabulary):
        with pytest.raises((ValueError, FileNotFoundError), match=r"pipe\.npy"):
            read(tmp_path / "pipe.npy")


def test_json_that_is_nested_deeply_is_no_vocabulary(tmp_path):
    (tmp_path / "v.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(ValueError, match=r"v\.json"):
        load_vocabulary(tmp_path / "v.json")
    (tmp_path / "v.json").write_text(json.dumps({"a": 10**4000}))
    with pytest.raises(ValueError, match=r"v\.json"):
        load_vocabulary(tmp_path / "v.json")


def test_refused_names_are_told():
    with pytest.raises(Refused, match=r"it asks for os\.system, and unpickling that could run code"):
        PlainUnpickler(io.BytesIO(b"cos\nsystem\n(S'true'\ntR.")).load()
