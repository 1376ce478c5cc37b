"""What requests have in common: which pictures, which words, and the answer for each picture.

Shapes: N pictures, C classes, R image side.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import UploadFile

from serving.classifiers import Words
from serving.errors import RequestError
from serving.fetch import fetch

if TYPE_CHECKING:
    from serving.service import Ingress


class Requests:
    """Checks what is asked for against the limits, and has it answered.

    Parameters
    ----------
    service : of this replica
    """

    def __init__(self, service: Ingress):
        self.service, self.limits = service, service.settings.limits

    async def pictures(self, images: list[UploadFile] | None, uris: list[str] | None) -> list[tuple[str, bytes]]:
        """Field and bytes of each picture of a form."""
        files, named = images or [], uris or []
        if not files and not named:
            raise RequestError(422, "image", "send at least one picture, as a file (image) or by its place (uri)")
        if len(files) + len(named) > self.limits.images:
            raise RequestError(
                413, "image", f"{len(files) + len(named)} pictures; at most {self.limits.images} a request"
            )
        # One byte more than a picture may have is enough to refuse it.
        most = self.limits.image_bytes + 1
        sent = [(_field("image", place, files), await file.read(most)) for place, file in enumerate(files)]
        fetched = [(_field("uri", place, named), uri) for place, uri in enumerate(named)]
        found = await asyncio.gather(
            *(fetch(uri, field, self.service.settings.fetching, self.limits) for field, uri in fetched)
        )
        return sent + [(field, data) for (field, _), data in zip(fetched, found, strict=True)]

    def words(self, classes: list[tuple[str, ...]], templates: tuple[str, ...]) -> Words:
        if len(classes) > self.limits.classes:
            raise RequestError(413, "classes", f"{len(classes)} classes; at most {self.limits.classes}")
        if not templates or len(templates) > self.limits.templates:
            raise RequestError(422, "templates", f"{len(templates)} templates; 1 to {self.limits.templates}")
        for place, template in enumerate(templates):
            if "{c}" not in template:
                raise RequestError(422, f"templates[{place}]", f"{template!r} has no {{c}} for the class name")
        for place, names in enumerate(classes):
            if not names or not all(name.strip() for name in names):
                raise RequestError(422, f"classes[{place}]", "a class needs a name")
        for field, texts in (("classes", [n for names in classes for n in names]), ("templates", list(templates))):
            for text in texts:
                if len(text) > self.limits.text_characters:
                    raise RequestError(413, field, f"{len(text)} characters; at most {self.limits.text_characters}")
        return Words(tuple(classes), templates)

    async def answer(
        self, model: str, data: list[tuple[str, bytes]], asked: Words, temperature: float | None, top: int | None = None
    ) -> dict[str, Any]:
        """Each picture's `top` scores, or why it has none, as schema.ClassifyResponse says; an error where no picture
        is good."""
        prepared = await self.service.prepare(model, data)
        good = [pixels for pixels in prepared if isinstance(pixels, np.ndarray)]
        if not good:
            raise next(error for error in prepared if isinstance(error, RequestError))
        probability_NC, cached = await self.service.classify(model, good, asked, temperature)
        rows, labels = iter(probability_NC), [names[0] for names in asked.classes]
        results = [
            {"error": one.body()} if isinstance(one, RequestError) else {"scores": _sorted(next(rows), labels, top)}
            for one in prepared
        ]
        return {"model": model, "cached": cached, "results": results}


def _field(name: str, place: int, several: list[Any]) -> str:
    return f"{name}[{place}]" if len(several) > 1 else name


# Plain values, not a model of pydantic's: a thousand of those cost as much time as a picture's decoding.
def _sorted(probability_C: np.ndarray, labels: list[str], top: int | None) -> list[dict[str, Any]]:
    order = np.argsort(-probability_C, kind="stable")[:top]
    return [
        {"label": labels[place], "score": score}
        for place, score in zip(order.tolist(), probability_C[order], strict=True)
    ]
