"""Everything that reading a document has left behind, in memory and on disk."""

import os
from dataclasses import asdict, dataclass
from typing import Protocol

from torch import Tensor

from hiermem.errors import InputError, MemoryCorruptError, MemoryIncompatibleError
from hiermem.memory.longterm import LongTermConfig, LongTermMemory, Record
from hiermem.memory.summary import SummaryMemory
from hiermem.memory.working import WorkingMemory, WorkingMemoryConfig
from hiermem.retrieval.files import load_directory, read_info, save_directory, verify_directory


class Reader(Protocol):
    """What a memory needs of the model that reads into it.

    Attributes:
        summary: the parameters of the memory embeddings; None where they are off.
        name_or_path: what it was loaded by; empty where it has no name.
    """

    name_or_path: str
    summary: SummaryMemory | None

    def fingerprint(self, policy: str | None = None) -> dict[str, str]:
        """What must be the same for a memory with this policy to fit: name → value, in words or as a hash."""

    def new_working_memory(self, config: WorkingMemoryConfig, *, recurrent: bool = False) -> WorkingMemory:
        """An empty working memory on the model's device; if ``recurrent``, one that segments hand on."""

    def to_device(self, tensor: Tensor) -> Tensor:
        """The tensor where the model computes."""


@dataclass(frozen=True)
class Snapshot:
    """A point to return to; see `MemoryState.restore`."""

    working: WorkingMemory
    records: int
    open: Record | None


class MemoryState:
    """The memory of one document.

    Attributes:
        working: the KV cache.
        longterm: one record per segment.
        segment: tokens in a segment.
        fingerprint: the model that it belongs to.
        model: how that model was called, for those who look for it; empty where it had no name.
    """

    def __init__(
        self,
        working: WorkingMemory,
        longterm: LongTermMemory,
        segment: int,
        fingerprint: dict[str, str],
        model: str = "",
    ) -> None:
        self.working = working
        self.longterm = longterm
        self.segment = segment
        self.fingerprint = fingerprint
        self.model = model

    @property
    def tokens(self) -> int:
        """Tokens read so far."""
        return self.working.seen[0]

    @property
    def segments(self) -> int:
        """Segments read so far, an incomplete last one included."""
        return len(self.longterm)

    @property
    def characters(self) -> int:
        """Characters read so far."""
        last = self.longterm.open or (self.longterm.records[-1] if self.longterm.records else None)
        return last.end if last else 0

    @property
    def text(self) -> str:
        """All that was read, character by character."""
        return "".join(record.text for record in self.records())

    def last_characters(self, count: int) -> str:
        """The last ``count`` characters that were read, or fewer."""
        text = ""
        for record in reversed(self.records()):
            if len(text) >= count:
                break
            text = record.text + text
        return text[-count:]

    @property
    def nbytes(self) -> int:
        """Bytes of the working memory and of the search keys."""
        keys = self.longterm.store.keys
        return self.working.nbytes + keys.numel() * keys.element_size()

    def records(self) -> list[Record]:
        """All records, an incomplete last one included."""
        return [*self.longterm.records, *([self.longterm.open] if self.longterm.open else [])]

    # ---- going back

    def snapshot(self) -> Snapshot:
        """The present moment; costs nothing, since tensors are never written in place."""
        return Snapshot(self.working.copy(), len(self.longterm.records), self.longterm.open)

    def restore(self, moment: Snapshot) -> None:
        """Go back to a moment at most one segment ago, as if nothing had been read since."""
        self.working = moment.working
        self.longterm.forget_after(moment.records)
        self.longterm.open = moment.open

    # ---- disk

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save as one directory: the old memory or the new one survives a crash at any instant.

        Raises:
            MemoryFileError: it could not be written; what was there before is untouched.
        """
        files = {"working": self.working.state_dict(), **self.longterm.tensors()}
        info = {
            "fingerprint": self.fingerprint,
            "model": self.model,
            "segment": self.segment,
            "tokens": self.tokens,
            "characters": self.characters,
            "recurrent": self.working.recurrence is not None,
            "working": {"config": asdict(self.working.config), "bookkeeping": self.working.bookkeeping()},
            "longterm": {"config": asdict(self.longterm.config)},
        }
        save_directory(path, files, info)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Reader) -> "MemoryState":
        """Load and verify a saved memory.

        Raises:
            MemoryMissingError, MemoryCorruptError, MemoryTooNewError: see `hiermem.errors`.
            MemoryIncompatibleError: it belongs to another backbone, tokenizer or dtype.
        """
        files, info = load_directory(path)
        try:
            config = WorkingMemoryConfig(**info["working"]["config"])
            check_fingerprint(info["fingerprint"], model.fingerprint(config.policy), f"The memory at {path}")
            working = model.new_working_memory(config, recurrent=bool(info.get("recurrent")))
            tensors = {name: model.to_device(tensor) for name, tensor in files["working"].items()}
            working.load_state(tensors, info["working"]["bookkeeping"])
            settings = LongTermConfig(**info["longterm"]["config"])
            longterm = LongTermMemory.from_tensors(settings, files, model.summary)
            name = model.name_or_path or str(info.get("model", ""))  # younger than the format
            return cls(working, longterm, int(info["segment"]), info["fingerprint"], name)
        except InputError as error:
            raise MemoryIncompatibleError(f"The memory at {path} cannot be used here. {error}") from error
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise MemoryCorruptError(
                f"The memory at {path} is whole but does not make sense ({error}): build it again."
            ) from error

    @staticmethod
    def read_with(path: str | os.PathLike[str]) -> tuple[str, str]:
        """Name of the model that a saved memory was read with, and its dtype; empty where it is not known.

        Raises:
            MemoryMissingError, MemoryCorruptError, MemoryTooNewError, MemoryFileError: see `hiermem.errors`.
        """
        info = read_info(path)
        return str(info.get("model", "")), str(info.get("fingerprint", {}).get("dtype", ""))

    @staticmethod
    def verify(path: str | os.PathLike[str]) -> list[str]:
        """Every problem of a saved memory in plain words; none means that it is sound."""
        return verify_directory(path)


def check_fingerprint(saved: dict[str, str], present: dict[str, str], memory: str) -> None:
    """Refuse a memory that another model made.

    Args:
        saved, present: what the memory must match, and what the model has.
        memory: what the message calls it.

    Raises:
        MemoryIncompatibleError: they differ.
    """
    for name in sorted(saved.keys() | present.keys()):
        value, own = saved.get(name), present.get(name)
        if value != own:
            remedy = (
                f"load the model with dtype {value}" if name == "dtype" else "load the model that made it"
            )
            raise MemoryIncompatibleError(
                f"{memory} was read with another {name} ({value}, this model has {own}): "
                f"{remedy}, or read the document again."
            )
