"""Fused scores on a GPU, in Triton: kernels.py starts what device.py computes on the sides that packing.py packs."""

from xmodal.scoring.triton.kernels import TileShape, check_triton, kernel_options, triton_compare, triton_scores

__all__ = ["TileShape", "check_triton", "kernel_options", "triton_compare", "triton_scores"]
