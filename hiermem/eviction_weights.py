"""Evictors: head shares and a network for NAMM, made for one backbone by calibration or evolution.

An evictor is a folder with one file, `evictor.safetensors`. Those of bundled backbones ship in
`hiermem/weights`, each with a card. Head shares belong to one backbone; the network sees attention and age
alone, so a backbone or an evictor without one gets the network of a bundled evictor.
"""

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hiermem.errors import InputError, first_line
from hiermem.memory.cache.head_groups import HeadBudgets
from hiermem.memory.digest import digest
from hiermem.memory.policies import AttentionPolicy, LinearPolicy, Namm, NammConfig, NammPolicy
from hiermem.memory.policies.linear import weights_digest
from hiermem.model_files import check_tensor_file
from hiermem.shipped import WEIGHTS

FILE = "evictor.safetensors"
FORMAT_VERSION = 2
"""2 has weights of the policy `linear`."""
AUTO, NONE, SHIPPED = "auto", "none", "shipped"

_LENDS = "smollm2"
"""Whose network other backbones get."""


@dataclass(frozen=True)
class EvictionWeights:
    """Head shares and network that an eviction policy has learned for one backbone.

    Attributes:
        shares: what each KV head keeps in proportion to the others; None: all alike.
        network: parameters and buffers of `Namm` by name; None: the backbone has no network of its own.
        namm: settings of that network.
        origin: how it was made, plain JSON.
        lender: bundled backbone whose network it has borrowed; None: the network is its own, or it has none.
        linear: weights of the policy `linear`, of each layer ``[KV heads, features]`` float32; None: it has
            none.
    """

    shares: HeadBudgets | None = None
    network: dict[str, Tensor] | None = None
    namm: NammConfig = field(default_factory=NammConfig)
    origin: dict[str, object] = field(default_factory=dict)
    lender: str | None = None
    linear: Sequence[Tensor] | None = None

    @property
    def digest(self) -> str:
        """A short hash of head shares and NAMM's network."""
        return digest(json.dumps([self.shares, asdict(self.namm)]), self.network or {})

    def digest_for(self, policy: str) -> str:
        """A short hash of all that it makes a model with this policy do."""
        if policy != LinearPolicy.name or self.linear is None:
            return self.digest
        return digest(json.dumps([self.shares, weights_digest(self.linear)]), {})

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the evictor into ``folder``; the file is replaced whole."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        tensors = {f"network.{name}": t.contiguous() for name, t in (self.network or {}).items()}
        tensors |= {f"linear.{layer}": t.contiguous() for layer, t in enumerate(self.linear or ())}
        if self.shares is not None:
            tensors["shares"] = torch.tensor(self.shares, dtype=torch.float32)
        header = {"format_version": FORMAT_VERSION, "namm": asdict(self.namm), "origin": self.origin}
        temporary = path / f".{FILE}.tmp"
        save_file(tensors, temporary, metadata={"hiermem": json.dumps(header)})
        os.replace(temporary, path / FILE)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "EvictionWeights":
        """Read an evictor.

        Raises:
            InputError: there is none in ``folder``, it is damaged, or in a newer format.
        """
        path = Path(folder) / FILE
        try:
            check_tensor_file(path)
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["hiermem"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            version = int(header["format_version"])
            if version > FORMAT_VERSION:
                raise InputError(
                    f"The evictor at {folder} is in format {version} and this version reads up to "
                    f"{FORMAT_VERSION}: upgrade hiermem."
                )
            shares = tensors.pop("shares").tolist() if "shares" in tensors else None
            linear = [tensors.pop(f"linear.{at}") for at in range(_count(tensors, "linear."))]
            network = {name.removeprefix("network."): tensor for name, tensor in tensors.items()}
            namm = NammConfig(**header["namm"])
            _check(shares, network, namm, linear)
            return cls(shares, network or None, namm, dict(header["origin"]), linear=linear or None)
        except FileNotFoundError as error:
            raise InputError(
                f"There is no evictor at {folder}: give a folder that `hiermem calibrate` wrote, "
                f"{', '.join([AUTO, SHIPPED, NONE, *bundled()])}."
            ) from error
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            problem = first_line(error)
            raise InputError(f"The evictor at {folder} is damaged ({problem}): make it again.") from error


def _count(names: Collection[str], prefix: str) -> int:
    return sum(name.startswith(prefix) for name in names)


def _check(shares: object, network: dict[str, Tensor], namm: NammConfig, linear: Sequence[Tensor]) -> None:
    """Refuse what no calibration and no evolution makes.

    Raises:
        ValueError, RuntimeError: shares are no table of finite numbers, or the network is another, or linear
            weights are no finite tables.
    """
    if not all(w.dim() == 2 and w.is_floating_point() and w.isfinite().all() for w in linear):
        raise ValueError("its linear weights are no tables of finite numbers")
    if shares is not None and not (
        isinstance(shares, list)
        and all(isinstance(row, list) and all(0 <= s < math.inf for s in row) for row in shares)
        and any(map(any, shares))
    ):
        raise ValueError("its shares are no table of finite numbers, not negative and not all 0")
    if network:
        Namm(namm).load_state_dict(network)
        if not all(tensor.isfinite().all() for tensor in network.values()):
            raise ValueError("its network holds no finite numbers")


def bundled() -> list[str]:
    """Names of the backbones whose evictors ship with the package."""
    return sorted(folder.parent.name for folder in WEIGHTS.glob(f"*/{FILE}"))


def is_evolved(parameters: Mapping[str, Tensor]) -> bool:
    """Whether a model's memory parameters hold a network of NAMM's that is another than a new one."""
    fixed = ("namm.mean", "namm.deviation")  # its normalisation
    return any(n.startswith("namm.") and n not in fixed and bool(t.any()) for n, t in parameters.items())


def resolve_eviction_weights(name: str, backbone: str, policy: str) -> EvictionWeights | None:
    """The evictor that a configuration asks for.

    Where ``policy`` is `namm`, an evictor without a network (`hiermem calibrate` writes such) borrows that
    which ships for ``backbone``, or else for `smollm2`. Weights for `linear` belong to one backbone.

    Args:
        name: `auto`, where ``policy`` is `namm` the bundled evictor of ``backbone``, or a bundled network
            if it has none, where it is `linear` that of ``backbone`` if it has weights; `shipped`, the same,
            and where it is `attention` the head shares of that of ``backbone``; `none`; the name of a bundled
            evictor; or a folder.

    Raises:
        InputError: there is no such evictor, or it has no weights for the policy `linear`.
    """
    if name == SHIPPED:
        taken = policy == AttentionPolicy.name and backbone in bundled()
        name = backbone if taken else AUTO
    if policy == LinearPolicy.name:
        return _with_linear(name, backbone)
    scores = policy == NammPolicy.name
    if name == NONE or (name == AUTO and not scores):
        return None
    lender = backbone if backbone in bundled() else _LENDS
    if name == AUTO:
        found = EvictionWeights.load(WEIGHTS / lender)
        return found if lender == backbone else replace(found, shares=None, linear=None, lender=lender)
    found = EvictionWeights.load(WEIGHTS / name if name in bundled() else name)
    if found.network is not None or not scores:
        return found
    lent = EvictionWeights.load(WEIGHTS / lender)
    return replace(found, network=lent.network, namm=lent.namm, lender=lender)


def _with_linear(name: str, backbone: str) -> EvictionWeights | None:
    """The evictor that a configuration with the policy `linear` asks for; see `resolve_eviction_weights`."""
    if name == NONE or (name == AUTO and backbone not in bundled()):
        return None
    name = backbone if name == AUTO else name
    found = EvictionWeights.load(WEIGHTS / name if name in bundled() else name)
    if found.linear is None:
        raise InputError(
            f"The evictor {name} has no weights for the policy linear: make it again with "
            f"`hiermem calibrate`, or choose another policy."
        )
    return found
