"""Requests and responses, as OpenAPI shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1, examples=["a cat"])]


class Problem(BaseModel):
    """Why there is no answer."""

    status: int = Field(examples=[422])
    field: str = Field(description="of the request; empty: the whole", examples=["image[2]"])
    message: str = Field(examples=["the picture is cut off; send the whole file"])


class ErrorResponse(BaseModel):
    error: Problem


class Score(BaseModel):
    label: str = Field(examples=["a cat"])
    score: float = Field(description="share of one, over the labels; of a sigmoid model: each by itself, in [0, 1]")


class Result(BaseModel):
    """Of one picture: scores, likeliest first, or why there are none."""

    scores: list[Score] | None = None
    error: Problem | None = None


class ClassifyResponse(BaseModel):
    model: str = Field(examples=["default"])
    cached: bool = Field(description="whether the classifier was at hand; else the text tower ran")
    results: list[Result] = Field(description="one a picture, in their order")


class ClassifierRequest(BaseModel):
    """Classes and how they are asked for."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"classes": [["a cat", "a kitten"], "a dog"], "templates": ["a photo of {c}"]}]
        },
    )

    classes: list[Name | list[Name]] = Field(min_length=1, description="each one name, or several that count alike")
    templates: list[str] | str = Field(
        default="photo", description="prompt templates with {c} for the name, or one of the server's template_sets"
    )
    temperature: float | None = Field(
        default=None, gt=0, description="in place of the model's own (1 / its logit scale)"
    )
    model: str = Field(default="", description="of the server's models; empty: the first")


class ClassifierResponse(BaseModel):
    name: str
    model: str
    state: Literal["building", "ready", "failed"]
    progress: float = Field(description="share of the classes that are done, 0 to 1")
    classes: list[str] = Field(description="the first name of each")
    templates: list[str]
    temperature: float | None
    error: str = ""


class ClassifierList(BaseModel):
    classifiers: list[ClassifierResponse]


class ImageInput(BaseModel):
    model_config = ConfigDict(extra="forbid")

    image: str = Field(description="a picture in base64")


class EmbeddingsRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"input": ["a photo of a cat"]}]})

    input: str | ImageInput | list[str | ImageInput] = Field(description="texts, or {image: base64}")
    model: str = ""
    encoding_format: Literal["float", "base64"] = Field(default="float", description="base64: little-endian float32")
    user: str = Field(default="", description="ignored; OpenAI's clients may send it")


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="unit length")


class Usage(BaseModel):
    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbeddingsResponse(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage = Field(default_factory=Usage)


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    uri: str
    fingerprint: str
    image_size: int
    embed_dim: int
    objective: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class HuggingFaceParameters(BaseModel):
    candidate_labels: list[str] | str = Field(description="a list, or one string with commas")
    hypothesis_template: str | None = Field(default=None, description="with {} where the label goes")


class HuggingFaceRequest(BaseModel):
    """Hugging Face's zero-shot-image-classification task."""

    inputs: str | dict[str, Any] = Field(description="a picture in base64, or {image: base64}")
    parameters: HuggingFaceParameters
