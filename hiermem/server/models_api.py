"""`/v1/models` and `/v1/embeddings`."""

import base64
from functools import cache
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from hiermem.retrieval.encoder import MINILM, has_minilm, minilm_path, sentence_encoder
from hiermem.server.bodies import json_body
from hiermem.server.failures import ApiError, json_response, missing, wrong
from hiermem.server.jobs import Job
from hiermem.server.requests import MODEL, EmbeddingsRequest
from hiermem.server.service import Service
from hiermem.server.shapes import listed
from hiermem.server.streams import result


def models_routes(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()

    def models() -> list[dict[str, Any]]:
        entries = service.entries()
        found = {MODEL: max((entry.added for entry in entries), default=0.0)}
        found |= {f"{MODEL}/{entry.name}": entry.added for entry in entries}
        if has_minilm():
            found[MINILM] = 0.0
        return [
            {"id": name, "object": "model", "created": int(created), "owned_by": "hiermem"}
            for name, created in found.items()
        ]

    @router.get("/v1/models")
    def list_all() -> Response:
        return json_response(listed(models()))

    @router.get("/v1/models/{model:path}")
    def retrieve(model: str) -> Response:
        for each in models():
            if each["id"] == model:
                return json_response(each)
        raise missing("There is no such model.", "model_not_found", "model")

    @router.post("/v1/embeddings")
    async def embed(request: Request) -> Response:
        asked = EmbeddingsRequest.parse(await json_body(request))
        if not has_minilm():
            raise ApiError(
                501,
                "Embeddings need sentence-transformers: install hiermem with the extra dense.",
                "no_encoder",
            )
        if asked.model != MINILM:
            raise missing(
                f"There is no such model: the one for embeddings is {MINILM}.", "model_not_found", "model"
            )
        service.check_open()
        job = Job(request.state.client, call=lambda: _embedded(asked.input))
        service.worker.submit(job)
        rows, tokens = await result(job, request)
        if asked.dimensions not in (None, rows.shape[1]):
            raise wrong(f"Embeddings have {rows.shape[1]} dimensions here.", "dimensions")
        request.state.tokens = {"prompt": tokens}
        data = [
            {"object": "embedding", "index": index, "embedding": _encoded(row, asked.encoding_format)}
            for index, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json_response({"object": "list", "data": data, "model": MINILM, "usage": usage})

    return router


def _embedded(texts: list[str]) -> tuple[Any, int]:
    rows = sentence_encoder(MINILM, "cpu").embed(texts).numpy()
    return rows, sum(map(len, _tokenizer()(texts)["input_ids"]))


@cache
def _tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(minilm_path()))


def _encoded(row: Any, encoding: str) -> Any:
    numbers = np.asarray(row, "<f4")
    return base64.b64encode(numbers.tobytes()).decode() if encoding == "base64" else numbers.tolist()
