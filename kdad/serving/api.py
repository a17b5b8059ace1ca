"""HTTP interface of loaded students: prediction, health, metrics, and an OpenAPI description."""

import asyncio
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import python_multipart  # noqa: F401 - what forms are read with, missed at the start and not at the first form
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from torch import Tensor

from kdad.data.decoding import TooManyPixels, read_image
from kdad.data.images import DECODERS
from kdad.detection.detector import Detector, Prediction
from kdad.detection.rendering import overlay
from kdad.errors import UserError, WorkFailed
from kdad.serving.batching import Batcher

BINARY = {"type": "string", "format": "binary"}
FORM = "multipart/form-data"
IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": BINARY},
            FORM: {"schema": {"type": "object", "properties": {"file": BINARY}}},
        },
    }
}
FORM_BYTES = 10_000  # that a form may add to its file: boundaries, headers, short fields
JSON_STARTS = (b"{", b"[", b'"')  # as no image does
SEND_A_FILE = f"send the image file itself as the body, or as a file of {FORM}"
REFUSALS = {
    400: "the body is not one readable image, or the false-positive rate is too low for the calibration",
    404: "no such student",
    408: "the body did not arrive in time",
    413: "too many bytes or pixels",
    422: "a query parameter has no valid value",
    503: "too many concurrent requests; try again",
}
RESPONSES: dict[int | str, dict[str, Any]] = {status: {"description": text} for status, text in REFUSALS.items()}
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Limits:
    """Limits per request, and the number of concurrent requests; further ones get status 503."""

    max_bytes: int = 20_000_000
    max_pixels: int = 25_000_000
    at_once: int = 64
    seconds_to_send: float = 30.0


class PredictionResponse(BaseModel):
    """A student's prediction for one image."""

    student: str
    score: float
    p_value: float | None  # null for a student without calibration
    is_anomaly: bool
    fpr: float | None  # at which the verdict was given; null without calibration
    height: int
    width: int


class StudentInfo(BaseModel):
    """A student and its provenance; `calibration` tells p-values of held-out normals from estimates."""

    name: str
    dataset: str
    normal_class: str
    teacher: str
    label_overlap: str
    calibration: str
    calibration_normals: int


def create_app(detectors: Mapping[str, Detector], limits: Limits | None = None) -> FastAPI:
    """Create an ASGI application that scores images with these students, by name."""
    service = Service(detectors, limits or Limits())

    @asynccontextmanager
    async def closing(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="kdad", summary="Knowledge-distillation anomaly detection", lifespan=closing)
    app.middleware("http")(service.counted)
    app.exception_handler(RequestValidationError)(_refused)

    @app.get("/", include_in_schema=False)
    def home() -> RedirectResponse:
        return RedirectResponse("/docs")

    @app.get("/health")
    def health() -> dict[str, Any]:
        """Status of the server, and its number of students."""
        return {"status": "ok", "students": len(detectors)}

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        return Response(generate_latest(service.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/students")
    def students() -> list[StudentInfo]:
        """List the available students."""
        return [_described(name, detector) for name, detector in detectors.items()]

    @app.post("/students/{name:path}/predict", responses=RESPONSES, openapi_extra=IMAGE_BODY)
    async def predict(name: str, request: Request, fpr: float | None = None) -> PredictionResponse:
        """Score the image file in the request body."""
        async with service.place(name) as detector:
            _, prediction = await service.judged(detector, request, fpr)
        (record,) = prediction.to_records([name])
        score, p_value, called = record["score"], record["p_value"], record["is_anomaly"]
        height, width = prediction.size
        rate = None if detector.calibration is None else detector.rate(fpr)
        return PredictionResponse(
            student=name, score=score, p_value=p_value, is_anomaly=called, fpr=rate, height=height, width=width
        )

    @app.post(
        "/students/{name:path}/heatmap",
        responses={**RESPONSES, 200: {"content": {"image/png": {}}}},
        response_class=Response,
        openapi_extra=IMAGE_BODY,
    )
    async def heatmap(name: str, request: Request) -> Response:
        """Overlay the heatmap on the image file in the request body; returns a PNG of the same size."""
        async with service.place(name) as detector:
            image, prediction = await service.judged(detector, request, None)
            drawn = await service.threads(_drawn, image, prediction, *detector.colour_range)
        return Response(drawn, media_type="image/png")

    return app


class Service:
    """State of a server: students, one scoring thread, several decoding threads, and metrics."""

    def __init__(self, detectors: Mapping[str, Detector], limits: Limits):
        self.detectors, self.limits = detectors, limits
        self.registry = CollectorRegistry()
        named: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("kdad_requests", "Answered requests", ["path", "status"], **named)
        self.seconds = Histogram("kdad_request_seconds", "Time from request headers to response", ["path"], **named)
        self.batches = Histogram("kdad_batch_images", "Images scored together", buckets=BATCH_SIZES, **named)
        self.busy = Gauge("kdad_requests_in_progress", "Images being read or scored", **named)
        self._batcher = Batcher(self.batches.observe)
        self._pool = ThreadPoolExecutor(DECODERS, "decoding")
        self._taken = 0

    def close(self) -> None:
        """Stop the threads after pending work."""
        self._batcher.close()
        self._pool.shutdown()

    async def counted(self, request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        """Count and time a request; middleware."""
        started, status = time.perf_counter(), 500
        try:
            response = await answer(request)
            status = response.status_code
            return response
        finally:
            path = getattr(request.scope.get("route"), "path", "other")  # the route, never user input
            self.requests.labels(path, str(status)).inc()
            self.seconds.labels(path).observe(time.perf_counter() - started)

    @asynccontextmanager
    async def place(self, name: str) -> AsyncIterator[Detector]:
        """Take one of the places for requests at work for the length of the block, which gets the student of a name.

        Raises:
            HTTPException: there is no such student, or no place.
        """
        detector = self.detectors.get(name)
        if detector is None:
            raise HTTPException(404, f"no student {name!r}; GET /students lists them")
        if self._taken >= self.limits.at_once:
            raise HTTPException(503, REFUSALS[503], {"Retry-After": "1"})
        self._taken += 1  # race-free, as the event loop has one thread
        self.busy.set(self._taken)
        try:
            yield detector
        finally:
            self._taken -= 1
            self.busy.set(self._taken)

    async def judged(self, detector: Detector, request: Request, fpr: float | None) -> tuple[Tensor, Prediction]:
        """Read the image (3, H, W) in a request, and predict it with a student.

        Raises:
            HTTPException: one of `REFUSALS`.
        """
        try:
            body = await self._image_file(request)
            image = await self.threads(_decoded, body, detector.config.max_value, self.limits.max_pixels)
            return image, await asyncio.wrap_future(self._batcher.ask(detector, image, fpr))
        except TooManyPixels as error:
            raise HTTPException(413, str(error)) from None
        except UserError as error:
            raise HTTPException(400, str(error)) from None
        except WorkFailed as error:
            raise HTTPException(500, str(error)) from None

    async def threads(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run `work` on a decoding thread and return its result."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    async def _image_file(self, request: Request) -> bytes:
        """Read the image file in a request: its body, or the one file of a form, whatever its field is called."""
        most = self.limits.max_bytes
        if not request.headers.get("content-type", "").lower().startswith(FORM):
            file = await self._body(request, most)
        else:
            file = await _file_in_form(request, await self._body(request, most + FORM_BYTES))
        if len(file) > most:
            raise _too_large(most)
        if file.lstrip().startswith(JSON_STARTS):
            raise HTTPException(400, SEND_A_FILE)
        return file

    async def _body(self, request: Request, most: int) -> bytes:
        """Read the body of a request, of at most so many bytes."""
        declared = request.headers.get("content-length", "")
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.seconds_to_send):
                too_many = declared.isdecimal() and int(declared) > most
                async for chunk in request.stream():
                    too_many = too_many or len(body) + len(chunk) > most
                    if too_many:
                        raise _too_large(self.limits.max_bytes)
                    body += chunk
        except ClientDisconnect:
            raise HTTPException(400, "the client has left") from None
        except TimeoutError:
            raise HTTPException(408, f"the image did not arrive within {self.limits.seconds_to_send:g} s") from None
        return bytes(body)


def _too_large(most: int) -> HTTPException:
    return HTTPException(413, f"more than {most} bytes; reduce the size of the image")


async def _file_in_form(request: Request, body: bytes) -> bytes:
    """The content of the one file in a form, which has arrived as `body`; its other fields are ignored."""

    async def arrived() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async with Request(request.scope, arrived).form() as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if len(files) != 1:
            raise HTTPException(400, f"the form holds {len(files)} files; {SEND_A_FILE}, one image per request")
        return await files[0].read()


async def _refused(_: Request, error: RequestValidationError) -> JSONResponse:
    """Answer a bad query parameter with one sentence, as all refusals."""
    first = error.errors()[0]
    message = f"{first['loc'][-1]}={str(first.get('input'))[:40]}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    return JSONResponse({"detail": message}, 422)


def _decoded(body: bytes, max_value: int, max_pixels: int) -> Tensor:
    return read_image(io.BytesIO(body), "the image", max_value, max_pixels)


def _drawn(image: Tensor, prediction: Prediction, low: float, high: float) -> bytes:
    picture, file = overlay(image.permute(1, 2, 0).numpy(), prediction.heatmap[0], low, high), io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def _described(name: str, detector: Detector) -> StudentInfo:
    config, calibration = detector.config, detector.calibration
    return StudentInfo(
        name=name,
        dataset=config.dataset,
        normal_class=config.normal_class,
        teacher=config.teacher,
        label_overlap=config.label_overlap,
        calibration=config.calibration,
        calibration_normals=0 if calibration is None else len(calibration),
    )
