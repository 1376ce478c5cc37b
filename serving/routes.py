"""Routes of the API: classify, classifiers, embeddings, models, and Hugging Face's task."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import orjson
from fastapi import APIRouter, Depends, File, Form, Header, Response, UploadFile

from serving import schema
from serving.classifiers import Definition
from serving.errors import RequestError
from serving.keys import safe_name
from serving.pictures import decode_base64
from serving.requests import Requests

if TYPE_CHECKING:
    from serving.service import Ingress

# How long a PUT waits for the classifier before it answers that it is being made.
BUILD_WAIT_S = 10.0
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.ErrorResponse} for status in (400, 401, 403, 404, 413, 415, 422, 500, 503, 504)
}


def make_router(service: Ingress) -> APIRouter:
    """The routes that need a key where the server has any."""

    # Not a plain function: those run in a thread, which takes longer than what this does.
    async def client(authorization: Annotated[str | None, Header()] = None) -> str:
        return service.keys.check(authorization)

    router = APIRouter(dependencies=[Depends(client)], responses=FAILURES)
    requests, limits = Requests(service), service.settings.limits

    @router.get("/v1/models")
    async def models() -> schema.ModelList:
        described = await service.models()
        fields = schema.Model.model_fields
        return schema.ModelList(
            data=[
                schema.Model(id=name, **{key: value for key, value in one.items() if key in fields})
                for name, one in described.items()
            ]
        )

    @router.post("/v1/classify", response_model=schema.ClassifyResponse)
    async def classify(
        labels: Annotated[list[str], Form(description="class names, one each", examples=[["a cat", "a dog"]])],
        image: Annotated[list[UploadFile] | None, File(description="pictures")] = None,
        uri: Annotated[list[str] | None, Form(description="places of pictures, where the server allows it")] = None,
        template: Annotated[list[str] | None, Form(description="prompt templates with {c}")] = None,
        model: Annotated[str, Form(description="of the server's models; empty: the first")] = "",
        top: Annotated[int | None, Form(ge=1, description="so many scores of each picture; none: all")] = None,
    ) -> Response:
        """Pictures by words: the scores of each label, likeliest first."""
        name = await service.model_name(model)
        asked = requests.words([(label,) for label in labels], tuple(template or service.templates("photo")))
        return _json(await requests.answer(name, await requests.pictures(image, uri), asked, None, top))

    @router.get("/v1/classifiers")
    async def list_classifiers() -> schema.ClassifierList:
        return schema.ClassifierList(classifiers=await service.classifiers("list_all"))

    @router.put("/v1/classifiers/{name}", responses={202: {"model": schema.ClassifierResponse}})
    async def put_classifier(
        name: str, request: schema.ClassifierRequest, response: Response
    ) -> schema.ClassifierResponse:
        """Make a classifier, or replace one; 202: it is being made, GET says how far it is."""
        model = await service.model_name(request.model)
        classes = [(one,) if isinstance(one, str) else tuple(one) for one in request.classes]
        asked = requests.words(classes, service.templates(request.templates))
        definition = Definition(safe_name(name, "name"), model, asked, request.temperature)
        state = await service.classifiers("put", definition, min(BUILD_WAIT_S, limits.request_s / 2))
        response.status_code = 200 if state["state"] == "ready" else 202
        return schema.ClassifierResponse(**state)

    @router.get("/v1/classifiers/{name}")
    async def get_classifier(name: str) -> schema.ClassifierResponse:
        return schema.ClassifierResponse(**await service.classifiers("get", safe_name(name, "name")))

    @router.delete("/v1/classifiers/{name}", status_code=204)
    async def delete_classifier(name: str) -> Response:
        await service.classifiers("delete", safe_name(name, "name"))
        return Response(status_code=204)

    @router.post("/v1/classifiers/{name}/classify", response_model=schema.ClassifyResponse)
    async def classify_with(
        name: str,
        image: Annotated[list[UploadFile] | None, File(description="pictures")] = None,
        uri: Annotated[list[str] | None, Form(description="places of pictures, where the server allows it")] = None,
        top: Annotated[int | None, Form(ge=1, description="so many scores of each picture; none: all")] = None,
    ) -> Response:
        """Pictures by a classifier that was made before."""
        definition = await service.definition(safe_name(name, "name"))
        model, pictures = await service.model_name(definition.model), await requests.pictures(image, uri)
        return _json(await requests.answer(model, pictures, definition.words, definition.temperature, top))

    @router.post("/v1/embeddings")
    async def embeddings(request: schema.EmbeddingsRequest) -> schema.EmbeddingsResponse:
        """Embeddings of unit length, of texts or pictures, in the form of OpenAI's API."""
        name = await service.model_name(request.model)
        inputs = request.input if isinstance(request.input, list) else [request.input]
        texts = [one for one in inputs if isinstance(one, str)]
        if not inputs or (texts and len(texts) != len(inputs)):
            raise RequestError(422, "input", "all texts or all pictures, at least one")
        most = limits.texts if texts else limits.images
        if len(inputs) > most:
            raise RequestError(413, "input", f"{len(inputs)} inputs; at most {most} a request")
        if texts:
            for place, text in enumerate(texts):
                if not text.strip() or len(text) > limits.text_characters:
                    raise RequestError(422, f"input[{place}]", f"1 to {limits.text_characters} characters")
            embedding_ND = await service.embed(name, "text", texts)
        else:
            fields = [f"input[{place}].image" for place in range(len(inputs))]
            data = [
                (field, decode_base64(one.image, field, limits))  # type: ignore[union-attr]
                for field, one in zip(fields, inputs, strict=True)
            ]
            pixels: list[np.ndarray] = []
            for one in await service.prepare(name, data):
                if isinstance(one, RequestError):
                    raise one
                pixels.append(one)
            embedding_ND = await service.embed(name, "image", pixels)
        encode: Callable[[np.ndarray], Any] = _base64 if request.encoding_format == "base64" else _floats
        found = [schema.Embedding(index=i, embedding=encode(row)) for i, row in enumerate(embedding_ND)]
        return schema.EmbeddingsResponse(data=found, model=name)

    @router.post("/hf/zero-shot-image-classification", response_model=list[schema.Score])
    @router.post("/hf/zero-shot-image-classification/{model}", response_model=list[schema.Score])
    async def hugging_face(request: schema.HuggingFaceRequest, model: str = "") -> Response:
        """Hugging Face's zero-shot-image-classification task: a list of labels with scores, likeliest first."""
        inputs = request.inputs
        encoded = inputs.get("image") if isinstance(inputs, dict) else inputs
        if not isinstance(encoded, str):
            raise RequestError(422, "inputs", "a picture in base64, or {image: base64}")
        labels = request.parameters.candidate_labels
        names = labels.split(",") if isinstance(labels, str) else labels
        names = [name.strip() for name in names]
        template = request.parameters.hypothesis_template
        if template is not None and "{}" not in template:
            raise RequestError(422, "parameters.hypothesis_template", f"{template!r} has no {{}} for the label")
        name = await service.model_name(model)
        templates = (template.replace("{}", "{c}"),) if template else service.templates("photo")
        asked = requests.words([(one,) for one in names], templates)
        data = decode_base64(encoded, "inputs", limits)
        return _json((await requests.answer(name, [("inputs", data)], asked, None))["results"][0]["scores"])

    return router


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


def _floats(embedding_D: np.ndarray) -> list[float]:
    return embedding_D.tolist()


def _base64(embedding_D: np.ndarray) -> str:
    return base64.b64encode(embedding_D.astype("<f4").tobytes()).decode()
