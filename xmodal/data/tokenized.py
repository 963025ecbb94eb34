"""All captions of a split as numbers, kept beside them: tokenizing COCO's takes a minute, at every start."""

from __future__ import annotations

import hashlib
import logging
from importlib.metadata import version
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from xmodal.data.atomic import written_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from jaxtyping import Int
    from torch import Tensor

    from xmodal.data.vocabulary import TokenBatch

CAPTIONS_AT_ONCE = 1024
"""How many captions the tokenizer is given in one call, padding included."""

WORTH_KEEPING = 10_000
"""So many captions take longer to tokenize than a file is worth."""

_log = logging.getLogger("xmodal")


class Tokenized(NamedTuple):
    """Captions one after another, without padding: long outliers cost nothing, and workers get them as one piece."""

    words: Int[Tensor, "all_words"]
    start: Int[Tensor, "caption+1"]
    """Where each caption starts, and the last one ends."""


class KeptTokens(NamedTuple):
    """Where the numbers of captions are kept."""

    folder: Path
    """In a file that is named by a hash of all that they depend on. Where it cannot be written, nothing is kept."""
    identity: str | None
    """A hash of the tokenizer and of how it works; without it nothing is kept."""


def tokenized(
    captions: Sequence[str],
    tokenizer: Callable[[Sequence[str]], TokenBatch],
    kept: KeptTokens | None = None,
    *,
    progress: bool = True,
) -> Tokenized:
    """Tokenize captions, or read what an earlier start made of the same captions in the same way.

    Args:
        captions: what to tokenize.
        tokenizer: captions to padded numbers.
        kept: where the numbers of many captions are kept; None keeps nothing.
        progress: show a bar.

    Raises:
        ValueError: the tokenizer refuses a caption.

    >>> from xmodal.data import Vocabulary
    >>> tokenized(["a dog", "dog"], Vocabulary(["a", "dog"]))
    Tokenized(words=tensor([1, 4, 5, 2, 1, 5, 2]), start=tensor([0, 4, 7]))
    """
    if kept is None or kept.identity is None or len(captions) < WORTH_KEEPING:
        return _tokenize(captions, tokenizer, progress)
    path = kept.folder / f".tokens-{_hash(kept.identity, captions)}.safetensors"
    if (read := _read(path, len(captions))) is not None:
        return read
    made = _tokenize(captions, tokenizer, progress)
    try:
        with written_whole(path) as temporary:
            save_file({"words": made.words.int(), "start": made.start}, temporary)
    except OSError as error:
        _log.info("the tokens of %d captions are not kept: %s", len(captions), error)
    return made


def tokenizer_identity(kind: str, *parts: str) -> str:
    """What numbers depend on besides the captions: how they are made, and by which version of which library.

    >>> tokenizer_identity("nltk", "a") != tokenizer_identity("nltk", "b")
    True
    """
    return _hash(f"{kind} {version(kind)}", parts)


def _hash(first: str, texts: Sequence[str]) -> str:
    """Of texts and where each ends."""
    digest = hashlib.sha256()
    for text in (first, *texts):
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()[:32]


def _read(path: Path, count: int) -> Tokenized | None:
    """What a file holds, if it is there and whole."""
    try:
        tensors = load_file(path)
        words, start = tensors["words"].long(), tensors["start"]
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError) as error:
        _log.warning("%s is damaged and made anew: %s", path, error)
        return None
    lengths = start.diff() if start.ndim == 1 else start.new_zeros(0)
    fits = start.dtype == torch.long and words.ndim == 1 and len(lengths) == count and bool((lengths > 0).all())
    if fits and int(start[0]) == 0 and int(start[-1]) == len(words) and bool((words >= 0).all()):
        return Tokenized(words, start)
    _log.warning("%s does not hold the tokens of %d captions and is made anew", path, count)
    return None


def _tokenize(captions: Sequence[str], tokenizer: Callable[[Sequence[str]], TokenBatch], progress: bool) -> Tokenized:
    words, lengths = [], [torch.zeros(1, dtype=torch.long)]
    with tqdm(total=len(captions), desc="tokenizing", unit="caption", delay=2, disable=not progress) as bar:
        for first in range(0, len(captions), CAPTIONS_AT_ONCE):
            tokens, word_mask = tokenizer(captions[first : first + CAPTIONS_AT_ONCE])
            words.append(tokens[word_mask])
            lengths.append(word_mask.sum(1))
            bar.update(len(tokens))
    return Tokenized(torch.cat(words), torch.cat(lengths).cumsum(0))
