"""Measurements of the service in Prometheus' format, in a registry of their own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The measurements of one service.

    Attributes:
        requests: by method, path template and status.
        seconds: of requests, by path template.
        answers: by outcome: found, not_found, cut_short, cancelled, failed, refused.
        waited: seconds from a question to the beginning of its answer.
        tokens: by kind: prompt, completion.
        batched: answers that were made together with others.
        waiting: questions now.
        documents: by state now: read, waiting, failed.
        characters: of documents that were read.
        ready: 1 where questions are answered.
    """

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "hiermem_http_requests", "Requests.", ["method", "path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "hiermem_http_seconds", "Seconds of requests.", ["path"], buckets=_SECONDS, registry=registry
        )
        self.answers = Counter("hiermem_answers", "Answers.", ["outcome"], registry=registry)
        self.waited = Histogram(
            "hiermem_wait_seconds", "Seconds that questions waited.", buckets=_SECONDS, registry=registry
        )
        self.tokens = Counter("hiermem_tokens", "Tokens.", ["kind"], registry=registry)
        self.batched = Counter("hiermem_batched_answers", "Answers made with others.", registry=registry)
        self.waiting = Gauge("hiermem_waiting_questions", "Questions that wait.", registry=registry)
        self.documents = Gauge("hiermem_documents", "Documents.", ["state"], registry=registry)
        self.characters = Counter("hiermem_read_characters", "Characters read.", registry=registry)
        self.ready = Gauge("hiermem_ready", "Whether questions are answered.", registry=registry)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)
