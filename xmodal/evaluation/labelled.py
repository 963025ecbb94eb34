"""Retrieval and clustering by class: R@K, R-precision, mAP@R, NMI and pairwise F1."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xmodal.evaluation.neighbors import as_points, center, nearest_neighbors
from xmodal.evaluation.ranks import as_real

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@torch.no_grad()
def evaluate_embeddings(
    embeddings: Float[Tensor, "image dim"],
    labels: Int[Tensor, "image"],
    *,
    query: Bool[Tensor, "image"] | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    normalize: bool = True,
    kmeans: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, float]:
    """Evaluate embeddings of labelled images by retrieval and by clustering.

    Every image is a query among all others. A query whose class has no other image has no right answer: it is left out
    of the retrieval metrics and counted. A wrong image as near as a right one is placed before it: where all embeddings
    are equal, nothing is found. Distances count as in float64, whatever the type, offset and scale of the embeddings.

    Args:
        embeddings: one row an image, of any real type; like labels and queries, a tensor or an array.
        labels: its class, a whole number or a text.
        query: True for the queries, which are then looked up among the other images only, the gallery; None to look up
            every image among all others.
        ks: the levels K of R@K.
        normalize: compare by cosine, and cluster normalized embeddings; otherwise both are Euclidean.
        kmeans: whether to cluster; of SOP's 60,502 images into 11,316 clusters it takes minutes.
        seed: of k-means.
        progress: show a bar.

    Returns:
        In percent:

        - `R@K`: queries with an image of their class among the K nearest.
        - `R-precision`: of the R nearest, those that are right, where R is how many right ones there are.
        - `mAP@R`: mean over the ranks 1 to R of the precision so far, where the rank holds a right image, else 0
          (Musgrave et al., ECCV 2020).
        - `NMI`: mutual information of classes and k-means clusters (as many as classes) over the mean of both
          entropies.
        - `F1`: harmonic mean of precision and recall of pairs of images put into one cluster.

        And `lone_queries`, how many were left out.

    Raises:
        ValueError: wrong shapes, numbers that are not finite, a K out of range, or no query with a right answer.

    >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    >>> metrics = evaluate_embeddings(embeddings, torch.tensor([0, 0, 1, 1]), ks=[1])
    >>> metrics["R@1"], metrics["mAP@R"], metrics["NMI"]
    (100.0, 100.0, 100.0)
    """
    ks = tuple(ks)
    embeddings, labels, query = _checked(embeddings, labels, query, ks)
    metrics = _retrieval_metrics(embeddings, labels, query, ks, normalize, progress)
    if kmeans:
        clusters = kmeans_clusters(as_points(embeddings, normalize=normalize), len(labels.unique()), seed)
        metrics |= {"NMI": 100 * normalized_mutual_information(labels, clusters), "F1": 100 * pair_f1(labels, clusters)}
    return metrics


def kmeans_clusters(embeddings: Float[Tensor, "image dim"], clusters: int, seed: int = 0) -> Int[Tensor, "image"]:
    """The cluster of each image by k-means of faiss, 20 iterations from randomly drawn images.

    >>> clusters = kmeans_clusters(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), clusters=2)
    >>> bool(clusters[0] == clusters[1] != clusters[2] == clusters[3])
    True
    """
    import faiss

    # Its distances are float32: about the points' median and at a scale of one they lose least.
    points = center(as_points(embeddings, normalize=False)).points.float().cpu().contiguous().numpy()
    # Bounds on the points of a cluster are only about warnings and subsampling, of which we want none.
    bounds = {"min_points_per_centroid": 1, "max_points_per_centroid": len(points)}
    kmeans = faiss.Kmeans(points.shape[1], clusters, niter=20, seed=seed, **bounds)
    kmeans.train(points)
    return torch.from_numpy(kmeans.index.search(points, 1)[1][:, 0])


def normalized_mutual_information(labels: Int[Tensor, "image"], clusters: Int[Tensor, "image"]) -> float:
    """2 I(labels; clusters) / (H(labels) + H(clusters)), from 0 to 1; 1 where both are a single group.

    >>> normalized_mutual_information(torch.tensor([0, 0, 1, 1]), torch.tensor([7, 7, 3, 3]))
    1.0
    """
    joint, of_labels, of_clusters = (_entropy(count) for count in _contingency(labels, clusters))
    if of_labels + of_clusters == 0:
        return 1.0
    return max(0.0, 2 * (of_labels + of_clusters - joint) / (of_labels + of_clusters))


def pair_f1(labels: Int[Tensor, "image"], clusters: Int[Tensor, "image"]) -> float:
    """F1 of the pairs of images in one cluster against the pairs of one class, from 0 to 1.

    >>> pair_f1(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 5, 5]))
    0.5
    """
    joint, of_labels, of_clusters = (int((count * (count - 1) // 2).sum()) for count in _contingency(labels, clusters))
    return 2 * joint / max(1, of_labels + of_clusters)


def _checked(
    embeddings: Float[Tensor, "image dim"],
    labels: Int[Tensor, "image"],
    query: Bool[Tensor, "image"] | None,
    ks: Sequence[int],
) -> tuple[Float[Tensor, "image dim"], Int[Tensor, "image"], Bool[Tensor, "image"] | None]:
    """Embeddings, labels from 0 on and queries, as tensors on one device."""
    embeddings = as_real("embeddings", torch.as_tensor(embeddings))
    if embeddings.ndim != 2 or len(embeddings) < 2 or not embeddings.shape[1]:
        raise ValueError(
            f"embeddings have shape {tuple(embeddings.shape)}; wanted (image, dim), at least two images and one dim"
        )
    labels = _numbered(labels, len(embeddings)).to(embeddings.device)
    query = None if query is None else torch.as_tensor(query, device=embeddings.device)
    if query is not None and (query.shape != labels.shape or query.dtype != torch.bool):
        raise ValueError(
            f"query is {query.dtype} of shape {tuple(query.shape)}; wanted a boolean for each of the {len(labels)} "
            "images"
        )
    finite = embeddings.isfinite().all(dim=1)
    if not finite.all():
        raise ValueError(f"the embedding of image {int((~finite).nonzero()[0])} is not finite; look at its features")
    check_evaluable(labels, query, ks)
    return embeddings, labels, query


def _numbered(labels: Any, images: int) -> Int[Tensor, "image"]:
    """Classes, whatever whole numbers or texts they are, by numbers from 0 on.

    Raises:
        ValueError: they are something else, or not as many as the images.
    """
    values = labels.cpu().numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
    if values.shape != (images,) or values.dtype.kind not in "iubUS":
        raise ValueError(
            f"labels are {getattr(labels, 'dtype', values.dtype)} of shape {values.shape}; wanted an integer for each "
            f"of the {images} images, or a text"
        )
    return torch.from_numpy(np.unique(values, return_inverse=True)[1])


def check_evaluable(
    labels: Int[Tensor, "image"],
    query: Bool[Tensor, "image"] | None = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    *,
    ks_name: str = "ks",
) -> None:
    """Refuse images that `evaluate_embeddings` cannot evaluate by retrieval, before there are embeddings.

    Args:
        labels: the class of every image.
        query: as for `evaluate_embeddings`.
        ks: the levels K of R@K.
        ks_name: what these are called where they come from, for the message.

    Raises:
        ValueError: a K is more than the images that are looked among, or no query has an image of its class there.

    >>> check_evaluable(torch.tensor([0, 0, 1]), ks=[1, 3], ks_name="recall_at")
    Traceback (most recent call last):
    ...
    ValueError: recall_at are (1, 3); wanted levels from 1 to 2, the number of images looked among
    """
    ks = tuple(ks)
    if not all(isinstance(k, Integral) for k in ks):
        raise ValueError(f"{ks_name} are {tuple(ks)}; wanted whole numbers")
    in_gallery = labels if query is None else labels[~query]
    gallery = len(in_gallery) - int(query is None)
    if not ks or min(ks) < 1 or max(ks) > gallery:
        raise ValueError(
            f"{ks_name} are {tuple(ks)}; wanted levels from 1 to {gallery}, the number of images looked among"
        )
    classes, counts = in_gallery.unique(return_counts=True)
    asked = labels if query is None else labels[query]
    if not torch.isin(asked, classes[counts > int(query is None)]).any():
        raise ValueError(f"none of the {len(asked)} queries has an image of its class to find; are the labels right?")


def _retrieval_metrics(
    embeddings: Float[Tensor, "image dim"],
    labels: Int[Tensor, "image"],
    query: Bool[Tensor, "image"] | None,
    ks: Sequence[int],
    normalize: bool,
    progress: bool,
) -> dict[str, float]:
    in_gallery = labels if query is None else labels[~query]
    right = torch.bincount(in_gallery, minlength=int(labels.max()) + 1)[labels] - int(query is None)
    asked = right if query is None else right[query]
    lone, answerable = int((asked == 0).sum()), int((asked > 0).sum())
    depth = max(*ks, int(asked.max()))
    sums = dict.fromkeys([*(f"R@{k}" for k in ks), "R-precision", "mAP@R"], 0.0)
    ranks = torch.arange(1, depth + 1, device=labels.device)
    images = torch.arange(len(labels), device=labels.device)
    queries, gallery = (images, images) if query is None else (images[query], images[~query])
    search = nearest_neighbors(embeddings, labels, queries, gallery, depth, normalize=normalize, progress=progress)
    for block in search:
        wanted = right[block.query, None]
        # The hits of a lone query are none: it adds nothing to any sum.
        counted = block.correct & (ranks <= wanted)
        precision = block.correct.cumsum(dim=1).double() / ranks
        possible = wanted.squeeze(1).clamp(min=1).double()
        for k in ks:
            sums[f"R@{k}"] += int(block.correct[:, :k].any(dim=1).sum())
        sums["R-precision"] += float((counted.sum(dim=1) / possible).sum())
        sums["mAP@R"] += float(((precision * counted).sum(dim=1) / possible).sum())
    return {**{name: 100 * total / answerable for name, total in sums.items()}, "lone_queries": lone}


def _contingency(
    labels: Int[Tensor, "image"], clusters: Int[Tensor, "image"]
) -> tuple[Int[Tensor, "pair"], Int[Tensor, "class"], Int[Tensor, "cluster"]]:
    """How many images are in each class and cluster together, in each class, in each cluster."""
    both = torch.stack([labels.cpu(), clusters.cpu()])
    return (
        both.unique(dim=1, return_counts=True)[1],
        both[0].unique(return_counts=True)[1],
        both[1].unique(return_counts=True)[1],
    )


def _entropy(counts: Int[Tensor, "group"]) -> float:
    share = counts.double() / counts.sum()
    return float(-(share * share.log()).sum())
