from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xmodal.heads import BFAN, SCAN, Cosine
from xmodal.scoring.triton_kernels import (
    PRECISION,
    Tile,
    kernel_options,
    pack,
    tile_boundaries,
    triton_scores,
)


def test_kernel_in_the_interpreter():
    """In a process of its own: Triton decides at import whether it interprets or compiles."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", str(Path(__file__).with_name("triton_in_interpreter.py"))]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


# What the compiler makes of the kernel shows most of what the interpreter lets pass: shapes that tensor cores do not
# take, tiles that do not fit. It needs no GPU.


def compile_kernel(head, dtype, tile, directory):
    """Registers, bytes of stack and bytes of shared memory of the kernel on a GPU of compute capability 9.0."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from xmodal.scoring.triton_device import score_tiles

    element = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    options = kernel_options(head)
    constants = {
        "DIM": 1024, "ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth, "GROUP": 8,
        "NORMALIZATION": options["normalization"], "AGGREGATION": options["aggregation"], "FOCAL": options["focal"],
        "BOTH": options["both"], "PRECISION": PRECISION[dtype],
    }  # fmt: skip
    names = score_tiles.arg_names
    types = {f"{side}_items": f"*{element}" for side in ("row", "column")}
    types |= {f"{side}_{name}": "*i32" for side in ("row", "column") for name in ("sets", "start", "first_set")}
    types |= {f"{side}_{name}": "*fp32" for side in ("row", "column") for name in ("norms", "grams")}
    types |= {"scores": "*fp32", "temperature": "fp32", "lse_scale": "fp32"} | dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(
        score_tiles,
        signature={name: types.get(name, "i32") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if types.get(name, "").startswith("*")},
    )
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    cubin = directory / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([cuobjdump, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK"))
    return registers, stack, compiled.metadata.shared


@pytest.mark.parametrize(
    ("head", "dtype", "most_stack"),
    [
        (SCAN(), torch.bfloat16, 0),
        (SCAN(aggregation="max"), torch.float16, 0),
        pytest.param(BFAN(), torch.bfloat16, 400, marks=pytest.mark.slow),
        pytest.param(BFAN("equal"), torch.float16, 400, marks=pytest.mark.slow),
        pytest.param(SCAN(), torch.float32, 1100, marks=pytest.mark.slow),
        pytest.param(BFAN(), torch.float32, 3500, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_default_tile_compiles_for_a_gpu(head, dtype, most_stack, tmp_path):
    """It fits the 227 KiB of shared memory; in half precision SCAN stays in registers altogether."""
    registers, stack, shared = compile_kernel(head, dtype, Tile(), tmp_path)
    assert registers <= 255
    assert stack <= most_stack
    assert shared <= 227 * 1024


def test_bfan_compiles_for_a_gpu(tmp_path):
    compile_kernel(BFAN(), torch.bfloat16, Tile(64, 32, 64, 4), tmp_path)


# Packing, against loops.


def test_packing_keeps_every_real_item_in_order():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 12, (40,), generator=generator)
    mask = torch.rand(40, 11, generator=generator).argsort(dim=1) < lengths[:, None]
    items = torch.randn(40, 11, 5, generator=generator)
    side = pack(items, mask, size=32, depth=16)
    grams = side.grams
    torch.testing.assert_close(
        side.items[:, :5], torch.cat([item[real] for item, real in zip(items, mask, strict=True)])
    )
    assert not side.items[:, 5:].any()
    assert side.items.shape[1] == 16
    for tile in range(len(side.sets)):
        row = 0
        for ordinal, number in enumerate(range(side.first_set[tile], side.first_set[tile + 1])):
            length = int(lengths[number])
            assert side.sets[tile, row : row + length].eq(ordinal).all()
            real = items[number][mask[number]]
            torch.testing.assert_close(grams[tile, row : row + length, row : row + length], real @ real.T)
            grams[tile, row : row + length, row : row + length] = 0.0
            torch.testing.assert_close(side.norms[side.start[tile] + row :][:length], real.norm(dim=1))
            row += length
        assert row == side.start[tile + 1] - side.start[tile] <= 32
        assert side.sets[tile, row:].eq(-1).all()
    assert not grams.any()


def test_tiles_hold_sixteen_sets_at_most():
    assert tile_boundaries([1] * 40, size=128) == [0, 16, 32, 40]
    with pytest.raises(ValueError, match="an image or caption has 200 items, more than the 128"):
        tile_boundaries([3, 200], size=128)


# What the kernel refuses.

REGIONS, WORDS = torch.randn(2, 3, 8), torch.randn(2, 4, 8)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (Cosine(), "scores SCAN and BFAN, got Cosine"),
        (SCAN(normalization="softmax"), "takes normalization l2, clipped_l2, l1, clipped_l1; got 'softmax'"),
        (SCAN(temperature=100.0), "a temperature of at most 32, got 100"),
        (SCAN(lse_scale=50.0), "a lse_scale of at most 32, got 50"),
    ],
    ids=str,
)
def test_refuses_heads_it_cannot_score(head, message):
    with pytest.raises(ValueError, match=message):
        triton_scores(head, REGIONS, WORDS)


def test_refuses_inputs_it_cannot_take(monkeypatch):
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="needs regions and words on one CUDA device, got cpu and cpu"):
        triton_scores(SCAN(), REGIONS, WORDS)
    with pytest.raises(
        ValueError, match=r"takes torch.float32, .*; got regions of torch.float64 and words of torch.float32"
    ):
        triton_scores(SCAN(), REGIONS.double(), WORDS)
    with pytest.raises(ValueError, match="joint space"):
        triton_scores(SCAN(), REGIONS, WORDS[..., :4])
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ModuleNotFoundError, match="needs triton"):
        triton_scores(SCAN(), REGIONS, WORDS)
