"""From the command line to a Config: a recipe by name or a YAML file, then overrides."""

from __future__ import annotations

import argparse
import difflib
import json
import re
from pathlib import Path
from typing import Any

import jsonargparse

from orchestrator.config import Config, ConfigError

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "demo"


def build_parser(description: str) -> jsonargparse.ArgumentParser:
    """The parser of a job: `--config` and one `--section.key` for each field of Config."""
    parser = jsonargparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action=jsonargparse.ActionConfigFile,
        help=f"a recipe ({', '.join(recipe_names())}; {DEFAULT_RECIPE} where none is named) or a YAML file",
    )
    parser.add_class_arguments(Config, as_group=False)
    return parser


def parse(argv: list[str], description: str) -> Config:
    """Read the command line.

    Parameters
    ----------
    argv : arguments, without the program's name
    description : text of `--help`

    Returns
    -------
    Config, not validated yet

    Raises
    ------
    ConfigError : an unknown key (with the nearest valid one), a wrong type, a recipe that does not exist
    """
    parser = build_parser(description)
    try:
        namespace = parser.parse_args(_prepare(list(argv)))
        config = parser.instantiate(namespace)
    except (argparse.ArgumentError, jsonargparse.ArgumentError, ValueError, TypeError) as error:
        raise ConfigError(_explain(str(error), _keys(Config().as_dict()))) from None
    return Config(**{key: value for key, value in vars(config).items() if key != "config"})


def recipe_of(argv: list[str]) -> str:
    """The recipe or the file that a command line names, the last one where it names several."""
    named = [DEFAULT_RECIPE]
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        key, equals, value = word.partition("=")
        if key == "--config":
            named.append(value if equals else following)
    return named[-1]


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `--config` reads again."""
    import yaml

    return yaml.safe_dump(config.as_dict(), sort_keys=False)


def _prepare(argv: list[str]) -> list[str]:
    """Name the recipe's file, and take a list of shards that a shell has expanded from braces."""
    prepared: list[str] = []
    position = 0
    has_config = False
    while position < len(argv):
        word = argv[position]
        key, equals, value = word.partition("=")
        if key == "--config":
            has_config = True
            if not equals:
                position += 1
                if position == len(argv):
                    raise ConfigError(f"--config needs a recipe ({', '.join(recipe_names())}) or a YAML file")
                value = argv[position]
            prepared += ["--config", _config_file(value)]
        elif word == "--data.train":
            values = []
            while position + 1 < len(argv) and not argv[position + 1].startswith("--"):
                position += 1
                values.append(argv[position])
            prepared += [word, values[0] if len(values) == 1 else json.dumps(values)]
        else:
            prepared.append(word)
        position += 1
    if not has_config and (RECIPES / f"{DEFAULT_RECIPE}.yaml").exists():
        prepared = ["--config", _config_file(DEFAULT_RECIPE), *prepared]
    return prepared


def _config_file(name: str) -> str:
    recipe = RECIPES / f"{name}.yaml"
    if recipe.exists():
        return str(recipe)
    if Path(name).is_file():
        return name
    close = difflib.get_close_matches(name, recipe_names(), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"recipes: {', '.join(recipe_names())}"
    raise ConfigError(f"--config={name!r}: neither a recipe nor a file; {hint}")


def _keys(tree: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in tree.items():
        keys += _keys(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [prefix + key]
    return keys


def _explain(message: str, parser_keys: list[str]) -> str:
    """One line that names the key, and the nearest valid one where the key is unknown."""
    line = " ".join(message.split())
    unknown = (
        re.match(r"unrecognized arguments: --([\w.\-]+)", line)
        or re.match(r"Option '([\w.]+)' is not accepted", line)
        or re.match(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<option>[\w.]+)'", line)
    )
    if unknown is None:
        return re.sub(r'^Parser key "([\w.]+)": ', r"\1: ", line)
    key = ".".join(unknown.groups())
    # The right name in the wrong section, or in none; else the most similar one.
    leaf = key.rsplit(".", 1)[-1]
    close = [valid for valid in parser_keys if valid.rsplit(".", 1)[-1] == leaf][:1]
    close = close or difflib.get_close_matches(key, parser_keys, n=1, cutoff=0.7)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{key}: no such option{hint} (--help lists all)"
