"""A setting put into a configuration: that of a trial, and the winner's recipe."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from orchestrator.cli import to_yaml
from orchestrator.config import Config, ConfigError


def configured(base: Config, setting: Mapping[str, Any]) -> Config:
    """The base configuration with the values of a setting; the base stays as it is.

    Parameters
    ----------
    base : the configuration that is changed
    setting : option, such as model.init_temperature -> value

    Raises
    ------
    ConfigError : an option that does not exist
    """
    config = copy.deepcopy(base)
    for option, value in setting.items():
        section, key = _place(config, option)
        setattr(section, key, copy.deepcopy(value))
    return config


def own(base: Config, option: str) -> Any:
    """The value that a configuration has for an option.

    Raises
    ------
    ConfigError : an option that does not exist
    """
    section, key = _place(base, option)
    return getattr(section, key)


def recipe(base: Config, setting: Mapping[str, Any], ending: str) -> str:
    """The YAML of a run with a setting, for `--config`; its name is the base run's with an ending."""
    config = configured(base, setting)
    return to_yaml(dataclasses.replace(config, run=dataclasses.replace(config.run, name=f"{base.run.name}-{ending}")))


def _place(config: Config, option: str) -> tuple[Any, str]:
    *sections, key = option.split(".")
    place: Any = config
    for section in sections:
        place = getattr(place, section, None)
    if not hasattr(place, key):
        raise ConfigError(f"{option}: no such option")
    return place, key
