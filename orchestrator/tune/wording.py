"""How numbers, options and settings are written in a study's figures and tables."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

from orchestrator.report.wording import cell, plain
from orchestrator.tune.trial import Trial

UNITS = {
    "image_size": "pixels a side",
    "patch_size": "pixels a side",
    "width": "channels",
    "embed_dim": "channels",
    "layers": "blocks",
    "warmup_steps": "steps",
    "vocab_size": "entries",
}


def options_of(trials: Iterable[Trial]) -> list[str]:
    """Every option that a trial sets, in the order they are met."""
    return list(dict.fromkeys(itertools.chain.from_iterable(trial.setting for trial in trials)))


def differing(trials: Sequence[Trial]) -> list[str]:
    """The options that are not the same in all trials."""
    return [o for o in options_of(trials) if len({repr(plain(trial.setting.get(o))) for trial in trials}) > 1]


def short_names(options: Sequence[str]) -> dict[str, str]:
    """The shortest ending of each option's name that no other has: `width`, or `vision.width` beside `text.width`."""
    parts = {option: option.split(".") for option in options}
    endings = {o: [".".join(p[-length:]) for length in range(1, len(p) + 1)] for o, p in parts.items()}
    count = Counter(itertools.chain.from_iterable(endings.values()))
    return {o: next((ending for ending in endings[o] if count[ending] == 1), o) for o in options}


def label(trial: Trial, options: Sequence[str] | None = None) -> str:
    """The group of a trial: its setting, or those options of it, as one short text; seeds share a group."""
    names = short_names(list(trial.setting) if options is None else options)
    return ", ".join(f"{name}={cell(trial.setting.get(option))}" for option, name in names.items())


def option_name(option: str) -> str:
    return option.rsplit(".", 1)[-1].replace("_", " ")


def with_unit(option: str) -> str:
    unit = UNITS.get(option.rsplit(".", 1)[-1])
    return f"{option} ({unit})" if unit else option
