"""What an operator may set, each with its unit; `serving/config.yaml` holds them under `args`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


# Named sets of prompt templates that every server has.
TEMPLATE_SETS = {
    "name": ["{c}"],
    "photo": ["a photo of a {c}"],
    "styles": [
        "a photo of a {c}",
        "a close-up of a {c}",
        "a small {c} far away",
        "a dark photo of a {c}",
        "a drawing of a {c}",
        "a painting of a {c}",
        "a cartoon of a {c}",
        "a {c} in a computer game",
    ],
}


class Limits(_Strict):
    """What one request may ask for; more is refused with the field named."""

    image_bytes: int = Field(default=20_000_000, gt=0, description="bytes of an encoded picture")
    image_pixels: int = Field(default=50_000_000, gt=0, description="pixels of a picture, by its header")
    images: int = Field(default=32, gt=0, description="pictures of a request")
    texts: int = Field(default=256, gt=0, description="texts of an embeddings request")
    classes: int = Field(default=10_000, gt=0, description="classes of a classifier")
    templates: int = Field(default=200, gt=0, description="prompt templates of a classifier")
    text_characters: int = Field(default=1_000, gt=0, description="characters of a class name, a template or a text")
    request_s: float = Field(default=30.0, gt=0, description="seconds until a request is given up")
    adhoc_classifiers: int = Field(default=256, gt=0, description="classifiers of ad-hoc labels that are remembered")


class Fetching(_Strict):
    """Whether a picture may be named by where it lies, rather than sent."""

    https: bool = Field(default=False, description="https:// URLs of public hosts")
    prefixes: list[str] = Field(default_factory=list, description="s3:// or gs:// URIs below which pictures may lie")
    seconds: float = Field(default=5.0, gt=0, description="for fetching one picture")
    redirects: int = Field(default=3, ge=0, description="followed at most")


class Settings(_Strict):
    """Arguments of the application.

    A single model may be given as `model`, several as `models` by name; the first is the default of requests.
    """

    model: str = Field(default="", description="URI of a model directory, or of a published model")
    models: dict[str, str] = Field(default_factory=dict, description="the same, by the name that requests use")
    storage: str = Field(default="serving-data", description="URI of the folder that keeps classifiers")
    hardware: Literal["cpu", "gpu"] = Field(default="cpu", description="what the encoders run on")
    nodes: dict[str, str] = Field(
        default_factory=dict, description="labels of the nodes that replicas run on, in Ray's syntax; empty: any"
    )
    keys: dict[str, str] = Field(
        default_factory=dict,
        description="names of clients and the environment variables that hold their bearer keys; empty: open to all",
    )
    template_sets: dict[str, list[str]] = Field(
        default_factory=dict, description="named prompt templates, besides name, photo and styles"
    )
    cors_origins: list[str] = Field(default_factory=list, description="web origins that may call from a browser")
    batch_size: int = Field(default=16, gt=0, description="pictures in a message to an encoder and in a forward pass")
    batch_wait_s: float = Field(default=0.02, ge=0, description="a busy encoder's pictures wait so long for others")
    limits: Limits = Limits()
    fetching: Fetching = Fetching()

    @model_validator(mode="after")
    def _name_the_models(self) -> Settings:
        if bool(self.model) == bool(self.models):
            raise ValueError("give model=<directory>, or models: {name: directory}; one of the two")
        if self.model:
            self.models = {"default": self.model}
        self.template_sets = {**TEMPLATE_SETS, **self.template_sets}
        return self
