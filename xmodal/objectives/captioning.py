"""Captioning an image from its regions, VSRN's second objective (Li et al., ICCV 2019, sec. 3.3; S2VT with attention).

What an image's regions say must suffice to write its caption: an attention encoder-decoder reads the states of the
regions (`VSRN.reason`) and is trained by teacher forcing, jointly with the ranking loss and with equal weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from xmodal.numerics import DropShare, Size, at_least_float32, check_count, check_number, full_mask

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


class Labels(NamedTuple):
    """Captions as the captioner is taught them. Only where the mask is True does a label count."""

    labels: Int[Tensor, "caption word"]
    label_mask: Bool[Tensor, "caption word"]


class Captions(NamedTuple):
    """Written captions: word ids without `<start>`, up to and including `<end>`, then `<pad>`; and how likely they are.

    `log_probability` is the sum over a caption's words.
    """

    tokens: Int[Tensor, "image word"]
    log_probability: Float[Tensor, " image"]


def caption_labels(
    tokens: Int[Tensor, "caption word"], word_mask: Bool[Tensor, "caption word"], max_length: int = 60, pad: int = 0
) -> Labels:
    """The published layout of labels: `<start> words <end> <pad> ...`, `max_length` of them.

    The mask reaches up to and including the first `<pad>`. A caption that is too long is cut and closed with its last
    token, `<end>`.

    Args:
        tokens: word ids from `<start>` to `<end>`, as `xmodal.data.Vocabulary` gives them.
        word_mask: True = real word; real words come first.
        max_length: number of labels, `<start>` and `<end>` included.
        pad: id of `<pad>`.

    Raises:
        ValueError: if the mask is not boolean or does not fit, a caption is empty, or `max_length` is below 2.

    Example:
        >>> import torch
        >>> from xmodal.objectives.captioning import caption_labels
        >>> tokens = torch.tensor([[1, 7, 8, 9, 2], [1, 7, 2, 0, 0]])
        >>> caption_labels(tokens, tokens != 0, max_length=4)
        Labels(labels=tensor([[1, 7, 8, 2],
                [1, 7, 2, 0]]), label_mask=tensor([[True, True, True, True],
                [True, True, True, True]]))
    """
    if word_mask.dtype != torch.bool or word_mask.shape != tokens.shape or tokens.ndim != 2:
        raise ValueError(
            f"word_mask must be boolean and shaped as tokens (caption, word), got {word_mask.dtype} "
            f"{tuple(word_mask.shape)} for {tuple(tokens.shape)}"
        )
    lengths = word_mask.sum(dim=1)
    if bool((lengths == 0).any()):
        raise ValueError(f"caption {int((lengths == 0).nonzero()[0])} has no real word in word_mask; remove it first")
    if max_length < 2:
        raise ValueError(f"max_length must be at least 2, for <start> and <end>, got {max_length}")
    labels = F.pad(tokens.masked_fill(~word_mask, pad), (0, max(0, max_length - tokens.shape[1])), value=pad)
    last = labels.gather(1, lengths[:, None] - 1)
    labels = labels[:, :max_length]
    labels = torch.cat([labels[:, :-1], torch.where(lengths[:, None] > max_length, last, labels[:, -1:])], dim=1)
    return Labels(labels, torch.arange(max_length, device=tokens.device) <= lengths[:, None])


def captioning_loss(
    log_probabilities: Float[Tensor, "caption step vocabulary"],
    labels: Int[Tensor, "caption word"],
    label_mask: Bool[Tensor, "caption word"],
) -> Float[Tensor, ""]:
    """Negative log likelihood of the labels after the first: summed over words, averaged over captions, as published.

    Args:
        log_probabilities: of the word after label 0, 1, ..., one step less than there are labels.
        labels: see `caption_labels`.
        label_mask: True = the label counts.

    Raises:
        ValueError: if the shapes do not fit, or there is no caption.

    Example:
        >>> import torch
        >>> from xmodal.objectives.captioning import captioning_loss
        >>> chance = torch.full((2, 2, 10), 0.1).log()
        >>> labels = torch.tensor([[1, 5, 2], [1, 2, 0]])
        >>> captioning_loss(chance, labels, labels != 0)  # three words at log 10, two captions
        tensor(3.4539)
    """
    if label_mask.shape != labels.shape or log_probabilities.shape[:2] != (len(labels), labels.shape[1] - 1):
        raise ValueError(
            "log_probabilities must have one step less than there are labels, and label_mask the shape of the labels; "
            f"got log_probabilities {tuple(log_probabilities.shape)}, labels {tuple(labels.shape)}, "
            f"label_mask {tuple(label_mask.shape)}"
        )
    if not len(labels):
        raise ValueError(f"labels must be of at least one caption, got {tuple(labels.shape)}")
    likelihood = log_probabilities.gather(2, labels.long()[:, 1:, None])[..., 0]
    return -likelihood.masked_fill(~label_mask[:, 1:], 0.0).sum() / len(labels)


class Memory(NamedTuple):
    """What the decoder consults at every word: the encoded regions, and their part of the attention's first layer."""

    regions: Float[Tensor, "image region hidden"]
    keys: Float[Tensor, "image region hidden"]
    mask: Bool[Tensor, "image region"]


class Captioner(nn.Module):
    """Attention encoder-decoder from region states to a sentence.

    A GRU reads the regions. At every word, a second GRU sees the last word and an average of the encoded regions,
    weighted by attention.

    Args:
        dim: dim of the region states.
        vocabulary_size: number of words, special tokens included.
        hidden_dim: dim of both GRUs.
        word_dim: dim of the word embeddings.
        dropout: share of the GRUs' inputs dropped in training.
        start: id of `<start>`.
        end: id of `<end>`.
        pad: id of `<pad>`.

    Example:
        >>> import torch
        >>> from xmodal.objectives.captioning import Captioner, caption_labels
        >>> captioner = Captioner(dim=16, vocabulary_size=30, hidden_dim=8, word_dim=6)
        >>> tokens = torch.tensor([[1, 7, 8, 9, 2], [1, 7, 2, 0, 0]])
        >>> states = torch.randn(2, 36, 16)
        >>> captioner.loss(states, *caption_labels(tokens, tokens != 0)).shape
        torch.Size([])
        >>> captioner.beam(states, beam_size=3, max_length=7).tokens.shape[0]
        2
    """

    def __init__(
        self,
        dim: Size,
        vocabulary_size: Size,
        hidden_dim: Size = 512,
        word_dim: Size = 300,
        dropout: DropShare = 0.2,
        start: int = 1,
        end: int = 2,
        pad: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "vocabulary_size": vocabulary_size, "hidden_dim": hidden_dim, "word_dim": word_dim}
        for name, size in sizes.items():
            check_count(name, size)
        check_number("dropout", dropout, least=0, below=1)
        for name, word in (("start", start), ("end", end), ("pad", pad)):
            check_count(name, word, least=0)
        self.projection = nn.Linear(dim, hidden_dim)
        self.encoder = nn.GRU(hidden_dim, hidden_dim, batch_first=True)
        self.embedding = nn.Embedding(vocabulary_size, word_dim)
        self.attention = nn.Linear(2 * hidden_dim, hidden_dim)
        self.attention_score = nn.Linear(hidden_dim, 1, bias=False)
        self.decoder = nn.GRUCell(word_dim + hidden_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, vocabulary_size)
        nn.init.xavier_normal_(self.projection.weight)
        nn.init.xavier_normal_(self.output.weight)
        self.dropout = nn.Dropout(dropout)
        self.start, self.end, self.pad = start, end, pad

    def forward(
        self,
        states: Float[Tensor, "caption region dim"],
        labels: Int[Tensor, "caption word"],
        region_mask: Bool[Tensor, "caption region"] | None = None,
    ) -> Float[Tensor, "caption step vocabulary"]:
        """Log-probabilities of every next word, each step being told the true words so far (teacher forcing).

        Args:
            states: region states of each caption's image.
            labels: see `caption_labels`; the last is predicted but not told.
            region_mask: True = real region; real regions come first.

        Raises:
            ValueError: if there are not as many captions as images, or the mask does not fit.
        """
        if len(states) != len(labels):
            raise ValueError(f"wanted the states of each caption's image, got {len(states)} for {len(labels)} captions")
        memory, hidden = self._encode(states, region_mask)
        steps = []
        for word in labels[:, :-1].unbind(dim=1):
            hidden = self._step(word, hidden, memory)
            steps.append(hidden)
        return self._log_probabilities(torch.stack(steps, dim=1))

    def loss(
        self,
        states: Float[Tensor, "caption region dim"],
        labels: Int[Tensor, "caption word"],
        label_mask: Bool[Tensor, "caption word"],
        region_mask: Bool[Tensor, "caption region"] | None = None,
    ) -> Float[Tensor, ""]:
        """`captioning_loss` of these captions, without the steps at which no label counts."""
        if not len(labels):
            raise ValueError(f"labels must be of at least one caption, got {tuple(labels.shape)}")
        longest = int(label_mask.any(dim=0).nonzero().max()) + 1
        labels, label_mask = labels[:, :longest], label_mask[:, :longest]
        return captioning_loss(self(states, labels, region_mask), labels, label_mask)

    @torch.no_grad()
    def beam(
        self,
        states: Float[Tensor, "image region dim"],
        region_mask: Bool[Tensor, "image region"] | None = None,
        beam_size: int = 5,
        max_length: int = 60,
    ) -> Captions:
        """The likeliest caption found by following the `beam_size` likeliest beginnings. Call `eval()` first.

        With one beginning it takes the likeliest word at every step.

        Args:
            states: region states, as `VSRN.reason` gives them.
            region_mask: True = real region; real regions come first.
            beam_size: beginnings kept at every step.
            max_length: words written at most, `<end>` included; `<start>` and `<pad>` are never written.

        Raises:
            ValueError: if `beam_size` or `max_length` is below 1, or the mask does not fit.
        """
        for name, value in (("beam_size", beam_size), ("max_length", max_length)):
            check_count(name, value)
        memory, hidden = self._encode(states, region_mask)
        count, beams = len(states), beam_size
        memory = Memory(*(field.repeat_interleave(beams, dim=0) for field in memory))
        hidden = hidden.repeat_interleave(beams, dim=0)
        tokens = torch.full((count, beams, 1), self.start, device=states.device)
        # All beams of an image begin alike: one is followed, or the first step would choose the same word of each.
        scores = torch.full((count, beams), float("-inf"), device=states.device)
        scores[:, 0] = 0.0
        ended = torch.zeros(count, beams, dtype=torch.bool, device=states.device)
        for _ in range(max_length):
            hidden = self._step(tokens[:, :, -1].flatten(), hidden, memory)
            following = self._log_probabilities(hidden).view(count, beams, -1)
            following[..., [self.start, self.pad]] = float("-inf")
            # A caption that has ended goes on with <pad> at no cost.
            following = following.masked_fill(ended[..., None], float("-inf"))
            following[..., self.pad] = following[..., self.pad].masked_fill(ended, 0.0)
            scores, best = (scores[..., None] + following).flatten(1).topk(beams)
            origin, word = best // following.shape[-1], best % following.shape[-1]
            row = torch.arange(count, device=states.device)[:, None]
            tokens = torch.cat([tokens[row, origin], word[..., None]], dim=2)
            hidden = hidden.view(count, beams, -1)[row, origin].flatten(0, 1)
            ended = ended[row, origin] | (word == self.end)
            if bool(ended[:, 0].all()):
                break  # the best caption is complete, and the others can only become less likely
        return Captions(tokens[:, 0, 1:], scores[:, 0])

    def _encode(
        self, states: Float[Tensor, "image region dim"], region_mask: Bool[Tensor, "image region"] | None
    ) -> tuple[Memory, Float[Tensor, "image hidden"]]:
        """Read the regions: what the decoder consults, and the hidden state it starts from."""
        region_mask = full_mask(states, region_mask)
        if region_mask.dtype != torch.bool or region_mask.shape != states.shape[:2]:
            raise ValueError(
                f"region_mask must be boolean of shape {tuple(states.shape[:2])}, "
                f"got {region_mask.dtype} {tuple(region_mask.shape)}"
            )
        if not bool(region_mask[:, 0].all()) or bool((region_mask[:, 1:] & ~region_mask[:, :-1]).any()):
            raise ValueError("region_mask must be True for the first regions, at least one, and False after them")
        inputs = self.dropout(self.projection(states.masked_fill(~region_mask[..., None], 0.0)))
        regions, _ = self.encoder(inputs)
        last = regions[torch.arange(len(regions), device=regions.device), region_mask.sum(dim=1) - 1]
        hidden_dim = regions.shape[-1]
        keys = F.linear(regions, self.attention.weight[:, :hidden_dim], self.attention.bias)
        return Memory(regions, keys, region_mask), last

    def _step(
        self, word: Int[Tensor, " caption"], hidden: Float[Tensor, "caption hidden"], memory: Memory
    ) -> Float[Tensor, "caption hidden"]:
        """The decoder's state after one more word."""
        query = F.linear(hidden, self.attention.weight[:, hidden.shape[-1] :])
        scores = self.attention_score(torch.tanh(memory.keys + query[:, None]))[..., 0]
        weights = scores.masked_fill(~memory.mask, float("-inf")).softmax(dim=1)
        context = (weights[..., None] * memory.regions).sum(dim=1)
        return self.decoder(self.dropout(torch.cat([self.embedding(word), context], dim=1)), hidden)

    def _log_probabilities(self, hidden: Float[Tensor, "... hidden"]) -> Float[Tensor, "... vocabulary"]:
        return at_least_float32(self.output(hidden)).log_softmax(dim=-1)
