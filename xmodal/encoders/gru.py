"""Word embeddings and a GRU over the sentence: the text encoder of SCAN, BFAN and VSRN."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from xmodal.encoders.base import TextEncoder, check_dropout
from xmodal.heads.recurrent import read_in_order
from xmodal.masks import comes_first, first_empty
from xmodal.numerics import DropShare, Size, SizeOrNone, normalize  # ranges are read at run time

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class GRUEncoder(TextEncoder):
    """Word embeddings and a (bi)GRU, one state a word (SCAN's text encoder, Lee et al. 2018, sec. 3.2).

    Args:
        vocabulary_size: number of words, special tokens included.
        dim: dim of the joint space, and of each direction of the GRU.
        word_dim: dim of the word embeddings.
        bidirectional: average the states of the two directions (SCAN, BFAN); False reads forward only (VSRN).
        layers: number of GRU layers.
        normalize: L2-normalize every state (SCAN, BFAN); False leaves that to the head (VSRN).
        word_dropout: share of the values of the word embeddings that is dropped in training; whole words are left out
            by `drop_words` of the data.
        dropout: share of the values of the states that is dropped in training, before the normalization.
        fixed_dim: dim of a second embedding of the words, beside the learned one, that training leaves as it starts:
            pretrained vectors (`model.word_vectors`), zero for words that these lack (300 in ADAPT). 0 for none.

    Raises:
        ValueError: for a share that is not at least 0 and below 1.

    Example:
        >>> import torch
        >>> from xmodal.encoders.gru import GRUEncoder
        >>> encoder = GRUEncoder(vocabulary_size=100, dim=64)
        >>> tokens = torch.tensor([[1, 7, 8, 2], [1, 9, 2, 0]])
        >>> encoder(tokens, tokens != 0).shape
        torch.Size([2, 4, 64])
    """

    def __init__(
        self,
        vocabulary_size: Size,
        dim: Size,
        word_dim: Size = 300,
        bidirectional: bool = True,
        layers: Size = 1,
        normalize: bool = True,
        word_dropout: DropShare = 0.0,
        dropout: DropShare = 0.0,
        fixed_dim: SizeOrNone = 0,
    ) -> None:
        super().__init__()
        check_dropout(word_dropout=word_dropout, dropout=dropout)
        self.embedding = nn.Embedding(vocabulary_size, word_dim)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.fixed = nn.Embedding(vocabulary_size, fixed_dim) if fixed_dim else None
        if self.fixed is not None:
            nn.init.zeros_(self.fixed.weight.requires_grad_(False))
        self.rnn = nn.GRU(word_dim + fixed_dim, dim, layers, batch_first=True, bidirectional=bidirectional)
        self.dim = dim
        self.normalize = normalize
        self.word_dropout, self.dropout = word_dropout, dropout

    def forward(
        self, tokens: Int[Tensor, "caption word"], word_mask: Bool[Tensor, "caption word"]
    ) -> Float[Tensor, "caption word dim"]:
        """Encode every real word; padding comes out as zero.

        Raises:
            ValueError: if the padding of a caption does not come after all of its words.
        """
        if not torch.compiler.is_compiling():  # values cannot be read while a graph is being traced
            _check_order(word_mask)
        embedded = self.embedding(tokens)
        if self.fixed is not None:
            embedded = torch.cat([self.fixed(tokens), embedded], dim=-1)
        embedded = F.dropout(embedded, self.word_dropout, self.training)
        words = read_in_order(self.rnn, embedded, word_mask)
        if self.rnn.bidirectional:
            words = (words[..., : self.dim] + words[..., self.dim :]) / 2
        words = F.dropout(words, self.dropout, self.training)
        return normalize(words, floor=1e-8) if self.normalize else words

    @torch.no_grad()
    def start_from(self, vectors: Float[Tensor, "word word_dim"], found: Bool[Tensor, " word"]) -> None:
        """Start the embeddings of the words that were found from pretrained vectors; the others stay as they are.

        These are the fixed embeddings where there are some, else the learned ones.

        Raises:
            ValueError: if the vectors are not of this encoder's vocabulary and word_dim, or fixed_dim.
        """
        weight, option = (self.embedding.weight, "word_dim") if self.fixed is None else (self.fixed.weight, "fixed_dim")
        if vectors.shape != weight.shape:
            raise ValueError(
                f"word vectors have shape {tuple(vectors.shape)}, this encoder's embeddings "
                f"{tuple(weight.shape)}: set the text encoder's {option} to {vectors.shape[1]}"
            )
        weight[found] = vectors[found].to(weight)


def _check_order(word_mask: Bool[Tensor, "caption word"]) -> None:
    if not comes_first(word_mask) or first_empty(word_mask) is not None:
        raise ValueError("word_mask must be True for the first words of a caption and False after them")
