"""Settings of the service."""

from dataclasses import dataclass
from ipaddress import ip_address

from hiermem.errors import InputError

_MIB = 1 << 20


@dataclass(frozen=True)
class ServerSettings:
    """Settings of the service.

    Attributes:
        host: address or name that it listens at.
        port: 0 takes a free one.
        api_keys: that clients may show; empty: none is asked for.
        allowed_hosts: further names that the service may be called by.
        max_body_bytes: of a request, but for uploads.
        max_upload_bytes: of an uploaded file.
        requests_per_minute: of a client; reading requests count a tenth; 0: any number.
        max_queue: questions that may wait.
        max_batch: questions that are answered together.
        max_new_tokens: limit of an answer, whatever a client asks for.
        max_question: characters of a question.
        max_stored: responses that are kept; the oldest go first.
        answer_seconds: from a question to the end of its answer.
        body_seconds: for all of a request that is no upload.
        idle_seconds: in which a client must send or take something.
        upload_seconds: for all of an upload.
        end_seconds: for answers that are under way when the service is asked to end.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: int = _MIB
    max_upload_bytes: int = 256 * _MIB
    requests_per_minute: int = 240
    max_queue: int = 64
    max_batch: int = 8
    max_new_tokens: int = 512
    max_question: int = 4000
    max_stored: int = 10_000
    answer_seconds: float = 300.0
    body_seconds: float = 30.0
    idle_seconds: float = 30.0
    upload_seconds: float = 3600.0
    end_seconds: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise InputError(f"A port is from 0 to 65535, not {self.port}.")
        if any(len(key) < 8 or not key.isascii() or not key.isprintable() for key in self.api_keys):
            raise InputError("An API key needs 8 characters of ASCII at least: choose a longer one.")
        if not self.is_local and not self.api_keys:
            raise InputError(
                f"All who reach {self.host} could read the documents: give an --api-key, or leave out --host."
            )
        for name in ("max_body_bytes", "max_upload_bytes", "max_queue", "max_batch", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.requests_per_minute < 0:
            raise InputError("requests_per_minute must not be negative; 0 allows any number.")

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the service."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a name or an address, without a port, is this machine's own."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
