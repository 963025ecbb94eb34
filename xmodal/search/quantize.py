"""Vectors in few bits, each with what the bits leave out: products with what was kept are wrong by no more than that.

A rotation comes first. Its leading coordinates are those in which the vectors vary most (principal components), turned
at random among themselves, and so are the next ones, and all others: a random turn spreads a vector evenly over its
coordinates, so that one step fits them all. A vector is then kept twice:

- for the scan, its leading coordinates in 4 bits with a step;
- for the certificate, all coordinates in 8 bits with a step for the leading ones and one for the others, the length of
  what is left out, and the lengths of what follows the leading ones and of what follows the next: by these a few
  coordinates exclude most vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from xmodal.products import inner_products

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float, Float16, Int8, UInt8
    from torch import Tensor

LEAD = 64
"""Leading coordinates that the scan keeps."""

NEXT = 64
"""Coordinates that come next, and are looked at before all others; a multiple of four."""

GAUSSIAN_STEP = 0.3352
"""Best step of 16 levels for a normal distribution of variance one (Max, IRE Trans. Information Theory 1960)."""

ROUNDING = 1e-5
"""Part of a vector's length by which float32 may have missed what the bits leave out."""


class Codes(NamedTuple):
    """Vectors as they are kept, one a row."""

    scan: UInt8[np.ndarray, "row byte"]
    """Leading coordinates, two a byte, then their step, float16."""
    lead: Int8[np.ndarray, "row lead"] | None = None
    rest: Int8[np.ndarray, "row rest"] | None = None
    steps: Float16[np.ndarray, "row 2"] | None = None
    """Of `lead` and of `rest`."""
    errors: Float16[np.ndarray, "row"] | None = None
    """The length of what `lead` and `rest` leave out, at most."""
    tails: UInt8[np.ndarray, "row 2"] | None = None
    """The length of what follows the leading coordinates, at most, and of what follows the next: in parts of 255 of the
    vector's."""


class Quantizer:
    """Compresses vectors, and turns those they are compared with in the same way.

    Args:
        basis: `(dim, coordinate)`, orthonormal; a column of zeros makes the number of coordinates even.
        lead: how many of the coordinates lead.

    Example:
        >>> import torch
        >>> from xmodal.search.quantize import Quantizer
        >>> vectors = torch.nn.functional.normalize(torch.randn(100, 16), dim=1)
        >>> quantizer = Quantizer.fit(vectors, lead=8)
        >>> codes = quantizer.encode(vectors)
        >>> missed = (quantizer.decode(codes.lead, codes.rest, codes.steps) - vectors @ quantizer.basis).norm(dim=1)
        >>> bool((missed <= torch.from_numpy(codes.errors)).all()), codes.scan.shape
        (True, (100, 6))
    """

    def __init__(self, basis: Float[Tensor, "dim coordinate"], lead: int) -> None:
        self.basis, self.lead = basis, lead
        self._columns = basis.T.contiguous()

    @classmethod
    def fit(cls, vectors: Float[Tensor, "row dim"], *, lead: int = LEAD, seed: int = 0) -> Quantizer:
        """The rotation for vectors like these.

        Args:
            vectors: some of them.
            lead: how many coordinates lead, at most; all, where there are no more.
            seed: of the random turns.
        """
        dim = vectors.shape[1]
        moments = vectors.double().T @ vectors.double()
        basis = torch.linalg.eigh(moments).eigenvectors.flip(1)
        if dim % 2:
            basis = torch.cat([basis, basis.new_zeros(dim, 1)], dim=1)
        lead = min(lead, basis.shape[1])
        generator = torch.Generator().manual_seed(seed)
        # The column of zeros is not turned, unless it leads.
        for part in (slice(0, lead), slice(lead, min(lead + NEXT, dim)), slice(lead + NEXT, dim)):
            width = basis[:, part].shape[1]
            if width:
                turn = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
                basis[:, part] = basis[:, part] @ turn
        return cls(basis.float().contiguous(), lead)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Quantizer:
        """The quantizer that `arrays` were of."""
        return cls(torch.from_numpy(np.array(arrays["basis"])), int(arrays["lead"][0]))

    def arrays(self) -> dict[str, np.ndarray]:
        """What makes the same quantizer again."""
        return {"basis": self.basis.numpy(), "lead": np.array([self.lead], np.int64)}

    def rotate(self, vectors: Float[Tensor, "row dim"]) -> Float[Tensor, "row coordinate"]:
        """The coordinates of vectors; products of two rotated ones are those of the vectors."""
        return inner_products(vectors.float(), self._columns)

    def encode(self, vectors: Float[Tensor, "row dim"], *, bits: int = 8) -> Codes:
        """Compress.

        Args:
            vectors: finite.
            bits: 8 for the certificate too, 4 for the scan alone.

        Raises:
            ValueError: a vector is too long for float16 steps.
        """
        coordinates = self.rotate(vectors)
        lead, rest = coordinates[:, : self.lead], coordinates[:, self.lead :]
        scan = _four_bits(lead)
        if bits == 4:
            return Codes(scan)
        (leading, step), (others, other_step) = _eight_bits(lead), _eight_bits(rest)
        steps = np.stack([step, other_step], axis=1)
        missed = (coordinates - self.decode(leading, others, steps)).norm(dim=1)
        errors = rounded_up(missed * (1 + ROUNDING) + ROUNDING * coordinates.norm(dim=1))
        return Codes(scan, leading, others, steps, errors, self._tails(coordinates))

    def _tails(self, coordinates: Float[Tensor, "row coordinate"]) -> UInt8[np.ndarray, "row 2"]:
        after = torch.stack([coordinates[:, start:].norm(dim=1) for start in (self.lead, self.lead + NEXT)], dim=1)
        share = after / coordinates.norm(dim=1, keepdim=True).clamp_min(1e-30)
        return (255 * share + 0.02).ceil().clamp(0, 255).to(torch.uint8).numpy()

    def decode(
        self,
        lead: Int8[np.ndarray, "row lead"],
        rest: Int8[np.ndarray, "row rest"],
        steps: Float16[np.ndarray, "row 2"],
    ) -> Float[Tensor, "row coordinate"]:
        """The coordinates that the 8 bits stand for."""
        scale = torch.from_numpy(np.asarray(steps, np.float32))
        parts = [torch.from_numpy(code).float() * scale[:, number, None] for number, code in enumerate((lead, rest))]
        return torch.cat(parts, dim=1)


def unpack_scan(scan: UInt8[np.ndarray, "row byte"]) -> Float[Tensor, "row lead"]:
    """The leading coordinates that the 4 bits stand for.

    >>> vectors = torch.eye(4)
    >>> unpack_scan(Quantizer.fit(vectors, lead=2).encode(vectors).scan).shape
    torch.Size([4, 2])
    """
    step = torch.from_numpy(np.ascontiguousarray(scan[:, -2:]).view(np.float16).astype(np.float32))
    codes = torch.from_numpy(np.ascontiguousarray(scan[:, :-2]))
    return torch.cat([codes & 15, codes >> 4], dim=1).float().sub_(7.5).mul_(step)


def rounded_up(values: Float[Tensor, " row"]) -> Float16[np.ndarray, " row"]:
    """float16 that is not less.

    >>> rounded_up(torch.tensor([0.1, 2.0])).astype(float)
    array([0.10003662, 2.        ])
    """
    exact = values.double().numpy()
    with np.errstate(over="ignore"):
        half = exact.astype(np.float16)
        half = np.where(half < exact, np.nextafter(half, np.float16(np.inf)), half)
    if not np.isfinite(half).all():
        raise ValueError(
            f"a vector of length {float(values.max()):.3g} is too long to be compressed; let the encoders normalize"
        )
    return half


def _four_bits(lead: Float[Tensor, "row lead"]) -> UInt8[np.ndarray, "row byte"]:
    step = lead.square().mean(dim=1, keepdim=True).sqrt() * GAUSSIAN_STEP
    codes = (lead / step.clamp_min(torch.finfo(torch.float32).tiny)).floor().clamp(-8, 7)
    levels = codes + 0.5
    step = (lead * levels).sum(dim=1, keepdim=True) / levels.square().sum(dim=1, keepdim=True)  # best for these levels
    first, second = (codes + 8).to(torch.uint8).chunk(2, dim=1)
    return np.concatenate([(first | second << 4).numpy(), step.half().numpy().view(np.uint8)], axis=1)


def _eight_bits(part: Float[Tensor, "row part"]) -> tuple[Int8[np.ndarray, "row part"], Float16[np.ndarray, " row"]]:
    if not part.shape[1]:
        return np.zeros(part.shape, np.int8), np.zeros(len(part), np.float16)
    step = rounded_up(part.abs().amax(dim=1) / 127)
    scale = torch.from_numpy(step.astype(np.float32))[:, None].clamp_min(torch.finfo(torch.float32).tiny)
    return (part / scale).round().clamp(-127, 127).to(torch.int8).numpy(), step
