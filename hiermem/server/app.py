"""The app: all routes of the service, behind its door."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.requests import Request
from starlette.responses import Response

from hiermem.model import HierMemModel
from hiermem.server.chat_api import chat_routes
from hiermem.server.failures import add_handlers, wrong
from hiermem.server.files_api import files_routes
from hiermem.server.guard import Guard
from hiermem.server.models_api import models_routes
from hiermem.server.observing import Observer
from hiermem.server.page_api import page_routes
from hiermem.server.responses_api import responses_routes
from hiermem.server.service import Service
from hiermem.server.settings import ServerSettings


def create_app(
    load: Callable[[], HierMemModel],
    path: Path,
    settings: ServerSettings,
    index: bool | None = None,
    on_failure: Callable[[BaseException], None] = lambda _: None,
) -> FastAPI:
    """A library as a web app. It listens at once; the model is loaded in a thread of its own.

    Args:
        load: makes the model.
        path: of the library; made where there is none.
        index: of a new library; see `Library.open`.
        on_failure: called where the model or the library cannot be loaded.
    """
    service = Service(load, path, settings, index, on_failure)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan, redirect_slashes=False)
    for routes in (chat_routes, responses_routes, files_routes, models_routes, page_routes):
        app.include_router(routes(service))
    add_handlers(app)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(Observer, metrics=service.metrics)
    return app


async def _malformed(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    where = ".".join(str(part)[:60] for part in error.errors()[0]["loc"])
    return wrong(f"{where!r} cannot be used.", where).response()
