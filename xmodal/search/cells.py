"""Cells: which items have a vector in some part of the space, so that a search looks at few items at all.

The cells are those of k-means (faiss) over the leading coordinates of the vectors. A query's vectors look into the
cells whose centers have the greatest products with them, and what is found there is ranked by these products alone.
That is quick and promises nothing: what it finds is measured, see `Index.measure`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from xmodal.products import inner_products
from xmodal.search.quantize import unpack_scan

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8
    from torch import Tensor

    from xmodal.heads.comparison import CrossAttention
    from xmodal.search.collection import Collection

PROBES = 16
"""Cells that every vector of a query looks into."""

SHARPER = 2.5
"""Times the scale of a head's logarithm of a sum of exponentials: centers are farther from words than regions are."""

ROWS = 1 << 15
"""Vectors that are put into cells at a time."""

ITERATIONS = 10
"""Of k-means."""


class Cells:
    """The centers of the cells, and what is done with them.

    Args:
        centers: `(cell, lead)`, in the leading coordinates of a quantizer.

    Example:
        >>> import torch
        >>> from xmodal.search.cells import Cells
        >>> from xmodal.search.quantize import Quantizer
        >>> vectors = torch.nn.functional.normalize(torch.randn(200, 8), dim=1)
        >>> scan = Quantizer.fit(vectors).encode(vectors, bits=4).scan
        >>> postings = Cells.fit(scan, 4).postings(scan, torch.tensor([100, 100]))
        >>> postings["posting_ends"].shape, set(postings["postings"].tolist())
        ((4,), {0, 1})
    """

    def __init__(self, centers: Float[Tensor, "cell lead"]) -> None:
        self.centers = centers

    @classmethod
    def fit(cls, scan: UInt8[np.ndarray, "row byte"], count: int, *, seed: int = 0) -> Cells:
        """The cells of vectors like these.

        Raises:
            ValueError: there are fewer vectors than cells.
        """
        import faiss

        if len(scan) < count:
            raise ValueError(f"{count} cells take at least as many vectors, and there are {len(scan)}; ask for fewer")
        values = unpack_scan(scan).numpy()
        means = faiss.Kmeans(values.shape[1], count, niter=ITERATIONS, seed=seed, min_points_per_centroid=1)
        means.train(values)
        return cls(torch.from_numpy(means.centroids))

    def postings(self, scan: UInt8[np.ndarray, "row byte"], lengths: Int[Tensor, " item"]) -> dict[str, np.ndarray]:
        """The items of every cell, cell after cell, and where each cell ends."""
        owners = torch.arange(len(lengths)).repeat_interleave(lengths.long())
        half, found = self.centers.square().sum(dim=1) / 2, []
        for start in range(0, len(scan), ROWS):
            values = unpack_scan(scan[start : start + ROWS])
            found.append(inner_products(values, self.centers).sub_(half).argmax(dim=1))
        keys = (torch.cat(found) * len(lengths) + owners).unique()
        ends = torch.searchsorted(keys, torch.arange(1, len(self.centers) + 1) * len(lengths))
        kind = np.uint16 if len(lengths) <= 1 << 16 else np.int32
        return {
            "postings": (keys % len(lengths)).numpy().astype(kind),
            "posting_ends": ends.numpy().astype(np.int32),
        }

    def candidates(
        self,
        words: Float[Tensor, "place lead"],
        collection: Collection,
        allowed: Int[Tensor, " item"],
        count: int,
        how: CrossAttention,
        *,
        probes: int = PROBES,
    ) -> Int[Tensor, " some"]:
        """The items that look best by the centers alone, ascending."""
        best = (words @ self.centers.T).topk(min(probes, len(self.centers)), dim=1)
        gains = best.values.mul(SHARPER * how.lse_scale).exp() if how.aggregation == "logsumexp" else best.values
        gains = gains - gains[:, -1:]  # beyond what any item may have
        total = torch.zeros(len(collection))
        for segment, end in zip(collection.segments, collection.ends.tolist(), strict=True):
            postings, ends = segment.arrays["postings"], segment.arrays["posting_ends"].tolist()
            for values, cells in zip(gains.tolist(), best.indices.tolist(), strict=True):
                near = np.zeros(len(segment), np.float32)
                for value, cell in zip(reversed(values), reversed(cells), strict=True):  # the best is written last
                    near[postings[ends[cell - 1] if cell else 0 : ends[cell]]] = value
                total[end - len(segment) : end] += torch.from_numpy(near)
        chosen = total[allowed].topk(min(count, len(allowed))).indices
        return allowed[chosen].sort().values
