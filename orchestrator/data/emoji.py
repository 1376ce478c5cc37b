"""Emoji as image-text pairs: concepts, their captions, and which of them are held out of training."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# One concept in ten is never trained on.
HELD_OUT_SHARE = 10

TEMPLATES = ("{c}", "an emoji of {c}", "a picture of {c}", "{c}, an emoji")
CATEGORY_TEMPLATES = ("{c}", "an emoji of {c}", "an emoji in the category {c}")


@dataclass(frozen=True)
class Concept:
    """One emoji, whatever the style it is drawn in.

    Parameters
    ----------
    code : its code points, hexadecimal, joined by dashes, lower-case
    files : file names (without ending) under which a style may keep its picture, the likeliest first
    name : unique among the concepts
    short_names : what people type for it, as words
    category, subcategory : where the Unicode Consortium files it, e.g. Animals & Nature, animal-mammal
    """

    code: str
    files: tuple[str, ...]
    name: str
    short_names: tuple[str, ...]
    category: str
    subcategory: str

    @property
    def held_out(self) -> bool:
        """Whether training never sees it: decided by a hash of the code points, the same everywhere and for ever."""
        return int(hashlib.sha256(self.code.encode()).hexdigest()[:8], 16) % HELD_OUT_SHARE == 0

    @property
    def captions(self) -> list[str]:
        """Captions for training, the plain name first; what stands twice is drawn twice as often.

        All say the name, six in seven as evaluation does: captions that say something else cost a small model more
        than they teach it.
        """
        named = [template.replace("{c}", self.name) for template in TEMPLATES]
        also = [f"{self.name}, also called {short}" for short in self.short_names[:1]]
        return [*named, *named, *named, f"an emoji in the category {self.category}: {self.name}", *also]


def words(identifier: str) -> str:
    """`flag-cn` and `sun_small_cloud` as people would write them."""
    return " ".join(identifier.replace("_", " ").replace("-", " ").split())


def read_concepts(emoji_json: Iterable[dict[str, Any]]) -> list[Concept]:
    """The concepts of an emoji-datasource package's emoji.json, in order of their code points."""
    rows = sorted(emoji_json, key=lambda row: row["unified"])
    spelled = [_spell(row["name"]) for row in rows]
    shared = {name for name, count in Counter(spelled).items() if count > 1}
    concepts = []
    for row, spelling in zip(rows, spelled, strict=True):
        shorts = tuple(words(short) for short in row["short_names"])
        # Two concepts that Unicode spells alike are told apart by their short names.
        name = shorts[0] if spelling in shared else spelling
        code = row["unified"].lower()
        concepts.append(
            Concept(
                code=code,
                files=tuple(dict.fromkeys([code, code.replace("-fe0f", ""), (row["non_qualified"] or code).lower()])),
                name=name,
                short_names=tuple(short for short in shorts if short.lower() != name.lower()),
                category=row["category"],
                subcategory=row["subcategory"],
            )
        )
    repeated = [name for name, count in Counter(c.name for c in concepts).items() if count > 1]
    if repeated:
        raise ValueError(f"concepts share the names {repeated}")
    return concepts


def _spell(name: str) -> str:
    """Unicode shouts its names; flags come in title case and keep it."""
    return " ".join((name.lower() if name.isupper() else name).split())
