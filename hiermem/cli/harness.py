"""hiermem as a model of lm-evaluation-harness (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness).

The harness finds models in its own table only: `hiermem lm-eval` adds this one and then is `lm_eval`.
Contexts of any length go through the working memory; a context that several answers follow is read once.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from tqdm.auto import tqdm

from hiermem.asking import PreparedPrompt
from hiermem.cli import options as opt
from hiermem.cli.written import WrittenPrompts
from hiermem.errors import InputError
from hiermem.eval.scoring import prefill, score_tokens, stream_nll
from hiermem.eviction_weights import NONE
from hiermem.templates import frames
from hiermem.text import encode, from_beginning


@register_model("hiermem")
class HarnessModel(TemplateLM):
    """A backbone with its working memory.

    Args:
        pretrained: hub id or folder of a model, or smollm2.
        preset: as on hiermem's own command line, like those below.
        policy: what the working memory keeps.
        policy_set: settings of the policy, NAME=VALUE with semicolons between.
        budget: live tokens per KV head after each eviction.
        segment: tokens of one long-term record.
        chunk: tokens read at once.
        positions: of old tokens.
        evictor: head shares and what policies score with, the default of the command line where it is empty;
            none comes as None from the harness.
        dtype: to compute in.
        device: from the harness.
        batch_size: from the harness, without effect: contexts are read one by one.
        max_batch_size: as batch_size.
        max_gen_toks: tokens that are generated where a task sets no limit.

    Raises:
        InputError: no such model or setting.
    """

    def __init__(
        self,
        pretrained: str = "smollm2",
        preset: str | None = None,
        policy: str | None = None,
        policy_set: str = "",
        budget: int | None = None,
        segment: int | None = None,
        chunk: int | None = None,
        positions: str | None = None,
        evictor: str | None = "",
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_gen_toks: int = 256,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise InputError(
                f"hiermem has no setting {', '.join(unknown)}: --model_args takes pretrained, preset, "
                f"policy, policy_set, budget, segment, chunk, positions, evictor, dtype and max_gen_toks."
            )
        numbers = {"budget": budget, "segment": segment, "chunk": chunk, "max_gen_toks": max_gen_toks}
        for name, number in numbers.items():
            if number is not None and (not isinstance(number, int) or number < 1):
                raise InputError(f"{name} in --model_args must be a whole number above 0, not {number!r}.")
        assignments = [setting for setting in str(policy_set).split(";") if setting]
        config = opt.configuration(
            pretrained,
            preset,
            policy,
            budget,
            segment,
            chunk,
            positions,
            evictor=NONE if evictor is None else evictor or None,
            policy_set=assignments,
        )
        usable = torch.cuda.is_available() or not str(device).startswith("cuda")  # its default is cuda:0
        self.model = opt.load_model(pretrained, config, dtype, device if usable else None)
        self.tokenizer = self.model.tokenizer
        self.max_gen_toks = max_gen_toks
        self._device = self.model.device
        self._written = WrittenPrompts()

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        pieces = frames(self.tokenizer, [message["role"] for message in chat_history])
        if not add_generation_prompt:  # the last message goes on
            pieces[-1] = ""
        text, template = pieces[0], [range(len(pieces[0]))]
        for message, piece in zip(chat_history, pieces[1:], strict=True):
            text += message["content"]
            template.append(range(len(text), len(text) + len(piece)))
            text += piece
        self._written.add(text, template)
        return text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Only what a chat template wrote at the beginning of ``string`` may be control tokens."""
        return encode(self.tokenizer, string, template=self._written.template_of(string))

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        followed: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, (_strings, begun, _answer) in enumerate(requests):
            followed[tuple(begun)].append(index)
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with tqdm(total=len(requests), desc="log-likelihood", disable=disable_tqdm) as bar:
            for context, indices in followed.items():
                prompt = prefill(self.model.reader, self._prompt(list(context)))
                for index in indices:
                    strings, _begun, answer = requests[index]
                    score = score_tokens(self.model.reader, prompt.fork(), torch.tensor(answer))
                    results[index] = (-float(score.nll.sum()), score.exact)
                    self.cache_hook.add_partial("loglikelihood", strings, results[index])
                    bar.update()
        return results

    @torch.inference_mode()
    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts: read as a stream, never cut."""
        results = []
        for request in tqdm(requests, desc="rolling log-likelihood", disable=disable_tqdm):
            (text,) = request.args
            ids = torch.tensor([self.prefix_token_id, *self.tok_encode(text)])
            memory = self.model.new_recurrent_memory()
            results.append(-sum(float(block.sum()) for block in stream_nll(self.model.reader, memory, ids)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), results[-1])
        return results

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to the first stop string, which is left out; greedy unless a task samples."""
        results = []
        for request in tqdm(requests, desc="generation", disable=disable_tqdm):
            context, settings = request.args
            results.append(self._generate(context, dict(settings)))
            self.cache_hook.add_partial("generate_until", request.args, results[-1])
        return results

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        settings = normalize_gen_kwargs(settings, self.max_gen_toks)
        until = [stop for stop in settings.pop("until") if stop]
        if not settings["do_sample"]:
            settings.pop("temperature", None)
        ids = self._prompt(self.tok_encode(context) or [self.prefix_token_id]).ids
        output = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=settings.pop("max_gen_toks"),
            stop_strings=until or None,
            tokenizer=self.tokenizer,
            **settings,
        )
        text = str(self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
        return text[: min((text.index(stop) for stop in until if stop in text), default=len(text))]

    def _prompt(self, ids: list[int]) -> PreparedPrompt:
        memory = self.model.new_recurrent_memory()
        whole = torch.tensor([from_beginning(self.tokenizer, ids)])
        return PreparedPrompt(memory, whole.to(self.model.device), [])
