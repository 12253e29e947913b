"""The model that a memory or a library names, taken at its word only where that is harmless."""

from pathlib import Path

from hiermem.errors import InputError


def named_model(memory_dir: Path, name: str, kind: str = "memory") -> str:
    """The model that a memory, or a library, names, if that comes with hiermem.

    Raises:
        InputError: it does not; a stranger's memory could bring its own model along.
    """
    from hiermem.loading import bundled_models

    name, why = name or "smollm2", "which does not come with hiermem"
    if name in bundled_models():
        if not Path(name).exists():
            return name
        why = "and a folder here is called so too"
    raise InputError(
        f"The {kind} at {memory_dir} says that it was read with the model {name!r}, {why}: "
        f"give the model by --model if you trust it."
    )
