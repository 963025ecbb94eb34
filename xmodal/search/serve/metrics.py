"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
QUESTIONS = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counters of one server.

    Args:
        images: says how many images can be found.
        waiting: says how many questions wait.

    Example:
        >>> from xmodal.search.serve.metrics import Metrics
        >>> metrics = Metrics(lambda: 3, lambda: 0)
        >>> metrics.requests.labels("/api/search", "200").inc()
        >>> "xmodal_images 3.0" in metrics.text().decode()
        True
    """

    def __init__(self, images: Callable[[], float], waiting: Callable[[], float]) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        labels, about = ("path", "status"), "Requests that were answered."
        self.requests = Counter("xmodal_requests", about, labels, registry=registry)
        self.seconds = Histogram(
            "xmodal_request_seconds", "What requests took.", ("path",), buckets=SECONDS, registry=registry
        )
        self.batch = Histogram(
            "xmodal_batch_questions", "Questions answered together.", buckets=QUESTIONS, registry=registry
        )
        Gauge("xmodal_images", "Images that can be found.", registry=registry).set_function(images)
        Gauge("xmodal_waiting", "Questions that wait.", registry=registry).set_function(waiting)

    def text(self) -> bytes:
        """All of it as text."""
        return generate_latest(self._registry)
