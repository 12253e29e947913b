"""Short hashes of what a memory must match."""

from collections.abc import Mapping
from hashlib import sha256

from torch import Tensor


def digest(settings: str, tensors: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits of SHA-256 over settings and named tensors, counted in float32."""
    whole = sha256(settings.encode())
    for name, tensor in sorted(tensors.items()):
        whole.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return whole.hexdigest()[:16]
