"""The tokenizer of a GGUF file, which splits text as the model was trained to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hiermem.errors import InputError
from hiermem.gguf_file import GgufFile

if TYPE_CHECKING:
    from tokenizers import normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerBase

# Values of tokenizer.ggml.pre by what llama.cpp does for them. Those of the first two groups are not known to
# transformers, which would split as GPT-2 does.
_DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
_AS_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "a.x-4.0", "mellum", "exaone4"}
_AS_GPT2 |= {"jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "granite-docling"}
_AS_QWEN2 = {"stablelm2", "hunyuan"}
_WHOLE_WORDS = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}
_WHOLE_WORDS |= {"jina-v5-nano", "tekken"}
_COMPOSED = {"qwen2", "qwen35"}

_PROBE = "I'm HERE,it'S 12345 and\n\n1.5\t\n x½² 漢字かな Привет 🙂!!\r\n\n  def f(x):\n    return x+10  "


def tokenizer_of(file: GgufFile) -> PreTrainedTokenizerBase:
    """The tokenizer of the file, with its special tokens and chat template.

    Raises:
        InputError: how the model splits text is not said, or not known.
    """
    from transformers import PreTrainedTokenizerFast

    split = _splits(file)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(file.path.parent, gguf_file=file.path.name)
    core = tokenizer.backend_tokenizer
    if split is not None:
        core.pre_tokenizer = split
    if not file.get("tokenizer.ggml.add_space_prefix", True) and hasattr(
        core.pre_tokenizer, "prepend_scheme"
    ):
        core.pre_tokenizer.prepend_scheme = "never"  # transformers puts a space before a text nevertheless
    if (normalizer := _normalizer(file)) is not None:
        core.normalizer = normalizer
    if file.get("tokenizer.ggml.pre") in _WHOLE_WORDS and _is_byte_level(file):
        core.model.ignore_merges = True
    _add_ends(tokenizer, file)
    return tokenizer


def check_kept(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Refuse a tokenizer that transformers makes another of when it loads it from its model's folder.

    Raises:
        InputError: it splits text otherwise then.
    """
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(folder)
    if again(_PROBE).input_ids != tokenizer(_PROBE).input_ids:
        raise InputError(
            f"The model of {tokenizer.name_or_path} has a tokenizer that transformers does not keep "
            f"({type(again).__name__} splits text otherwise): give the model's own folder."
        )


def check_splits(file: GgufFile) -> None:
    """Refuse a file whose model splits text in a way that is not known.

    Raises:
        InputError: so it is, or the file does not say.
    """
    _splits(file)


def _is_byte_level(file: GgufFile) -> bool:
    """Whether the vocabulary is one that a pre-tokenizer belongs to."""
    return bool(file.get("tokenizer.ggml.model") == "gpt2")


def _splits(file: GgufFile) -> pre_tokenizers.PreTokenizer | None:
    """How text is split before merges; None: as transformers does it. Raises like `check_splits`."""
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as KNOWN

    if not _is_byte_level(file):
        return None
    name = file.get("tokenizer.ggml.pre")
    as_gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in _DIGITS_APART:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), as_gpt2])
    if name in _AS_GPT2:
        return as_gpt2
    if name in _AS_QWEN2:
        return _by_expression(KNOWN["qwen2"])
    if name in KNOWN:
        return None
    said = "does not say" if name is None else f"calls {name!r}, which is unknown here,"
    raise InputError(
        f"The GGUF file {file.path} {said} how its model splits text into words, so its tokens would be "
        f"others than those it was trained on: give a newer file, or the model's own folder."
    )


def _by_expression(expression: str) -> pre_tokenizers.PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(expression), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _normalizer(file: GgufFile) -> normalizers.Normalizer | None:
    """The first step of a model's own tokenizer, where GGUF files do not say it."""
    from tokenizers import normalizers

    composed = file.get("tokenizer.ggml.pre") in _COMPOSED and _is_byte_level(file)
    return normalizers.NFC() if composed else None


def _add_ends(tokenizer: PreTrainedTokenizerBase, file: GgufFile) -> None:
    """Let the tokenizer put the tokens before and after a text that llama.cpp puts there."""
    from tokenizers import processors

    kind, pre = file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre")
    usual = kind == "llama" or (_is_byte_level(file) and pre in _WHOLE_WORDS)
    # The templates of Gemma 4 begin with the token themselves, and its own tokenizer adds none.
    begins = kind != "gemma4" and file.get("tokenizer.ggml.add_bos_token", usual)
    first = tokenizer.bos_token if begins else None
    last = tokenizer.eos_token if file.get("tokenizer.ggml.add_eos_token", False) else None
    ends = [token for token in (first, last) if token is not None]
    core = tokenizer.backend_tokenizer
    if core.encode("").tokens == ends:
        return
    single = " ".join([*([first] if first else []), "$A", *([last] if last else [])])
    core.post_processor = (
        processors.TemplateProcessing(
            single=single,
            pair=f"{single} {single.replace('$A', '$B')}",
            special_tokens=[(token, core.token_to_id(token)) for token in set(ends)],
        )
        if ends
        else processors.ByteLevel(trim_offsets=False)
    )
