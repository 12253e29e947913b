"""Checkpoints of two public codes, taken over: NAMM's networks and HMT's memory parameters.

NAMM (arXiv 2410.13166; SakanaAI/evo-memory) saves the state of its evolution: one vector of all parameters,
and statistics of its features. HMT (arXiv 2405.06067; OswaldHe/HMT-pytorch) saves the state of its whole
model, with or without `module.` before the names. Of neither are the run's settings in the file: they are
taken to be the published ones.

Dimension names: d backbone width, h width of the recall attention.
"""

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np
import torch
from torch import Tensor

from hiermem.config import HierMemConfig
from hiermem.errors import InputError, first_line
from hiermem.eviction_weights import EvictionWeights
from hiermem.memory.policies import Namm, NammConfig
from hiermem.model import HierMemModel
from hiermem.retrieval.regular_files import NotPlainError, plain_file

_NAMM = frozenset({"evolution_state", "iter_num", "best_val_loss"})

_STATISTICS = "stored_buffers_to_save.token_embedding_0_output_"
_OF_CMA_ES = re.compile(
    r"best_member|best_fitness|evo_path_(c|sigma)|g|mean|sigma|C|sample_[BCD]|x|y|mu_eff|weights(_truncated)?"
    r"|(best_)?stored_buffers_to_save\.token_embedding_0_(online_new_)?output_(mean|var|num)"
)
"""Names in the state of the public code's CMA-ES over spectrograms beside ages; it also keeps the statistics
of its best member and those of the step that is going on."""

_HMT = {
    "mem": "summary.summary_prompt.weight",
    "memory_cell.memory": "summary.first_prompt.weight",
    "cross_attn.wq.weight": "summary.query.weight",
    "cross_attn.wk.weight": "summary.key.weight",
}
_UNUSED = frozenset({"memory_cell.mem_map.linear.weight", "memory_cell.mem_map.inv_linear.weight"})
"""Projections of memory embeddings for a change of the segment's length on the way, which is off unless asked
for; every file has them."""

_BACKBONE = "memory_cell.model."
_OF_ROTARIES = "rotary_emb.inv_freq"
"""No weights, but older versions of transformers saved them."""

_OTHER_SCALE = 4096
"""From this width and this h on, the public code divides scores by h while it reads and by √h while it
generates."""

# How NumPy's numbers are made again: NAMM's code saves its validation score as one, HMT's saves none.
_NUMBERS: list[Any] = [np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))]
_NUMBERS += [(np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]


# ---- NAMM


def namm_evictor(path: Path) -> EvictionWeights:
    """The evictor of a checkpoint of NAMM's public code, without head shares.

    The network is the evolution's mean, by which that code evaluates (`prefer_mean_to_best` of its
    configurations of the backward attention memory), not its best member. The vector ``[4172]`` holds, one
    after the other, weights ``[inputs, outputs]`` and biases ``[outputs]``: of queries, keys and values side
    by side, of what attention adds and multiplies, and of the score. Features are the ages' sines and
    cosines, then the spectrogram, with mean and variance ``[1, 1, 1, 17]`` in the same file.

    Raises:
        InputError: it is no such checkpoint, damaged, or of another network.
    """
    checkpoint = _read(path, "NAMM")
    if checkpoint.keys() != _NAMM or not isinstance(checkpoint["evolution_state"], dict):
        raise InputError(f"{path} is no checkpoint of NAMM's public code: give its ckpt.pt or iter_N.pt.")
    state = _renamed(checkpoint["evolution_state"], "_orig_mod.", path)
    statistics = [_STATISTICS + name for name in ("mean", "var")]
    _check_names(
        path,
        missing={"mean", *statistics} - state.keys(),
        unknown=(name for name in state if not _OF_CMA_ES.fullmatch(name)),
        remedy="give one of a run with its configuration namm_bam",
    )
    network = Namm(NammConfig())
    vector = _numbers(path, state, "mean", (sum(p.numel() for p in network.parameters()),))
    bins = network.config.spectrogram.bins
    mean, variance = (_numbers(path, state, name, (1, 1, 1, bins)).flatten() for name in statistics)
    if bool((variance < 0).any()):
        raise InputError(f"{path} is damaged (a variance is negative): take another copy.")
    parameters = {"mean": mean, "deviation": variance.sqrt()}
    for part, linear in (("look", network.look), ("change", network.change), ("score", network.score)):
        outputs, inputs = linear.weight.shape
        weight, bias, vector = vector.split([inputs * outputs, outputs, len(vector) - (inputs + 1) * outputs])
        parameters |= {f"{part}.weight": weight.view(inputs, outputs).T.clone(), f"{part}.bias": bias.clone()}
    origin: dict[str, object] = {"made_by": "hiermem import namm", "file": path.name}
    if isinstance(steps := checkpoint["iter_num"], int):
        origin["iteration"] = steps
    return EvictionWeights(network=parameters, namm=network.config, origin=origin)


# ---- HMT


@dataclass(frozen=True)
class HMTWeights:
    """A checkpoint of HMT's public code.

    Attributes:
        path: its file.
        parameters: those of the memory by hiermem's names, float32: both prompts ``[1, d]``, and W_q and W_k
            ``[h, d]``, which have no bias there either.
        backbone: weights of the backbone by its own names, as they were trained along.
        unused: names of what plain reading does not use.
    """

    path: Path
    parameters: dict[str, Tensor]
    backbone: dict[str, Tensor]
    unused: list[str]

    @classmethod
    def read(cls, path: Path) -> "HMTWeights":
        """Read a file that `torch.save` wrote of the public code's model, after its second stage.

        Raises:
            InputError: it is no such checkpoint, damaged, of the first stage, with adapters (LoRA), with more
                memory embeddings a segment than one, or as wide as the public code changes its scores' scale.
        """
        state = _renamed(_read(path, "HMT"), "module.", path)
        if adapter := next((name for name in state if "lora_" in name), None):
            raise InputError(
                f"{path} has adapters inside the backbone ({adapter}), which are not taken over: merge them "
                f"into the backbone, save it and leave them out of the file."
            )
        backbone = {
            name.removeprefix(_BACKBONE): tensor
            for name, tensor in state.items()
            if name.startswith(_BACKBONE) and not name.endswith(_OF_ROTARIES)
        }
        _check_names(
            path,
            missing=_HMT.keys() - state.keys(),
            unknown=(n for n in state.keys() - _HMT.keys() - _UNUSED if not n.startswith(_BACKBONE)),
            remedy="give a file model_weights_N.pth of HMT's public code, after its second stage",
        )
        width = _size(state["mem"], 1)
        tensors = {
            "mem": _numbers(path, state, "mem", (1, width)),
            "memory_cell.memory": _numbers(path, state, "memory_cell.memory", (1, width)),
        }
        h = _size(state["cross_attn.wq.weight"], 0)
        for name in ("cross_attn.wq.weight", "cross_attn.wk.weight"):
            tensors[name] = _numbers(path, state, name, (h, width))
        if min(width, h) >= _OTHER_SCALE:
            raise InputError(
                f"{path} recalls with a width of {h} over embeddings of {width} numbers, where the public "
                f"code divides scores by {h} while it reads and by {math.sqrt(h):.0f} while it generates, of "
                f"which hiermem has the second alone: take one with a narrower recall attention."
            )
        parameters = {_HMT[name]: tensor for name, tensor in tensors.items()}
        return cls(path, parameters, backbone, sorted(_UNUSED & state.keys()))

    @property
    def shape(self) -> tuple[int, int]:
        """h and d."""
        h, width = self.parameters["summary.query.weight"].shape
        return h, width

    def config(self) -> HierMemConfig:
        """The preset `hmt` with a recall attention as wide as the file's."""
        config = HierMemConfig.preset("hmt")
        summary = replace(config.summary, width=self.shape[0])
        return HierMemConfig(**{**config.settings(), "summary": summary})

    def give(self, model: HierMemModel) -> list[str]:
        """Give a model with the configuration `config` the memory, and its backbone nothing.

        Returns:
            Names of the backbone's weights that have other numbers in the file: it was trained along.

        Raises:
            InputError: the file is of another backbone.
        """
        other = f"{self.path} was not trained with {model.config.backbone}"
        remedy = "give the backbone that it was trained with"
        width = model.backbone.get_input_embeddings().weight.shape[1]
        if width != self.shape[1]:
            raise InputError(f"{other} (its embeddings have {self.shape[1]} numbers, not {width}): {remedy}.")
        own = model.backbone.state_dict()
        for name, tensor in self.backbone.items():
            if name not in own or not _is_plain(tensor) or own[name].shape != tensor.shape:
                raise InputError(f"{other} (the backbone's weight {name} differs): {remedy}.")
        model.load_memory_parameters({**model.memory_parameters(), **self.parameters})
        return sorted(name for name, tensor in self.backbone.items() if not _same(tensor, own[name]))


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether two weights are the same numbers, in the coarser of both dtypes."""
    coarse = min(first.dtype, second.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(first.to(coarse), second.detach().to("cpu", coarse))


# ---- both


def _read(path: Path, of: str) -> dict[str, Any]:
    """A dictionary that `torch.save` wrote; no code in the file is run.

    Raises:
        InputError: there is none.
    """
    remedy = f"give the whole file that {of}'s public code has saved"
    try:
        with plain_file(Path(os.path.realpath(path))) as file, file.stream() as stream:
            found = _unpickled(stream)
    except NotPlainError as kind:
        raise InputError(f"{path} is {kind}, not a plain file: {remedy}.") from None
    except FileNotFoundError:
        raise InputError(f"There is no file {path}: {remedy}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): {remedy}.") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged, or holds more than tensors and numbers: {remedy}.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is no checkpoint: {remedy}.")
    return found


def _unpickled(stream: BinaryIO) -> Any:
    """The content of a file of `torch.save`: tensors, numbers, texts, lists and dictionaries.

    Raises:
        ValueError: it is damaged, or holds something else.
    """
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # of many kinds, with advice to trust the file
        raise ValueError(first_line(error)) from error


def _renamed(state: dict[Any, Any], prefix: str, path: Path) -> dict[str, Any]:
    """The same state without the prefix of a wrapper before its names.

    Raises:
        InputError: it has no names, or one of them twice.
    """
    if not all(isinstance(name, str) for name in state):
        raise InputError(f"{path} is no checkpoint of a model: its tensors have no names.")
    named = {name.removeprefix(prefix): value for name, value in state.items()}
    if len(named) < len(state):
        raise InputError(f"{path} has tensors twice, with and without {prefix}: leave one of them out.")
    return named


def _check_names(path: Path, *, missing: Iterable[str], unknown: Iterable[str], remedy: str) -> None:
    """Refuse a state that is not all here, or of which not everything is understood.

    Raises:
        InputError: so it is.
    """
    for names, sentence in ((sorted(missing), "lacks {}"), (sorted(unknown), "holds {}, unknown here")):
        if names:
            first = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            raise InputError(f"{path} {sentence.format(first)}: {remedy}.")


def _is_plain(value: object) -> TypeGuard[Tensor]:
    """Whether it is a tensor with all its numbers, neither sparse nor quantised."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not (value.is_meta or value.is_quantized)
    )


def _size(tensor: object, dim: int) -> int:
    """A size of a matrix; 0 of anything else."""
    return tensor.shape[dim] if _is_plain(tensor) and tensor.dim() == 2 else 0


def _numbers(path: Path, state: dict[str, Any], name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor as float32.

    Raises:
        InputError: it is of another shape, or holds no finite numbers.
    """
    tensor = state[name]
    if not _is_plain(tensor) or tensor.shape != shape or not tensor.numel():
        found = list(tensor.shape) if _is_plain(tensor) else "no tensor"
        raise InputError(
            f"{path} is of another network ({name} is {found}, not {list(shape)}): give another."
        )
    numbers: Tensor = tensor.detach().float()
    if not tensor.is_floating_point() or not bool(numbers.isfinite().all()):
        raise InputError(f"{path} is damaged ({name} holds no finite numbers): take another copy.")
    return numbers
