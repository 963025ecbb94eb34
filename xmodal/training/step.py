"""One training step's forward pass: batch in, named loss terms out, negatives from all processes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from xmodal.data.image_source import in_float32
from xmodal.evaluation.alignment import alignment_of, alignment_sums
from xmodal.objectives.addr import DomainFeatures
from xmodal.objectives.captioning import caption_labels
from xmodal.scoring.triton import triton_compare

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from xmodal.data import PairBatch
    from xmodal.model import Matcher
    from xmodal.training.adversary import Adversary


class MatchingStep(nn.Module):
    """The matcher and the objective that trains it as one Module, so that one wrapper distributes both.

    With several processes every process scores its own images against the captions of all, and all of them compute
    the loss of the joined batch; averaging the gradients over processes, as DistributedDataParallel does, then gives
    exactly the gradient of one process on the joined batch. (A head with batch norm does so on GPUs, where the trainer
    joins the statistics too; torch cannot on CPUs.)

    >>> from xmodal.data import PairBatch, RegionBatch
    >>> from xmodal.model import Matcher
    >>> from xmodal.objectives import HingeRanking
    >>> image, text = {"name": "regions", "input_dim": 8, "dim": 4}, {"name": "gru", "dim": 4, "word_dim": 4}
    >>> step = MatchingStep(Matcher(image, text, {"name": "scan"}, vocabulary=["a", "dog"]), HingeRanking())
    >>> real, tokens, pair = torch.ones(2, 36, dtype=torch.bool), torch.ones(2, 5, dtype=torch.long), torch.arange(2)
    >>> batch = PairBatch(RegionBatch(torch.randn(2, 36, 8), real), tokens, real[:, :5], image=pair, caption=pair)
    >>> step(batch, step=0)["total"].requires_grad
    True
    """

    def __init__(
        self,
        matcher: Matcher,
        objective: nn.Module,
        captioning_weight: float = 1.0,
        scoring: Literal["eager", "triton"] = "eager",
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.objective = objective
        self.captioning_weight = captioning_weight
        self.compare = partial(triton_compare, matcher.head) if scoring == "triton" else matcher.head.in_stages.compare

    def forward(self, batch: PairBatch, step: int, adversary: Adversary | None = None) -> dict[str, Float[Tensor, ""]]:
        """Loss terms of a batch at an optimizer step (0-based); `total` is what training minimizes.

        An adversary takes its own step on the way, before it judges the batch.
        """
        head, captioner = self.matcher.head.in_stages, self.matcher.captioner
        # States that a captioner and an adversary read too: they are computed once for all.
        regions, region_mask = self.matcher.image_encoder(in_float32(batch.images))  # features come as stored
        states, domain, images = head.image_stages(regions, region_mask)
        words = self.matcher.encode_captions(batch.tokens, batch.word_mask)
        captions, word_mask = gather(head.embed_captions(words, batch.word_mask)), gather(batch.word_mask)
        scores = gather(self.compare(images, captions, region_mask, word_mask))
        ranking = self.objective(scores, gather(batch.image), step=step)
        terms = dict(ranking)
        if captioner is not None:
            labels = caption_labels(batch.tokens, batch.word_mask, pad=captioner.pad)
            # An average over captions, so over processes too: all see the joined batch's value.
            terms["captioning"] = gather(captioner.loss(states, *labels, region_mask)[None]).mean()
            terms["total"] = terms["total"] + self.captioning_weight * terms["captioning"]
        terms |= self._alignment(words, domain, batch.word_mask, region_mask)
        if adversary is not None and adversary.is_over(step):
            terms |= adversary.terms_at_rest(step, terms["total"].device)
        elif adversary is not None:
            own = [words, domain, batch.word_mask, region_mask, batch.image, batch.caption]
            adversarial = adversary(DomainFeatures(*map(gather, own)), scores.detach(), step)
            judged = adversary.watch_gradients([words, domain], ranking["total"], adversarial.pop("total"))
            terms["total"] = terms["total"] + judged
            terms |= adversarial
        if terms["total"] is not ranking["total"]:
            terms["ranking"] = ranking["total"]
        return terms

    @staticmethod
    def _alignment(*sides: Tensor) -> dict[str, Float[Tensor, ""]]:
        """How the words and regions of all processes lie; see `xmodal.evaluation.alignment`."""
        sums = alignment_sums(*sides)
        found = alignment_of(gather(sums).view(-1, len(sums)).sum(dim=0))
        return {f"alignment/{name}": value for name, value in found._asdict().items()}


def gather(tensor: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; gradients flow back to the process a row came from.

    Every process must bring equally many rows.

    Rows may be padded to different lengths: they are padded with zeros to the longest.

    >>> gather(torch.arange(3))  # a process that trains alone
    tensor([0, 1, 2])
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return tensor
    if tensor.ndim > 1:
        longest = torch.tensor(tensor.shape[1], device=tensor.device)
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        padding = [0, 0] * (tensor.ndim - 2) + [0, int(longest) - tensor.shape[1]]
        tensor = nn.functional.pad(tensor, padding)
    return _Gather.apply(tensor.contiguous())  # type: ignore[return-value]


class _Gather(torch.autograd.Function):
    """all_gather whose backward sums what all processes ask of a row."""

    # torch.distributed.nn.functional.all_gather has the same gradients, but torch 2.14 deprecates it with a warning at
    # every call, and what it recommends instead is in a private module.

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]
