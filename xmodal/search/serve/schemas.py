"""What the API says, in JSON; OpenAPI describes it from these."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """Why a request has no answer."""

    reason: str


class FoundImage(BaseModel):
    """An image that was found."""

    id: str
    score: float
    """That of the head."""
    probability: float | None = None
    """How likely it is to match; None without a calibration, and for queries of several parts."""


class Answer(BaseModel):
    """What a query found, best first."""

    hits: list[FoundImage]
    words: list[str]
    """Of the first sentence, as the model knows them."""
    searched: int
    """Images that could have been found."""
    scored: int
    """Images that were scored from float vectors."""
    certified: bool
    """Whether nothing that was left out can score higher than the last hit."""
    recall: float | None = None
    """The measured share of the exact best 10 that a search like this finds, in percent; None if not measured."""
    no_good_match: bool | None = None
    """Whether even the best of the hits is unlikely to match; None where no probabilities are known."""


class Look(BaseModel):
    """What every word of a sentence looks at in an image."""

    id: str
    boxes: list[tuple[float, float, float, float]]
    """x1 y1 x2 y2 of every region, as shares of width and height."""
    weights: list[list[float]]
    """Of every word over the regions; they sum to one, or to zero of a word that adds nothing to the score."""
    shares: list[float]
    """Of the score, of every word; together one."""


class Explained(BaseModel):
    """Where the words of a sentence look."""

    words: list[str]
    images: list[Look]


class SentImage(BaseModel):
    """A photograph that was sent: by this id images like it can be asked for."""

    id: str
    width: int
    height: int
    regions: int


class About(BaseModel):
    """What is served, and what may be asked."""

    images: int
    photographs: bool
    """Whether images can be looked at."""
    why_not_like: str | None = Field(description="Why images to be like cannot be asked for; null if they can.")
    why_not_sent: str | None = Field(description="Why photographs cannot be sent; null if they can.")
    why_not_explained: str | None = Field(description="Why it cannot be told where words look; null if it can.")
    calibrated: bool
    body_bytes: int
    pixels: int


class Health(BaseModel):
    """That the server answers."""

    status: str = "ok"
    images: int
