"""Decoding by llama.cpp of the same GGUF file, where llama-cpp-python is installed."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hiermem.eval.decoding_speed import Decode, System

ROOM = 8
"""Tokens of its context beyond those that are read and decoded."""


def available() -> bool:
    """Whether llama-cpp-python is installed."""
    return find_spec("llama_cpp") is not None


def llama_cpp(file: Path, tokens: int) -> System:
    """The weights of a GGUF file as they are there, on the processor, with full attention.

    Args:
        tokens: most that are decoded.
    """
    from llama_cpp import Llama

    def system(ids: Tensor) -> Callable[[], Decode]:
        prompt, threads = ids[0].tolist(), torch.get_num_threads()
        room = len(prompt) + tokens + ROOM
        model: Any = Llama(str(file), n_ctx=room, n_threads=threads, n_threads_batch=threads, verbose=False)
        model.eval(prompt[:-1])

        def decode(count: int) -> list[int]:
            model.n_tokens, found = len(prompt) - 1, prompt[-1:]  # what it read after that is forgotten
            for _ in range(count):
                model.eval(found[-1:])
                found.append(int(model.sample(temp=0.0)))
            return found[1:]

        return lambda: decode

    return system
