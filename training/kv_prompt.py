"""Training of the prompt in front of recalled keys and values: it answers as the backbone does from the text.

The student reads only what follows the passages, over their stored keys and values; the teacher reads all of
it as text. What is minimised is the divergence of the student's predictions from the teacher's at every
token of the teacher's answer (context distillation).

Dimension names: B samples, N tokens behind the passages, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from hiermem.errors import InputError
from hiermem.memory.kv.prompt import KVPrompt, KVPromptConfig
from hiermem.memory.kv.recall import recalled
from hiermem.memory.kv.rows import side_by_side
from hiermem.memory.kv.store import banks_of
from hiermem.memory.working import WorkingMemory
from hiermem.model import HierMemModel
from hiermem.prompts import around_passages
from hiermem.reader import Reader
from hiermem.recalling import holding_all, read_lead
from hiermem.training.objective import Losses, TrainingObjective
from hiermem.training.stored_passages import StoredPassages


def add_kv_prompt(model: HierMemModel) -> None:
    """Give a model a prompt of keys and values that is the beginning of its prompts, as it reads it.

    Raises:
        InputError: prompts begin with nothing, or the backbone cannot have such a prompt.
    """
    before, _ = around_passages(model.tokenizer, [], "", model.config.asking.instruction)
    reader = model.reader
    ids = reader.encode(before)
    if not ids.shape[1]:
        raise InputError(
            "Prompts for this tokenizer begin with nothing: give it a chat template or a token that texts "
            "begin with."
        )
    prompt = KVPrompt(ids.shape[1], model.adapter.geometries).to(model.device)
    with model.inference():
        lead = read_lead(reader, ids, model.config.working)
        prompt.start(lead.tokens, banks_of(reader.new_working_memory(model.config.working).cache))
    model.kv_prompt, model.config.kv_prompt = prompt, KVPromptConfig(prompt.num_tokens)


class KVPromptObjective(TrainingObjective):
    """A model and the divergence of its answers from stored passages from those that it gives to text."""

    def forward(self, batch: StoredPassages) -> Losses:
        """Mean divergence in nats of a token; `Losses.nll` is ``[B, 1]``, of each sample."""
        model = self.model
        reader = replace(model.reader, chunk=model.adapter.trained_range)  # one call, whatever the lengths
        config = replace(holding_all(model.config.working), update_interval=model.adapter.trained_range)
        answers = [passage.answer for passage in batch.passages]
        with torch.no_grad():
            texts = [passage.text for passage in batch.passages]
            taught = _predictions(reader, reader.new_working_memory(config, len(texts)), texts, answers)
        assert model.kv_prompt is not None
        empty, dtype = reader.new_working_memory(config), model.adapter.model.dtype
        memory = side_by_side(
            [
                recalled(
                    each.tier, each.chosen, empty, dtype, reader.device, model.kv_prompt.lead(each.tier.banks)
                ).working
                for each in batch.passages
            ]
        )
        learned = _predictions(reader, memory, [passage.tail for passage in batch.passages], answers)
        pairs = zip(learned, taught, strict=True)
        divergence = torch.stack(
            [F.kl_div(mine, its, reduction="batchmean", log_target=True) for mine, its in pairs]
        )
        mean = divergence.mean()
        return Losses(mean, mean.detach(), divergence.detach()[:, None], torch.zeros_like(mean.detach()))


def _predictions(
    reader: Reader, memory: WorkingMemory, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> list[Tensor]:
    """Log-probabilities of every token of each answer and of what follows it, ``[tokens + 1, V]`` float32."""
    rows = [torch.tensor([*prompt, *answer]) for prompt, answer in zip(prompts, answers, strict=True)]
    lengths, ids = [len(row) for row in rows], pad_sequence(rows, batch_first=True).to(reader.device)
    first = min(map(len, prompts)) - 1
    columns = range(first, ids.shape[1])
    ((_, logits),) = reader.stream(memory, ids, lengths=lengths, logits=columns)
    spans = (
        slice(len(prompt) - 1 - first, length - first)
        for prompt, length in zip(prompts, lengths, strict=True)
    )
    return [logits[row, span].float().log_softmax(-1) for row, span in enumerate(spans)]
