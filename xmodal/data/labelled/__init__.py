"""Images with class labels, for retrieval among classes that training never saw.

Three sources say the same (see `load_labelled`):

- an index, JSON lines with `path`, `class` and `split`, as `xmodal prepare labelled` writes it; images
  stay where they are,
- a folder with one folder a class,
- an HDF5 file of precomputed features, as `xmodal prepare labelled features` writes it.
"""

from xmodal.data.labelled.base import QUERY, LabelledBatch, LabelledSet, check_class_disjoint
from xmodal.data.labelled.features import FEATURE_FORMAT, LabelledFeatures, save_features
from xmodal.data.labelled.images import LabelledImages, image_transform
from xmodal.data.labelled.index import LabelledImage, list_folder, load_index, save_index
from xmodal.data.labelled.load import load_labelled

__all__ = [
    "FEATURE_FORMAT",
    "QUERY",
    "LabelledBatch",
    "LabelledFeatures",
    "LabelledImage",
    "LabelledImages",
    "LabelledSet",
    "check_class_disjoint",
    "image_transform",
    "list_folder",
    "load_index",
    "load_labelled",
    "save_features",
    "save_index",
]
