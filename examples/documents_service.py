"""A web service in one file: thumbnails of images, the text of PDFs.

``uvicorn documents_service:app``, then ``curl --data-binary @photo.jpg http://127.0.0.1:8000/thumbnail > small.png``

The workers import this file too, for its tools; the application's lifespan runs in the server alone.
"""

import io
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import anyio
from fastapi import Body, Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse

import snakepit_trio as sp

T = TypeVar("T")

# ---- what the workers run ----------------------------------------------------------------------------


@sp.tool(idempotent=True)
def thumbnail(data: bytes, size: int = 128) -> bytes:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.thumbnail((size, size))
        small = io.BytesIO()
        image.save(small, "PNG")
    return small.getvalue()


@sp.tool(idempotent=True)
def pdf_text(data: bytes) -> list[str]:
    from pypdf import PdfReader

    return [page.extract_text() for page in PdfReader(io.BytesIO(data)).pages]


# ---- the service -------------------------------------------------------------------------------------


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, sp.Pool]]:
    size = int(os.environ.get("WORKERS", "2"))
    async with sp.open_pool(
        "documents_service", size=size, max_queue=4 * size, queue_timeout=20.0, timeout=30.0, max_rss=1 << 30
    ) as pool:
        yield {"pool": pool}


def the_pool(request: Request) -> sp.Pool:
    return request.state.pool


Pool = Annotated[sp.Pool, Depends(the_pool)]
Data = Annotated[bytes, Body(media_type="application/octet-stream")]
app = FastAPI(lifespan=lifespan)

#: What a client is told. The last two: the file may well be fine, and so may be the same request in a second.
STATUS: dict[type[Exception], int] = {
    sp.InvalidParameter: 422,
    sp.QueueFull: 429,
    sp.QueueTimeout: 503,
    sp.RequestTimeout: 504,
    sp.WorkerCrashed: 503,
    sp.PoolClosed: 503,
}


async def answer(request: Request, error: Any) -> Response:
    status = next(code for cls, code in STATUS.items() if isinstance(error, cls))
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse({"detail": error.message, "code": error.code}, status, headers)


for kind in STATUS:
    app.add_exception_handler(kind, answer)


async def while_connected(request: Request, call: Awaitable[T]) -> T:
    """The result of a call, which is cancelled, in its worker too, when the client goes away."""
    result: list[T] = []
    error: sp.SnakepitError | None = None

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        nursery.cancel_scope.cancel()

    async with anyio.create_task_group() as nursery:
        nursery.start_soon(watch)
        try:
            result.append(await call)
        except sp.SnakepitError as exc:
            error = exc
        nursery.cancel_scope.cancel()
    if error is not None:
        raise error
    if not result:
        raise HTTPException(499, "the client has gone")
    return result[0]


@app.post("/thumbnail")
async def make_thumbnail(request: Request, pool: Pool, data: Data, size: int = 128) -> Response:
    call = pool.execute("thumbnail", {"data": data, "size": size})
    try:
        return Response(await while_connected(request, call), media_type="image/png")
    except sp.remote("PIL.UnidentifiedImageError"):
        raise HTTPException(422, "this is not an image") from None


@app.post("/text")
async def read_text(request: Request, pool: Pool, data: Data) -> list[str]:
    try:
        return await while_connected(request, pool.execute("pdf_text", {"data": data}))
    except sp.remote("pypdf.errors.PyPdfError"):
        raise HTTPException(422, "this is not a PDF") from None


@app.get("/health")
async def health(pool: Pool) -> dict[str, Any]:
    stats = pool.stats()
    if not stats.ready:
        raise HTTPException(503, "no worker is ready")
    return {
        "workers": [worker.pid for worker in pool.workers()],
        "in_flight": stats.in_flight,
        "cancelled": stats.cancelled,
        "restarts": stats.restarts,
    }
