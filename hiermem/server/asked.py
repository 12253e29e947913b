"""Questions put to a library by the one thread that owns the model."""

import time
from collections.abc import Callable
from dataclasses import replace

from hiermem.answer import Answer
from hiermem.chat import CHARACTERS, TURNS
from hiermem.library import Library
from hiermem.model import HierMemModel
from hiermem.prompts import prompt_text
from hiermem.server.failures import ApiError, Busy, as_api_error
from hiermem.server.jobs import RETRY, Finished, Job, Question, Usage
from hiermem.server.logs import log_error
from hiermem.server.metrics import Metrics
from hiermem.server.stops import StopText
from hiermem.text import encode


class Asker:
    """Answers jobs from a library.

    Args:
        seconds: from a question to the end of its answer.
        ending: whether the service is to end at once.
    """

    def __init__(
        self,
        library: Library,
        model: HierMemModel,
        metrics: Metrics,
        seconds: float,
        ending: Callable[[], bool],
    ) -> None:
        self._library, self._model, self._metrics = library, model, metrics
        self._seconds, self._ending = seconds, ending

    def run(self, jobs: list[Job]) -> None:
        """Do one job, or several that are done together; an error ends those jobs alone."""
        now = time.monotonic()
        for job in jobs:
            self._metrics.waited.observe(now - job.asked)
        late = [job for job in jobs if now - job.asked > self._seconds]
        for job in late:
            self._fail(job, Busy(RETRY, "The question waited too long: try again later."))
        jobs = [job for job in jobs if job not in late]
        try:
            if len(jobs) > 1:
                self._together(jobs, now)
            elif jobs:
                self._alone(jobs[0], now)
        except Exception as error:
            for job in jobs:
                self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        told = as_api_error(error)
        if told is not error and told.status >= 500:
            log_error("answer_failed", error)
        self._metrics.answers.labels("failed" if told.status >= 500 else "refused").inc()
        job.channel.send(told)

    def _together(self, jobs: list[Job], began: float) -> None:
        questions = [job.question for job in jobs if job.question is not None]
        first = questions[0]
        answers = self._library.ask(
            [question.text for question in questions],
            max_new_tokens=first.max_new_tokens,
            documents=first.documents,
            before=first.before_page,
        )
        self._metrics.batched.inc(len(jobs))
        for job, question, answer in zip(jobs, questions, answers, strict=True):
            text = StopText(question.stop)
            text.take(answer.text)
            self._finish(job, question, stopped(answer, text), began)

    def _alone(self, job: Job, began: float) -> None:
        if job.question is None:
            assert job.call is not None
            job.channel.send(job.call())
            return
        question, text = job.question, StopText(job.question.stop)
        chat = self._library.chat(documents=question.documents, before=question.before_page)
        chat.turns = list(question.turns)
        stream = chat.ask(question.text, max_new_tokens=question.max_new_tokens, stream=True)
        for piece in stream:
            if job.channel.cancelled:
                self._metrics.answers.labels("cancelled").inc()
                return
            if self._ending():
                raise Busy(RETRY, "The service ends: ask again when it is back.")
            if time.monotonic() - job.asked > self._seconds:
                raise Busy(RETRY, "The answer took too long: ask for fewer tokens.")
            if shown := text.take(piece):
                job.channel.send(shown)
        if rest := text.end():
            job.channel.send(rest)
        self._finish(job, question, stopped(stream.answer, text), began)

    def _finish(self, job: Job, question: Question, answer: Answer, began: float) -> None:
        usage = self._usage(question, answer)
        outcome = "not_found" if not answer.found else "found" if answer.complete else "cut_short"
        self._metrics.answers.labels(outcome).inc()
        self._metrics.tokens.labels("prompt").inc(usage.prompt)
        self._metrics.tokens.labels("completion").inc(usage.completion)
        job.channel.send(Finished(answer, usage, began - job.asked))

    def _usage(self, question: Question, answer: Answer) -> Usage:
        tokenizer = self._model.tokenizer
        if answer.sources or answer.found:
            in_order = sorted(answer.sources, key=lambda source: (source.document, source.start))
            passages = [source.text.strip() for source in in_order]
            instruction = self._model.config.asking.instruction
            shown = prompt_text(tokenizer, passages, question.text.strip(), instruction)
            prompt = len(shown.ids(tokenizer, begins=True))
        else:  # the model read nothing
            prompt = len(encode(tokenizer, question.text))
        for turn in question.turns[-TURNS:]:
            prompt += len(encode(tokenizer, turn.question[:CHARACTERS]))
        # Bytes that are no character are shown as one, which has more tokens.
        return Usage(prompt, min(len(encode(tokenizer, answer.text)), question.max_new_tokens))


def stopped(answer: Answer, text: StopText) -> Answer:
    """An answer as its stop texts leave it."""
    return replace(answer, text=text.text, complete=True) if text.stopped else answer


def refuse(job: Job, error: ApiError) -> None:
    """Tell a job that nothing comes of it."""
    job.channel.send(error)
