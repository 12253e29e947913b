"""The start of a gradient training: the model of a recipe, its objective and its data."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hiermem.config import HierMemConfig
from hiermem.errors import InputError
from hiermem.eval.result_log import check_apart
from hiermem.loading import saved_model
from hiermem.lora import add_lora, has_lora
from hiermem.model import HierMemModel
from hiermem.retrieval.encoder import check_encoder, sentence_encoder
from hiermem.saving import check_target
from hiermem.training.checkpoints import damaged, newest
from hiermem.training.config import TrainConfig
from hiermem.training.distillation import HeadObjective, replace_recent
from hiermem.training.distributed import rank
from hiermem.training.fit_recall import fit_recall
from hiermem.training.head_selection import keep_best_heads
from hiermem.training.kv_prompt import KVPromptObjective, add_kv_prompt
from hiermem.training.objective import LanguageObjective, TrainingObjective
from hiermem.training.parameters import freeze_all_but
from hiermem.training.retrieval_pairs import RetrievalPairs
from hiermem.training.samples import TrainingDataset, books, check_samples, questions
from hiermem.training.search_key import RecallObjective
from hiermem.training.sentences import SentenceDataset
from hiermem.training.state_encoder import StateObjective, add_state_encoder, begin_encoder
from hiermem.training.stored_passages import PassageDataset, present

CHECKPOINT = "step"
"""Checkpoints of a training are folders of this name and a number."""

FITTED = "fitted.safetensors"
"""File in a training's folder with the parameters as they were fitted before the first step."""

Dataset = TrainingDataset | RetrievalPairs | PassageDataset | SentenceDataset
"""Data that give batches by the numbers of their samples."""


@dataclass(frozen=True)
class Run:
    """Where a training reads and writes.

    Attributes:
        model: a backbone, or a folder of an earlier training that this one goes on from.
        data: folder that holds `pg19`, `pubmedqa`, `nq` or `xquad`, as the recipe needs.
        output: folder of checkpoints, logs and, at the end, the trained model.
        deepspeed: DeepSpeed's configuration; None trains in this process alone.
        dtype: dtype of the backbone; None: its own.
        device: device of the backbone; None: a GPU if there is one.
    """

    model: str
    data: Path
    output: Path
    deepspeed: Path | None = None
    dtype: str | None = None
    device: str | None = None


def check_folders(config: TrainConfig, run: Run) -> None:
    """Refuse folders that lack training data, or are not to be written to, before anything is loaded.

    Raises:
        InputError: so it is.
    """
    check_apart(run.output, "--out", run.model, run.data)
    check_target(run.output)
    if config.sentences is not None:
        check_encoder(config.sentences.encoder)
        books(run.data, "train", 1)
    elif config.passages is not None:
        present(run.data)
    elif config.pairs is not None:
        questions(run.data, config.pairs.held_out)
    else:
        check_samples(run.data, config.samples)


def prepared_model(config: TrainConfig, run: Run) -> HierMemModel:
    """The model of a recipe, of which only the parts that are trained require gradients.

    Raises:
        InputError: the recipe cannot go on from this model.
    """
    model = HierMemModel.from_pretrained(
        run.model, config=_model_settings(config, run.model), dtype=run.dtype, device=run.device
    )
    if config.adds_memory:
        assert config.summary is not None
        torch.manual_seed(config.samples.seed)  # what is not begun by words is noise
        model.add_summary(config.summary)
    if config.lora.rank and not has_lora(model.backbone):
        torch.manual_seed(config.samples.seed)
        add_lora(model.backbone, config.lora)
    if config.replacement is not None or config.choice is not None:
        samples = TrainingDataset(model.tokenizer, run.data, config.samples)
        if config.replacement is not None:
            replace_recent(model, samples, config.replacement)
        if config.choice is not None:
            keep_best_heads(model, samples, config.choice)
    if config.passages is not None and model.kv_prompt is None:
        add_kv_prompt(model)
    if config.sentences is not None:  # it is begun anew, whatever there is
        add_state_encoder(model, sentence_encoder(config.sentences.encoder, "cpu").width)
    freeze_all_but(model, config.trained_parts)
    return model.eval()


def objective_and_data(
    config: TrainConfig, run: Run, model: HierMemModel
) -> tuple[TrainingObjective, Dataset, Dataset]:
    """The model with its loss, the training data, and the data that are held out.

    Raises:
        InputError: data are missing or too short, or what was fitted is damaged.
    """
    tokenizer, data = model.tokenizer, run.data
    if config.pairs is not None:
        pairs = RetrievalPairs(tokenizer, data, config.pairs, model.config.longterm)
        return RecallObjective(model, pairs), pairs, pairs.of_held_out()
    if config.passages is not None:
        passages = PassageDataset(model, data, config.passages, run.output)
        return KVPromptObjective(model), passages, passages.of_held_out()
    if config.sentences is not None:
        sentences = SentenceDataset(model, data, config.sentences, run.output)
        _begin(model, run.output, partial(begin_encoder, model, sentences))
        return StateObjective(model), sentences, sentences.of_held_out()
    samples = TrainingDataset(tokenizer, data, config.samples)
    if config.fitted and (
        config.adds_memory or saved_model(run.model) is None or "prompt" not in config.trains
    ):
        _begin(model, run.output, partial(fit_recall, model, samples, config.fitted))
    held_out = TrainingDataset(tokenizer, data, config.held_out, split="validation")
    objective = HeadObjective(model) if config.replacement else LanguageObjective(model, config.objective)
    return objective, samples, held_out


def _begin(model: HierMemModel, folder: Path, fit: Callable[[], None]) -> None:
    """Fit parameters before the first step; a training that goes on takes what it began with."""
    path = folder / FITTED
    if newest(folder, CHECKPOINT)[0] is not None:
        try:
            model.load_memory_parameters(load_file(path))
        except (OSError, SafetensorError) as error:
            raise damaged(path, error) from error
        return
    fit()
    if rank() == 0:
        temporary = path.with_suffix(".tmp")
        save_file(model.memory_parameters(), temporary)
        temporary.replace(path)


def _model_settings(config: TrainConfig, name: str) -> HierMemConfig:
    """The configuration to load a model with: the recipe's, or that of an earlier training.

    Raises:
        InputError: the recipe cannot go on from this model.
    """
    folder = saved_model(name)
    saved = None if folder is None else HierMemConfig.from_saved(folder)
    if "mamba" in config.trains and config.replacement is None and not (saved and saved.mamba.groups):
        raise InputError(f"{name} has no Mamba heads: give --model what the recipe heads made.")
    if saved is None:
        if config.goes_on:
            raise InputError(f"{name} is no saved model, which the recipe goes on from: give --model one.")
        return config.model()
    if config.replacement is not None and saved.mamba.groups:
        raise InputError(
            f"{name} has Mamba heads already: go on with heads-logits, or begin with a model without."
        )
    if not config.keeps_settings:
        return config.model()
    if config.adds_memory:
        if saved.summary.tokens:
            raise InputError(f"{name} has memory embeddings already: begin with a model without.")
        return saved
    if config.fitted and not (saved.summary.tokens and saved.summary.residual):
        raise InputError(f"Recall is fitted of a residual memory, which {name} does not have.")
    if "recall" in config.trains and saved.summary.tokens and not saved.summary.last:
        raise InputError(
            f"The recipe changes recall, and segments of {name} recall nothing: give --model another."
        )
    if config.pairs is None:
        return saved
    if saved.summary.query == "half":
        raise InputError(
            f"The recipe trains the summary prompt, by which segments of {name} recall: it needs a model "
            f"whose query is previous."
        )
    summary = replace(saved.summary, search=config.model().summary.search)
    return HierMemConfig(**{**saved.settings(), "summary": summary})
