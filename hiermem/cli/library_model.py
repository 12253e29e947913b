"""The model of a library on the command line: the one that it names, with the library's own settings."""

from pathlib import Path
from typing import TYPE_CHECKING

from hiermem.cli import options as opt
from hiermem.cli.named_model import named_model

if TYPE_CHECKING:
    from hiermem.config import HierMemConfig
    from hiermem.library.settings import LibrarySettings
    from hiermem.model import HierMemModel


def saved_settings(lib: Path) -> "LibrarySettings | None":
    """Settings of a library; None: there is none yet."""
    from hiermem.library.catalogue import Catalogue, is_library
    from hiermem.library.settings import LibrarySettings

    if not is_library(lib):
        return None
    catalogue = Catalogue(lib)
    try:
        return LibrarySettings.read(catalogue.settings, lib)
    finally:
        catalogue.close()


def library_model(
    lib: Path,
    model: str | None,
    config: "HierMemConfig | None" = None,
    dtype: str | None = None,
    quantize: str | None = None,
    device: str | None = None,
) -> "HierMemModel":
    """The model that adds to a library and asks it.

    Args:
        model: None: the one that the library names, if that is bundled; of a new library, smollm2.
        config: of the model; None: its own.

    Raises:
        InputError: there is no such model, or the library names one that does not come with hiermem.
        MemoryIncompatibleError: the library's settings do not go with it.
    """
    saved = saved_settings(lib)
    if saved is None:
        return opt.load_model(model or "smollm2", config, dtype, device, quantize)
    chosen = model or named_model(lib, saved.model, "library")
    config = saved.configured(config or opt.configuration(chosen, None), lib)
    quantize = quantize or saved.fingerprint.get("quantization")
    return opt.load_model(chosen, config, dtype or saved.fingerprint.get("dtype"), device, quantize)
