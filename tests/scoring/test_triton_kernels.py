from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from xmodal.heads import BFAN, SCAN, Cosine
from xmodal.scoring.triton import TileShape, kernel_options, triton_scores
from xmodal.scoring.triton.kernels import PRECISION, choose_shape
from xmodal.scoring.triton.packing import pack, tile_boundaries


def test_kernel_in_the_interpreter():
    """In a process of its own: Triton decides at import whether it interprets or compiles."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", str(Path(__file__).with_name("triton_in_interpreter.py"))]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


# What the compiler makes of the kernel shows most of what the interpreter lets pass: shapes that tensor cores do not
# take, tiles that do not fit. It needs no GPU.


def compile_kernel(name, head, dtype, shape, directory, **known):
    """Bytes of stack and of shared memory that a kernel takes on a GPU of compute capability 9.0.

    `known` arguments are compiled in, which Triton does by itself with integers that equal one.
    """
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget

    from xmodal.scoring.triton import device

    kernel = getattr(device, name)
    options = kernel_options(head)
    constants = {
        "DIM": 1024, "ROWS": shape.rows, "COLUMNS": shape.columns, "DEPTH": shape.depth, "GROUP": 8,
        "NORMALIZATION": options["normalization"], "AGGREGATION": options["aggregation"], "FOCAL": options["focal"],
        "BOTH": options["both"], "PRECISION": PRECISION[dtype], **known,
    }  # fmt: skip
    element = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}[dtype]
    patterns = {
        "|".join(constants): "constexpr",
        ".*_items|by_product": element,
        ".*_(sets|start|first_set)": "*i32",
        ".*_(norms?|grams?)|scores|score_gradients": "*fp32",
        "temperature|lse_scale": "fp32",
        ".*": "i32",
    }
    names = kernel.arg_names
    types = [next(kind for pattern, kind in patterns.items() if re.fullmatch(pattern, name)) for name in names]
    source = triton.compiler.ASTSource(
        kernel,
        signature=dict(zip(names, types, strict=True)),
        constexprs={(names.index(name),): value for name, value in constants.items() if name in names},
        attrs={(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types) if kind.startswith("*")},
    )
    compiler = {"num_warps": shape.warps, "num_stages": shape.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=compiler)
    cubin = directory / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([cuobjdump, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    stack = re.search(r"STACK:(\d+)", usage)
    assert stack is not None, usage
    return int(stack[1]), compiled.metadata.shared


@pytest.mark.parametrize(
    ("kernel", "head", "dtype", "most_stack"),
    [
        ("fused_scores", SCAN(), torch.bfloat16, 0),
        pytest.param("fused_scores", SCAN(aggregation="max"), torch.float16, 0, marks=pytest.mark.slow),
        pytest.param("product_gradients", SCAN(), torch.bfloat16, 700, marks=pytest.mark.slow),
        pytest.param("fused_scores", BFAN(), torch.bfloat16, 400, marks=pytest.mark.slow),
        pytest.param("product_gradients", BFAN(), torch.bfloat16, 3000, marks=pytest.mark.slow),
        pytest.param("fused_scores", SCAN(), torch.float32, 1200, marks=pytest.mark.slow),
        pytest.param("product_gradients", SCAN(), torch.float32, 3000, marks=pytest.mark.slow),
        pytest.param("fused_scores", BFAN(), torch.float32, 4000, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_default_tile_fits_a_gpu(kernel, head, dtype, most_stack, tmp_path):
    """Its 227 KiB of shared memory; the forward pass of SCAN in half precision stays in registers altogether."""
    stack, shared = compile_kernel(kernel, head, dtype, TileShape(), tmp_path)
    assert stack <= most_stack
    assert shared <= 227 * 1024


def test_bfan_of_a_single_tile_compiles(tmp_path):
    known = {"row_tiles": 1, "column_tiles": 1}
    compile_kernel("fused_scores", BFAN(), torch.bfloat16, TileShape(32, 32, 64, 4), tmp_path, **known)


def test_gradients_from_the_second_tile_on_compile(tmp_path):
    known = {"first_tile": 1, "score_column_stride": 1}
    compile_kernel("product_gradients", SCAN("i2t"), torch.float16, TileShape(32, 32, 64, 4), tmp_path, **known)


def test_a_long_side_gets_a_long_tile():
    assert choose_shape(rows=100, columns=64) == TileShape(rows=128, columns=64)
    assert choose_shape(rows=36, columns=82) == TileShape(rows=64, columns=128)


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
    with pytest.raises(ValueError, match="needs a CUDA device, got cpu"):
        triton_scores(SCAN(), REGIONS, WORDS)
    with pytest.raises(ValueError, match=r"takes torch.float32, .*; got torch.float64"):
        triton_scores(SCAN(), REGIONS.double(), WORDS.double())
    with pytest.raises(ValueError, match=r"must have one dtype and device, got torch.float64 on cpu and torch.float32"):
        triton_scores(SCAN(), REGIONS.double(), WORDS)
    with pytest.raises(ValueError, match="joint space"):
        triton_scores(SCAN(), REGIONS, WORDS[..., :4])
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ModuleNotFoundError, match="needs triton"):
        triton_scores(SCAN(), REGIONS, WORDS)
