"""Where things come from: region stores, captions, labelled images, vocabularies and the batches made of them."""

from xmodal.data.captions import Caption, load_captions, save_captions
from xmodal.data.labelled import LabelledBatch, LabelledFeatures, LabelledImages, image_transform, load_labelled
from xmodal.data.pairs import PairBatch, PairDataset
from xmodal.data.region_store import RegionBatch, RegionStore, RegionStoreWriter
from xmodal.data.relevance import Relevance, load_relevance
from xmodal.data.vocabulary import Vocabulary, tokenize

__all__ = [
    "Caption",
    "LabelledBatch",
    "LabelledFeatures",
    "LabelledImages",
    "PairBatch",
    "PairDataset",
    "RegionBatch",
    "RegionStore",
    "RegionStoreWriter",
    "Relevance",
    "Vocabulary",
    "image_transform",
    "load_captions",
    "load_labelled",
    "load_relevance",
    "save_captions",
    "tokenize",
]
