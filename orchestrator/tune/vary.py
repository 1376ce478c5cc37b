"""The options that a user lets a study vary: `optim.lr=1e-4..1e-2`, `train.global_batch=128,256`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ray import tune
from ray.tune.search.sample import Domain

from orchestrator import cli
from orchestrator.config import ConfigError
from orchestrator.tune.recipe import own
from orchestrator.tune.space import Space, between

# What all trials of a study have in common, or what each is given by the study.
SHARED = (
    "run", "tokenizer", "evaluation", "model.vocab_size", "data.train", "data.format", "data.caption",
    "data.image_column", "data.text_column", "data.manifest",
)  # fmt: skip
# A comma within brackets belongs to a list.
COMMA = re.compile(r",(?![^\[\]{}]*[\]}])")


def parse_space(varied: Sequence[str]) -> Space:
    """The domain of each option.

    Parameters
    ----------
    varied : `option=a..b`, a range (whole numbers where the option takes such, by its logarithm where it spans a factor
        of 10), or `option=a,b,c`, a choice of values of the option's type

    Raises
    ------
    ConfigError : nothing to vary, an option that does not exist, is named twice or cannot differ between trials, a
        range that is none, or a value that is not of the option's type
    """
    if not varied:
        raise ConfigError("--vary: name what the study varies, such as --vary optim.lr=1e-4..1e-2")
    space: dict[str, Domain] = {}
    for word in varied:
        option, _, text = (part.strip() for part in word.partition("="))
        if option in space:
            raise ConfigError(f"--vary {word}: {option} is varied already; name it once")
        space[option] = _domain(word, option, text)
    return space


def _domain(word: str, option: str, text: str) -> Domain:
    if not text:
        raise ConfigError(f"--vary {word}: give it values, as in {option or 'option'}=1,2 or {option or 'option'}=1..8")
    if any(option == shared or option.startswith(f"{shared}.") for shared in SHARED):
        raise ConfigError(f"--vary {word}: {option} is the same in all trials of a study; set it with --{option}")
    low, dots, high = text.partition("..")
    if dots:
        return _range(word, option, low, high)
    found = [_value(word, option, part) for part in COMMA.split(text)]
    distinct = {json.dumps(value): value for value in found}
    if len(distinct) < len(found):
        raise ConfigError(f"--vary {word}: a value is named twice")
    return tune.choice(found)


def _range(word: str, option: str, low: str, high: str) -> Domain:
    ends = [_value(word, option, end) for end in (low, high)]
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        raise ConfigError(f"--vary {word}: a range is of numbers; name values with commas between")
    first, last = ends
    if not first < last:
        raise ConfigError(f"--vary {word}: a range goes from a smaller to a larger number, as in {option}=1..8")
    return between(first, last)


def _value(word: str, option: str, text: str) -> Any:
    try:
        # A whole section is no option, and has no type that values could be of.
        value = own(cli.parse([f"--{option}={text.strip()}"], ""), option) if text.strip() else None
    except ConfigError as error:
        raise ConfigError(f"--vary {word}: {error}") from None
    if value is None or hasattr(value, "__dataclass_fields__"):
        raise ConfigError(f"--vary {word}: {text.strip() or 'nothing'!r} is no value of {option}")
    return value
