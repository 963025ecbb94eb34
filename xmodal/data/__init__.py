"""Where things come from: region stores, captions, vocabularies and the batches made of them."""

from xmodal.data.captions import Caption, load_captions, save_captions
from xmodal.data.pairs import PairBatch, PairDataset
from xmodal.data.region_store import RegionStore, RegionStoreWriter
from xmodal.data.vocabulary import Vocabulary, tokenize

__all__ = [
    "Caption",
    "PairBatch",
    "PairDataset",
    "RegionStore",
    "RegionStoreWriter",
    "Vocabulary",
    "load_captions",
    "save_captions",
    "tokenize",
]
