"""Named recipes of evolution and of gradient training: functions that return a whole configuration."""

from collections.abc import Callable
from dataclasses import replace

from hiermem.config import HierMemConfig
from hiermem.lora import LoraConfig
from hiermem.memory.hmt.module import SummaryConfig
from hiermem.memory.policies import NammConfig
from hiermem.memory.policies.spectrogram import SpectrogramConfig
from hiermem.training.calibration import CalibrationConfig
from hiermem.training.cma_es import StageConfig
from hiermem.training.config import EvolveConfig, TrainConfig
from hiermem.training.distillation import ReplacementConfig
from hiermem.training.facts import KINDS
from hiermem.training.head_selection import ChoiceConfig
from hiermem.training.objective import ObjectiveConfig
from hiermem.training.optimizer import OptimizerConfig
from hiermem.training.retrieval_pairs import PairConfig
from hiermem.training.samples import SampleConfig
from hiermem.training.sentences import SentenceConfig
from hiermem.training.stored_passages import PassageConfig


def small() -> EvolveConfig:
    """The evolution that `smollm2` ships with: head shares, and a weighted sum of spectrogram and age."""
    namm = NammConfig(SpectrogramConfig(hop=256, decay=0.997), hidden=0, threshold=None)
    return EvolveConfig(
        stages=(StageConfig("all", ("needles", "continuation", "abstracts"), prompts=2, generations=60),),
        namm=namm,
        pool=10,
    )


def published_network() -> EvolveConfig:
    """The published network and sizes (NAMM, arXiv 2410.13166), evolved our way; for a GPU and days.

    Of the published evolution it has the network of 4,172 parameters, three stages, population, prompts and
    sigma. Ours are: head shares that evolve along, a budget of an eighth to a half and one decision after a
    text in place of a threshold every 512 tokens, sinks and recent tokens that stay, a start at averaged
    attention in place of 0, likelihoods in place of scores of tasks, and no stretched positions.
    """
    first = StageConfig("first", ("needles",), prompts=64, generations=200, population=32, sigma=0.065)
    second = replace(first, name="second", tasks=("needles", "abstracts"))
    third = replace(first, name="third", tasks=("needles", "abstracts", "continuation"))
    return EvolveConfig(stages=(first, second, third), pool=256)


def smoke() -> EvolveConfig:
    """A few generations on a short text, to see that everything works: about two minutes on two cores."""
    namm = NammConfig(SpectrogramConfig(hop=256, decay=0.997), hidden=0, threshold=None)
    return EvolveConfig(
        stages=(StageConfig("smoke", ("needles",), prompts=2, generations=3, population=4),),
        namm=namm,
        calibration=CalibrationConfig(tokens=512, texts=1),
        length=500,
        pool=2,
    )


EVOLUTIONS: dict[str, Callable[[], EvolveConfig]] = {
    "small": small,
    "published-network": published_network,
    "smoke": smoke,
}


MEMORY = SummaryConfig(
    tokens=8, sensory=32, width=192, query="half", init_text="\nAbout the text.\nKeywords:"
)
"""A residual memory as it is trained for `smollm2`."""

CARRIED_MEMORY = replace(MEMORY, sensory=0, query="previous")
"""The same where keys and values are carried on, too."""


def hmt_first() -> TrainConfig:
    """After HMT's first stage (arXiv 2405.06067, section 4): two segments, no recall beyond the one before.

    Ours, beside the public code: 1,024 tokens of the document a segment (there 990), the loss of all segments
    (there the last), AdamW at our rates with a cosine, a batch of 8, adapters without dropout.
    """
    summary = replace(HierMemConfig.preset("hmt").summary, last=1)
    return TrainConfig(
        preset="hmt",
        summary=summary,
        lora=LoraConfig(rank=8),
        samples=SampleConfig(tokens=2048),
        objective=ObjectiveConfig(depth=1, recompute=True),
        optimizer=OptimizerConfig(batch=8, micro=1),
        steps=200,
    )


def hmt_second() -> TrainConfig:
    """After HMT's second stage: recall over the last 300 segments (the public code: 100), gradients through
    as many as memory allows; else as `hmt_first`."""
    first = hmt_first()
    return replace(
        first,
        summary=None,
        samples=SampleConfig(tokens=8192),
        objective=ObjectiveConfig(depth=7, recompute=True),
        optimizer=OptimizerConfig(batch=16, micro=1),
        steps=500,
    )


def isolated() -> TrainConfig:
    """The prompt that segments of 512 tokens are read with, over no cache.

    With 32 sensory tokens and what is recalled, it is all that a segment knows of those before.
    """
    return TrainConfig(
        preset="hmt",
        segment=512,
        summary=MEMORY,
        samples=SampleConfig(tokens=2048),
        objective=ObjectiveConfig(depth=0),
        optimizer=OptimizerConfig(memory_rate=2e-3, batch=1, micro=1),
        steps=100,
        fitted=30,
        evaluated=8,
        evaluate_every=20,
        save_every=5,
    )


def recall() -> TrainConfig:
    """Recall fitted to the memory embeddings that a trained prompt makes: goes on from `isolated`.

    Gradient steps with the prompt held fixed made it worse (docs/lab-notes/hmt.md).
    """
    return replace(isolated(), trains=("recall",), fitted=60, steps=0)


def carried() -> TrainConfig:
    """The memory around segments whose keys and values are carried on: goes on from `isolated`, or begins."""
    return replace(
        isolated(),
        preset="full",
        summary=CARRIED_MEMORY,
        optimizer=OptimizerConfig(memory_rate=1e-3, batch=1, micro=1),
        steps=60,
    )


def carried_alone() -> TrainConfig:
    """`carried` with nothing recalled: a learned prompt before every segment, and no more.

    Trained as long on the same samples, it tells what recall brings from the style that a prompt learns.
    """
    return replace(carried(), summary=replace(CARRIED_MEMORY, last=0), trains=("prompt",), fitted=0)


def questions() -> TrainConfig:
    """Adapters that answer PubMedQA's questions from an abstract, with a decision or at length."""
    return TrainConfig(
        lora=LoraConfig(rank=8),
        samples=SampleConfig(books=0.0, questions=1.0, tokens=640),
        objective=ObjectiveConfig(whole=True),
        optimizer=OptimizerConfig(lora_rate=4e-4, batch=4, micro=4),
        trains=("lora",),
        steps=200,
        evaluated=64,
        evaluate_every=20,
    )


def smoke_training() -> TrainConfig:
    """A few steps on short pieces, to see that everything works: under two minutes on two cores."""
    return TrainConfig(
        summary=SummaryConfig(tokens=4),
        lora=LoraConfig(rank=4),
        samples=SampleConfig(books=0.5, questions=0.5, tokens=1024, held_out=1),
        optimizer=OptimizerConfig(batch=2, micro=1),
        steps=3,
        warmup=2,
        evaluated=1,
        evaluate_every=3,
        save_every=2,
    )


def search_key() -> TrainConfig:
    """The trained part of the search key, last of all: nothing else depends on it."""
    return TrainConfig(
        summary=SummaryConfig(tokens=3, search=256),
        pairs=PairConfig(),
        trains=("search",),
        optimizer=OptimizerConfig(memory_rate=1e-3, batch=16, micro=16),
        steps=200,
        evaluated=100,
        evaluate_every=25,
    )


def kv_prompt() -> TrainConfig:
    """The prompt in front of recalled keys and values, as it ships for `smollm2`: from Natural Questions' and
    XQuAD's validation questions."""
    return TrainConfig(
        passages=PassageConfig(),
        trains=("kv",),
        optimizer=OptimizerConfig(memory_rate=3e-3, batch=8, micro=4),
        steps=120,
        evaluated=96,
        evaluate_every=40,
        save_every=10,
    )


def states() -> TrainConfig:
    """The encoder of the backbone's states, for the search key `states`, taught by MiniLM."""
    return TrainConfig(
        sentences=SentenceConfig(),
        trains=("states",),
        optimizer=OptimizerConfig(memory_rate=1e-3, weight_decay=1e-2, batch=1, micro=1),
        steps=1000,
        warmup=50,
        floor=0.02,
        evaluated=8,
        evaluate_every=100,
        save_every=50,
    )


def heads() -> TrainConfig:
    """Mamba heads in the place of a third of the KV groups, each trained to imitate what it replaces."""
    return TrainConfig(
        samples=SampleConfig(books=0.75, facts=0.25, tokens=2048),
        replacement=ReplacementConfig(),
        trains=("mamba",),
        optimizer=OptimizerConfig(memory_rate=1e-2, batch=1, micro=1),
        steps=200,
        evaluated=3,
        evaluate_every=50,
    )


def heads_together() -> TrainConfig:
    """The same heads in their places, trained by the backbone's predictions: goes on from `heads`."""
    return replace(
        heads(),
        replacement=None,
        objective=ObjectiveConfig(language=0.0, teacher=1.0, depth=3, whole=True),
        optimizer=OptimizerConfig(memory_rate=1e-3, batch=1, micro=1),
        steps=100,
        evaluate_every=25,
        save_every=10,
    )


def heads_chosen() -> TrainConfig:
    """Of the heads that `heads` trained, the third of all that changes predictions least; trains nothing."""
    return replace(heads_together(), choice=ChoiceConfig(), steps=0)


def heads_language() -> TrainConfig:
    """The same heads, trained by language modelling: goes on from `heads-logits`."""
    together = heads_together()
    return replace(together, objective=replace(together.objective, language=1.0, teacher=0.0))


def memory() -> TrainConfig:
    """Memory prompt by language modelling, around what the policy keeps: goes on from a model that has memory
    embeddings, with all of its settings. Recall stays as it was fitted: steps of so few samples made it worse
    (docs/lab-notes/tiers.md).

    Abstracts beside books keep it from taking every text for a novel, facts of all kinds and PubMedQA's
    questions from buying perplexity with what it knows.
    """
    return TrainConfig(
        samples=SampleConfig(books=0.45, questions=0.1, facts=0.25, abstracts=0.2, kinds=KINDS, tokens=2048),
        objective=ObjectiveConfig(depth=1),
        goes_on=True,
        trains=("prompt",),
        optimizer=OptimizerConfig(memory_rate=1e-3, batch=1, micro=1),
        steps=60,
        evaluate_every=30,
        save_every=10,
    )


def together() -> TrainConfig:
    """Memory prompt and Mamba heads, each around the other and around what the policy keeps: goes on from a
    model that has both, with all of its settings."""
    around = memory()
    samples = replace(around.samples, books=0.65, abstracts=0.0)
    return replace(around, samples=samples, trains=("prompt", "mamba"), steps=150, evaluate_every=50)


TRAININGS: dict[str, Callable[[], TrainConfig]] = {
    "hmt-1": hmt_first,
    "hmt-2": hmt_second,
    "isolated": isolated,
    "recall": recall,
    "carried": carried,
    "carried-alone": carried_alone,
    "questions": questions,
    "heads": heads,
    "heads-chosen": heads_chosen,
    "heads-logits": heads_together,
    "heads-language": heads_language,
    "memory": memory,
    "together": together,
    "key": search_key,
    "kv": kv_prompt,
    "states": states,
    "smoke": smoke_training,
}
