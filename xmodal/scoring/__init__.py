"""Every image against every caption, in blocks."""

from xmodal.scoring.blocks import score_all

__all__ = ["score_all"]
