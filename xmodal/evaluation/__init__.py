"""Ranks, protocols and reports."""

from __future__ import annotations

from xmodal.evaluation.exact import evaluate_exact
from xmodal.evaluation.labelled import evaluate_embeddings
from xmodal.evaluation.protocols import PROTOCOLS, evaluate_protocol
from xmodal.evaluation.ranked import write_ranks
from xmodal.evaluation.ranks import evaluate_retrieval, retrieval_ranks
from xmodal.evaluation.relevance import Relevance, evaluate_relevance
from xmodal.evaluation.report import format_table

__all__ = [
    "PROTOCOLS",
    "Relevance",
    "evaluate_embeddings",
    "evaluate_exact",
    "evaluate_protocol",
    "evaluate_relevance",
    "evaluate_retrieval",
    "format_table",
    "retrieval_ranks",
    "write_ranks",
]
