"""Files that were not damaged but made to harm: to run code, to read elsewhere, to take all memory or all time."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch

from scripts.attack.files import FORMATS, Format

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

READERS = {each.name: each for each in FORMATS}
CLAIM = 1 << 42
"""Bytes that no file here holds."""


@dataclass(frozen=True)
class Hostile:
    """A file made to harm, and who is to read it."""

    kind: str
    name: str
    format: Format
    make: Callable[[Path, Path], None]
    """Given the path, where a good file of the format is, and that of a file which must never appear or be read."""
    checked: bool = True
    """Whether another result than that of the good file is wrong: text that is still well-formed is believed."""


class Calls:
    """Unpickled carelessly, it calls something."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def nested_tuples(levels: int) -> bytes:
    """A pickled dict whose key holds 2^levels tuples in a few hundred bytes.

    >>> len(nested_tuples(60))
    491
    """
    twice = [b"(h" + bytes([n]) + b"h" + bytes([n]) + b"tq" + bytes([n + 1]) for n in range(levels)]
    return b"\x80\x02}(K\x01q\x00" + b"".join(twice) + b"K\x01u."


def pickles(trace: Path) -> dict[str, bytes]:
    """Pickles that run code, make pointers of bytes, or ask for more than there is.

    >>> "os.system" in pickles(Path("trace"))
    True
    """
    return {**_calls(f"touch {trace}"), **_pointers(), **_bombs()}


def _calls(touch: str) -> dict[str, bytes]:
    """Pickles that run a command of the shell, or change a class."""
    return {
        "os.system": pickle.dumps(Calls(os.system, (touch,)), 2),
        "eval": pickle.dumps(Calls(eval, (f"__import__('os').system({touch!r})",)), 2),
        "exec by protocol 0": f"c__builtin__\nexec\n(S\"import os; os.system('{touch}')\"\ntR.".encode(),
        "a chain of calls": (
            f"c__builtin__\ngetattr\n(c__builtin__\n__import__\n(S'os'\ntRS'system'\ntR(S'{touch}'\ntR.".encode()
        ),
        "an instance of a class": f"(S'{touch}'\nios\nsystem\n.".encode(),
        "a class that is changed": b"cargparse\nNamespace\n(N}S'__repr__'\nS'x'\nstb.",
        "attributes by stack": (
            b"\x80\x04\x8c\x02os\x8c\x06system\x93X" + struct.pack("<I", len(touch)) + touch.encode() + b"\x85R."
        ),
        "an extension": b"\x80\x02\x82\x01.",
    }


def _pointers() -> dict[str, bytes]:
    """Pickles that make objects of numbers which the file chose."""
    reconstruct = np.empty(0).__reduce__()[0]
    fields = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 8, 27)
    with_fields = Calls(np.dtype, ("V8", False, True), fields)
    return {
        "fields that are objects": pickle.dumps(
            Calls(reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), with_fields, False, struct.pack("<Q", 0x4141))), 2
        ),
        "bytes as objects": pickle.dumps(
            Calls(reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("O"), False, struct.pack("<Q", 0x4141))), 2
        ),
        "a scalar that is an object": pickle.dumps(
            Calls(np.float64(1).__reduce__()[0], (np.dtype("O"), struct.pack("<Q", 0x4141))), 2
        ),
    }


def _bombs() -> dict[str, bytes]:
    """Pickles that ask for more room, time or depth than there is."""
    deep = 200_000
    return {
        "a subarray": pickle.dumps(Calls(np.dtype, ("(30000,30000)f8",)), 2),
        "a long text": pickle.dumps(Calls(np.float64(1).__reduce__()[0], (np.dtype("S2000000000"), b"a")), 2),
        "a memo of a billion": b"\x80\x02Nr\xff\xff\xff\x3f.",
        "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", CLAIM) + b"abc.",
        "a bytearray that is not there": b"\x80\x05\x96" + struct.pack("<Q", CLAIM) + b"abc.",
        "text that is not there": b"\x80\x02X\xff\xff\xff\xff.",
        "a frame that is not there": b"\x80\x04\x95" + struct.pack("<Q", CLAIM) + b"N.",
        "exponential hashing": nested_tuples(60),
        "exponential printing": b"\x80\x02c__builtin__\nstr\n" + _shared_lists() + b"\x85R.",
        "lists that share": b"\x80\x02" + _shared_lists() + b".",
        "deep tuples": b"\x80\x02}N" + b"\x85" * deep + b"K\x01s.",
        "deep lists": b"\x80\x02" + b"]" * deep + b"a" * (deep - 1) + b".",
        "a list in itself": b"\x80\x02]q\x00h\x00a.",
        "keys of one hash": b"\x80\x02}("
        + b"".join(b"\x8a\x10" + (n * (2**61 - 1)).to_bytes(16, "little") + b"N" for n in range(2**16, 2**16 + 30_000))
        + b"u.",
        "text many times over": b"\x80\x02](X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x00"
        + b"c_codecs\nencode\nq\x01h\x00X\x06\x00\x00\x00latin1q\x02\x86R" + b"h\x01h\x00h\x02\x86R" * 9000 + b"e.",
    }  # fmt: skip


def _shared_lists() -> bytes:
    twice = [b"](h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(60)]
    return b"]q\x00" + b"".join(twice)


def _plain(data: bytes) -> Callable[[Path, Path], None]:
    def make(path: Path, _: Path) -> None:
        path.write_bytes(data)

    return make


def _npy(data: bytes) -> Callable[[Path, Path], None]:
    def make(path: Path, _: Path) -> None:
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
            file.write(data)

    return make


def _archive(data: bytes) -> Callable[[Path, Path], None]:
    return lambda path, _: change_record(path, "data.pkl", data)


def _stream(data: bytes) -> Callable[[Path, Path], None]:
    def make(path: Path, _: Path) -> None:
        file = io.BytesIO()
        torch.save({}, file, _use_new_zipfile_serialization=False)
        path.write_bytes(file.getvalue().replace(pickle.dumps({}, 2), data))

    return make


def _database(data: bytes) -> Callable[[Path, Path], None]:
    def make(path: Path, _: Path) -> None:
        import lmdb

        with lmdb.open(str(path.parent), map_size=1 << 24) as opened, opened.begin(write=True) as transaction:
            transaction.put(b"0", data)

    return make


def of_pickles(trace: Path) -> Iterator[Hostile]:
    """Every pickle wherever one is read.

    >>> len(list(of_pickles(Path("trace")))) > 100
    True
    """
    readers = {
        "pickled vocabulary": _plain,
        "ids of ban-vqa": _plain,
        "npy of a dict": _npy,
        "released checkpoint": _archive,
        "checkpoint": _archive,
        "lmdb": _database,
    }
    for name, data in pickles(trace).items():
        for reader, make in readers.items():
            yield Hostile("hostile pickles", name, READERS[reader], make(data))
        yield Hostile("hostile pickles", f"{name}, as of old", READERS["released checkpoint"], _stream(data))


def change_record(path: Path, ending: str, data: bytes, **options: Any) -> None:
    """Write a zip archive anew with other contents of one record."""
    with zipfile.ZipFile(path) as old:
        records = {member.filename: old.read(member) for member in old.infolist()}
    with zipfile.ZipFile(path, "w", **options) as new:
        for name, content in records.items():
            new.writestr(name, data if name.endswith(ending) else content)


def of_torch() -> Iterator[Hostile]:
    """Tensors that are not there.

    >>> [each.name for each in of_torch()][0]
    'a tensor of stride 0'
    """

    def saved(weight: Any, **options: Any) -> Callable[[Path, Path], None]:
        record = {"model": [{"fc.weight": weight}, {}], "opt": argparse.Namespace(), "step": 1}
        return lambda path, _: torch.save(record, path, **options)

    def claimed(path: Path, _: Path) -> None:
        saved(torch.ones(77))(path, path)
        with zipfile.ZipFile(path) as archive:
            data = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
        change_record(path, "data.pkl", data.replace(b"KM", b"J\xff\xff\xff\x7f"))

    def compressed(path: Path, _: Path) -> None:
        saved(torch.zeros(1 << 20))(path, path)
        change_record(path, "no record", b"", compression=zipfile.ZIP_DEFLATED)

    repeated = torch.ones(8000).expand(90_000, 8000)
    for reader in ("released checkpoint", "checkpoint"):
        yield Hostile("hostile tensors", "a tensor of stride 0", READERS[reader], saved(repeated))
        yield Hostile("hostile tensors", "a storage that is not there", READERS[reader], claimed)
        yield Hostile("hostile tensors", "compressed records", READERS[reader], compressed)
    old = {"_use_new_zipfile_serialization": False}
    yield Hostile("hostile tensors", "stride 0, as of old", READERS["released checkpoint"], saved(repeated, **old))


def _long_header(path: Path, _: Path) -> None:
    path.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", 0xFFFFFFF0) + b"{")


def _zip_bomb(path: Path, _: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 12, 1 << 14)}
        )
        for _block in range(256):
            file.write(bytes(1 << 20))


def of_arrays() -> Iterator[Hostile]:
    """Headers of arrays that claim, and archives that unpack to gigabytes.

    >>> {each.kind for each in of_arrays()}
    {'hostile arrays'}
    """
    headers: dict[str, dict[str, Any]] = {
        "gigabytes": {"descr": "<f4", "shape": (1 << 20, 36, 2048)},
        "more than can be counted": {"descr": "<f4", "shape": (1 << 62, 1 << 62, 4)},
        "less than nothing": {"descr": "<f4", "shape": (-4, 3, -2)},
        "fields that are objects": {"descr": [("a", "|O")], "shape": (4, 3, 4)},
        "text of gigabytes": {"descr": "|S2000000000", "shape": (4, 3, 4)},
    }

    def array(header: dict[str, Any]) -> Callable[[Path, Path], None]:
        def make(path: Path, _: Path) -> None:
            with path.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, {"fortran_order": False, **header})
                file.write(bytes(4 * 3 * 4 * 4))

        return make

    def in_archive(header: dict[str, Any]) -> Callable[[Path, Path], None]:
        def make(path: Path, _: Path) -> None:
            array(header)(path.with_suffix(".npy"), path)
            with zipfile.ZipFile(path, "w") as archive:
                archive.write(path.with_suffix(".npy"), "x.npy")
            path.with_suffix(".npy").unlink()

        return make

    for name, header in headers.items():
        yield Hostile("hostile arrays", name, READERS["SCAN's array"], array(header))
        yield Hostile("hostile arrays", name, READERS["npz of an image"], in_archive(header))
    yield Hostile("hostile arrays", "a header of gigabytes", READERS["SCAN's array"], _long_header)
    yield Hostile("hostile arrays", "a bomb", READERS["npz of an image"], _zip_bomb)


def of_images(secret: Path) -> Iterator[Hostile]:
    """Headers of images that claim gigapixels, and pages of a language that runs.

    >>> [each.name for each in of_images(Path("secret"))][:2]
    ['PNG of gigapixels', 'GIF of gigapixels']
    """

    def png(path: Path, _: Path) -> None:
        data = path.read_bytes()
        header = b"IHDR" + struct.pack(">II", 100_000, 100_000) + data[24:29]
        path.write_bytes(data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:])

    def gif(path: Path, _: Path) -> None:
        data = bytearray(path.read_bytes())
        data[6:10] = b"\xff\xff\xff\xff"
        path.write_bytes(data)

    def postscript(path: Path, _: Path) -> None:
        path.write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
            + f"({secret}) (w) file (harm) writestring\nshowpage\n".encode()
        )

    yield Hostile("hostile images", "PNG of gigapixels", READERS["PNG"], png)
    yield Hostile("hostile images", "GIF of gigapixels", READERS["GIF"], gif)
    yield Hostile("hostile images", "a program called .png", READERS["PNG"], postscript)


def of_hdf5() -> Iterator[Hostile]:
    """Stores and features that read other files, or claim what they do not hold.

    >>> {each.name for each in of_hdf5()} >= {"external storage", "a soft link"}
    True
    """

    def replaced(name: str, **options: Any) -> Callable[[Path, Path], None]:
        def make(path: Path, secret: Path) -> None:
            with h5py.File(path, "r+") as file:
                shape, kind = file[name].shape, file[name].dtype  # type: ignore[union-attr]
                del file[name]
                if options.get("external"):
                    file.create_dataset(name, shape, kind, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])
                elif link := options.get("link"):
                    file["elsewhere"] = np.ones(shape, kind)
                    file[name] = h5py.SoftLink("/elsewhere") if link == "soft" else h5py.ExternalLink(str(secret), name)
                elif options.get("virtual"):
                    layout = h5py.VirtualLayout(shape, kind)
                    layout[:] = h5py.VirtualSource(str(secret), name, shape)
                    file.create_virtual_dataset(name, layout)
                else:
                    claimed = (1 << 28, *shape[1:])
                    file.create_dataset(name, claimed, kind, chunks=options.get("chunks", (1, *shape[1:])))

        return make

    attacks = {
        "external storage": {"external": True},
        "a soft link": {"link": "soft"},
        "an external link": {"link": "external"},
        "a virtual dataset": {"virtual": True},
        "rows that are not there": {},
    }
    datasets = {
        "region store": ("features", "boxes", "num_regions"),
        "labelled features": ("features", "label"),
        "HDF5 of ban-vqa": ("image_features", "image_bb"),
        "HDF5 of groups": ("0/features", "0/boxes"),
    }
    for reader, names in datasets.items():
        for name in names:
            for attack, options in attacks.items():
                yield Hostile("hostile HDF5", attack, READERS[reader], replaced(name, **options))


def of_text() -> Iterator[Hostile]:
    """Recipes, logs and JSON that are nested deeply, hold themselves, or unpack to gigabytes.

    >>> {each.kind for each in of_text()}
    {'hostile recipes', 'hostile text'}
    """
    deep = 100_000
    laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    recipes = {
        "billion laughs": laughs,
        "deep lists": "epochs: " + "[" * deep + "]" * deep,
        "deep blocks": "".join(" " * n + "a:\n" for n in range(2000)),
        "itself": "epochs: &a [*a]",
        "merged laughs": "a: &a {x: 1}\n"
        + "".join(f"{n}: &{n} {{<<: [*{o}, *{o}]}}\n" for o, n in zip("abcdefghij", "bcdefghijk", strict=True)),
        "a Python object": "epochs: !!python/object/apply:os.system [true]",
        "endless epochs": f"epochs: 1{'0' * 30}",
        "a large number": f"epochs: {'9' * 100_000}",
    }
    for name, text in recipes.items():
        yield Hostile("hostile recipes", name, READERS["recipe"], _written(text))
    texts = {
        "deep": '{"a":' * deep + "1" + "}" * deep,
        "a number of a million digits": '{"image_id": ' + "9" * 1_000_000 + "}",
        "a line of zeros": "\0" * 1_000_000,
        "no end": '{"a": [' + "[1, 2]," * 100_000,
    }
    readers = ("captions", "vocabulary", "configuration of a model", "log", "Karpathy's JSON", "COCO's JSON")
    readers += ("judgements", "labelled index", "names of images")
    for reader in readers:
        for name, text in texts.items():
            yield Hostile("hostile text", name, READERS[reader], _written(text), checked=READERS[reader].checked)


def _written(text: str) -> Callable[[Path, Path], None]:
    def make(path: Path, _: Path) -> None:
        path.write_text(text)

    return make


def everything(folder: Path) -> Iterator[Hostile]:
    """All of it; the trace and the secret are in the folder.

    >>> len(list(everything(Path(".")))) > 200
    True
    """
    yield from of_pickles(folder / "trace")
    yield from of_torch()
    yield from of_arrays()
    yield from of_images(folder / "trace")
    yield from of_hdf5()
    yield from of_text()
