"""Whatever is damaged, and even on a full disk: an error that names it, and no output that looks whole."""

from __future__ import annotations

import base64
import multiprocessing
import os
import re
import signal

import mean_color
import numpy as np
import pytest
import torch
from PIL import Image

from preprocess import bottom_up_tsv, npz_folder, scan_npy
from xmodal.data import RegionStore, RegionStoreWriter
from xmodal.training.checkpoints import save_checkpoint

resource = pytest.importorskip("resource", reason="limits on file sizes are Unix")
DIM = 256


def failure_on_a_full_disk(run, kilobytes):
    """The error of running where no file can grow beyond a size: a write fails as on a full disk.

    In a process of its own, for HDF5 must not be used again after it could not write.
    """

    def limited(sender):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, resource.RLIM_INFINITY))
        try:
            run()
        except OSError as error:
            sender.send(str(error))
        else:
            sender.send(None)
        os._exit(0)  # What HDF5 could not write, it would try to write again on the way out, and crash.

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=limited, args=(sender,))
    process.start()
    failure = receiver.recv() if receiver.poll(60) else "nothing was said"
    process.join()
    receiver.close()
    sender.close()
    return failure


def convert_tsv(folder, output):
    columns = [base64.b64encode(np.ones(shape, "<f4")).decode() for shape in ((9, 4), (9, DIM))]
    rows = ["\t".join([str(number), "9", "9", "9", *columns]) for number in range(40)]
    (folder / "images.tsv").write_text("\n".join(rows) + "\n")
    return lambda: bottom_up_tsv.main(bottom_up_tsv.Config(input=(folder / "images.tsv",), output=output, dim=DIM))


def convert_npz(folder, output):
    for number in range(40):
        np.savez(folder / f"{number}.npz", x=np.ones((9, DIM), "f4"))
    return lambda: npz_folder.main(npz_folder.Config(input=folder, output=output, dim=DIM))


def convert_npy(folder, output):
    np.save(folder / "train_ims.npy", np.ones((40, 9, DIM), "f4"))
    (folder / "train_caps.txt").write_text("A dog.\n" * 200)
    return lambda: scan_npy.main(scan_npy.Config(folder, output.parent))


def extract(folder, output):
    for number in range(4):
        Image.new("RGB", (9, 9)).save(folder / f"{number}.png")
    return lambda: mean_color.run(folder, output)


@pytest.mark.parametrize(
    ("program", "kilobytes"), [(convert_tsv, 200), (convert_npz, 200), (convert_npy, 200), (extract, 8)]
)
def test_a_full_disk_leaves_nothing_that_looks_whole(tmp_path, program, kilobytes):
    (tmp_path / "in").mkdir()
    output = tmp_path / "out" / "train.h5"
    run = program(tmp_path / "in", output)
    failure = failure_on_a_full_disk(run, kilobytes)
    assert re.search(r"File too large: no room to write .*\.h5$", failure)
    assert not output.exists()
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".h5", ".partial", ".jsonl")]
    run()
    assert len(RegionStore(output)) == (4 if program is extract else 40)


def test_a_full_disk_spares_what_was_there(tmp_path):
    path = tmp_path / "train.h5"

    def write(value):
        with RegionStoreWriter(path, dim=DIM, extractor="by hand", overwrite=True) as writer:
            for number in range(40):
                writer.write(str(number), np.full((9, DIM), value))

    write(1)
    assert "File too large" in failure_on_a_full_disk(lambda: write(2), 200)
    assert (RegionStore(path)[39] == 1).all()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_store_that_was_cut_is_refused(tmp_path, share):
    path = tmp_path / "train.h5"
    with RegionStoreWriter(path, dim=DIM, extractor="by hand") as writer:
        for number in range(9):
            writer.write(str(number), np.ones((9, DIM)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"train\.h5 is not an HDF5 file, or was cut off"):
        RegionStore(path)


def test_a_checkpoint_names_the_full_disk(tmp_path):
    failure = failure_on_a_full_disk(lambda: save_checkpoint(tmp_path, {"weight": torch.zeros(100_000)}), 100)
    assert f"no room to write {tmp_path / 'checkpoint.pt'}" in failure
    assert list(tmp_path.iterdir()) == []
