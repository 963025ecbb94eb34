"""ADDR: adversarial, discriminative domain regularization (Ren et al., ICPR 2020, arXiv 2010.12126).

Each matched pair p of a batch has a linear discriminator f_p = (W_p, b_p) of its own that tells the pair's words from
its regions. L_p(f_q), the error of q's discriminator on the items of p, is a binary cross entropy, at least 0:

    discriminators minimize  mean_p L_p(f_p) + lambda * L_reg      each f_p fits its own pair better than its negatives
    encoders       minimize  ranking loss - beta * sum_p L_p(f_p)   nothing tells the words of a pair from its regions

No code was released, and neither the form of the discriminators nor alpha, beta, lambda or the schedule is published:
the defaults here are ours. As printed, eq. 2 is a log likelihood whose minimum has no bound; the error is the one
reading that agrees with eq. 3 and 9. At inference nothing of this remains.

Controls that are ours, not the paper's, say how much of ADDR is in its parts: `MeanMatch`, the squared distance of a
pair's mean word and mean region, without discriminators; `form="shared"`, one discriminator for all pairs;
`encoder_loss`, other ways to resist a discriminator; `encoder_reg`, L_reg that the encoders minimize too; and a beta
that decays (`beta_decay_steps`).
"""

from xmodal.objectives.addr.base import DomainObjective, Reduction
from xmodal.objectives.addr.batch import Discriminators, DomainFeatures, Items
from xmodal.objectives.addr.errors import Balance, RegForm, distinctness_loss, hard_negatives, pair_errors
from xmodal.objectives.addr.forms import FORMS, Amortized, FastWeights, Ridge, Shared, Table
from xmodal.objectives.addr.mean_match import MeanMatch, mean_match_loss
from xmodal.objectives.addr.objective import ADDR, EncoderLoss, Through, addr_loss

__all__ = [
    "ADDR",
    "FORMS",
    "Amortized",
    "Balance",
    "Discriminators",
    "DomainFeatures",
    "DomainObjective",
    "EncoderLoss",
    "FastWeights",
    "Items",
    "MeanMatch",
    "Reduction",
    "RegForm",
    "Ridge",
    "Shared",
    "Table",
    "Through",
    "addr_loss",
    "distinctness_loss",
    "hard_negatives",
    "mean_match_loss",
    "pair_errors",
]
