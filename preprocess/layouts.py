"""The layouts of precomputed region features that are read, as data: columns of TSV files, and keys of all others.

docs/data.md says who writes which, and names the test that reads each back.
"""

from __future__ import annotations

TSV_COLUMNS = {
    "bottom-up": ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features"),
    "lxmert": (
        *("image_id", "image_h", "image_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
        *("num_boxes", "boxes", "features"),
    ),
    "vilbert": ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features", "cls_prob"),
    "vl-bert": ("image_id", "image_h", "image_w", "num_boxes", "boxes", "features", "cls_prob", "classes"),
    "bottom-up-classes": ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features", "classes", "attributes"),
    "vinvl": ("image_id", "json"),
}
"""Columns by the name of a layout. Attributes have no place in a region store and are dropped; so are classes without
a probability, whose kind of number differs from file to file."""

HEADINGS = {"img_id": "image_id", "img_w": "image_w", "img_h": "image_h"}
"""Other names of columns in a TSV file's heading."""

KEYS = {
    "features": ("x", "features", "feat", "feature", "image_features", "att_feats"),
    "boxes": ("bbox", "boxes", "image_bb", "bboxes", "box"),
    "relative_boxes": ("spatial_features", "normalized_boxes", "norm_bb"),
    "width": ("image_w", "image_width", "width", "img_w"),
    "height": ("image_h", "image_height", "height", "img_h"),
    "count": ("num_bbox", "num_boxes"),
    "probabilities": ("cls_prob",),
}
"""Our name of a value, and the keys that it goes by; the first that is there counts. Relative boxes are shares of width
and height; their first four columns are x1 y1 x2 y2, and they are read where there are no others."""

HDF5 = {
    "ban": "datasets image_features, image_bb (or spatial_features) and, for adaptive features, pos_boxes, a row an "
    "image; its ids in NAME_imgid2idx.pkl beside NAME.hdf5, or in --ids",
    "visdial": "datasets features, image_id and perhaps boxes, num_boxes, image_w and image_h, a row an image, which "
    "may be flat and as long as the image has regions",
    "m2": "datasets ID_features, ID_boxes and ID_cls_prob for every image",
    "groups": "a group an image, with datasets (or attributes) features, boxes, image_w, image_h and the like",
}
"""Kinds of HDF5 files, and what is in them."""

OTHERS = {
    "files": "a folder with an .npz or .npy file an image",
    "lmdb": "an lmdb database: a pickled dict with features, boxes, image_w and the like for every image",
}
"""What is neither TSV nor HDF5."""

SISTERS = (("att", "box"), ("features", "boxes"), ("feat", "box"))
"""Folders of features and the folders beside them that hold the boxes under the same file names: cocobu_att and
cocobu_box, say."""


def layout_names() -> tuple[str, ...]:
    """Every layout.

    >>> layout_names()[:3]
    ('bottom-up', 'lxmert', 'vilbert')
    """
    return (*TSV_COLUMNS, *HDF5, *OTHERS)
