"""The command line of an evaluation: what is asked, checked before anything is computed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator import cli, storage
from orchestrator.config import ConfigError, PlacementConfig
from orchestrator.errors import UserError
from orchestrator.evaluate.compare import Results, read_results, write_comparison
from orchestrator.evaluate.few_shot import SHOTS
from orchestrator.evaluate.gate import Gate, below, read_gate
from orchestrator.evaluate.overlap_search import training_shards
from orchestrator.evaluate.plan import SUITES, Options
from orchestrator.evaluate.report import write_report
from orchestrator.evaluate.run import evaluate
from orchestrator.evaluate.shift import asked_pairs


class EvaluationFailed(UserError, ValueError):
    """An evaluation that ended, its report written, with sets that failed or scores below the gate."""


@dataclass(frozen=True)
class Asked:
    """What a command line asks for: an evaluation with its gate, or a comparison.

    Parameters
    ----------
    out : URI of the report's folder
    options, gate : of an evaluation; its first where there are two
    beside : another image encoder's evaluation on the same sets
    results : to be compared
    """

    out: str
    options: Options | None = None
    gate: Gate | None = None
    beside: Options | None = None
    results: Results | None = None


def parse(argv: Sequence[str], description: str) -> Asked:
    """Read the command line, and whatever must be right before Ray starts.

    Raises
    ------
    ConfigError : an option, or a combination, that cannot work
    StorageError : a pattern that matches no set, or a file that is missing
    """
    try:
        return _parse(argv, description)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _parse(argv: Sequence[str], description: str) -> Asked:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", help="a model directory (<run>/final, or one published by others)")
    parser.add_argument(
        "--datasets", nargs="+", default=[], metavar="PATTERN", help="folders of sets; globs and braces"
    )
    parser.add_argument("--suite", choices=SUITES, default="all")
    parser.add_argument("--out", help="folder of the results; default: `eval` beside the model, `comparison` there")
    parser.add_argument(
        "--features", metavar="ENCODER", help="a folder of another image encoder (transformers): its probes on the sets"
    )
    parser.add_argument("--cache", help="folder of the features, which runs may share; default: <out>/features")
    parser.add_argument("--split", default="test", help="the split that is measured")
    parser.add_argument(
        "--templates", help="a file of prompt templates with {c}, one a line, in place of the sets' own"
    )
    parser.add_argument("--shots", type=int, nargs="+", default=list(SHOTS), help="examples a class of few-shot probes")
    parser.add_argument("--repeats", type=int, default=5, help="draws of each number of shots")
    parser.add_argument("--batch-size", type=int, default=256, help="pictures in one forward pass")
    parser.add_argument(
        "--shift", action="append", default=[], metavar="STANDARD=SHIFTED", help="a pair of sets' names"
    )
    parser.add_argument(
        "--humans",
        action="append",
        default=[],
        metavar="[SET=]FILE",
        help="CSV of people's answers to a set's pictures: person, picture, answer",
    )
    parser.add_argument(
        "--overlap",
        nargs="+",
        default=[],
        metavar="SHARDS",
        help="shards of training (globs and braces), or a run's manifest.json: pictures of the sets are sought in them",
    )
    parser.add_argument("--image-column", default="image", help="of Parquet shards of training: the encoded pictures")
    parser.add_argument(
        "--placement", metavar="RECIPE", help="a recipe or YAML whose placement is taken: on which nodes"
    )
    parser.add_argument("--fail-below", metavar="FILE", help="YAML of scores below which the job fails")
    parser.add_argument("--compare", nargs="+", metavar="EVAL", help="folders of evaluations to be held side by side")
    found = parser.parse_args(argv)
    if found.compare:
        if found.model or found.datasets or found.features:
            raise ValueError(
                "--compare reads evaluations that were made before: leave --model, --features and --datasets out"
            )
        folders = [storage.absolute(folder) for folder in found.compare]
        out = found.out or storage.join(folders[-1], "comparison")
        return Asked(storage.absolute(out), results=read_results(folders))
    if not (found.model or found.features) or not found.datasets:
        raise ValueError(
            "--model (or --features, or both) and --datasets are needed, or --compare: a model directory, and folders "
            "of sets"
        )
    if found.features and "probe" not in SUITES[found.suite]:
        raise ValueError(
            f"--features {found.features}: an image encoder has no words, and suite {found.suite} no probes"
        )
    if found.shift and not found.model:
        raise ValueError("--shift: of zero-shot accuracy, which needs --model")
    for option in ("humans", "overlap"):
        if getattr(found, option) and not (found.model and "zero-shot" in SUITES[found.suite]):
            raise ValueError(f"--{option}: beside zero-shot answers, which need --model and a suite with them")
    if min(found.shots) < 1 or found.repeats < 1 or found.batch_size < 1:
        raise ValueError("--shots, --repeats and --batch-size: whole numbers of at least 1")
    option, main = ("--model", found.model) if found.model else ("--features", found.features)
    if not found.out and main.startswith("hf://"):
        raise ValueError(f"{option} {main}: the hub is not written to; name a folder for the results with --out")
    main = storage.absolute(main.rstrip("/"))
    parent, _, name = main.rpartition("/")
    # Encoders often lie side by side, models in folders of their runs.
    out = storage.absolute(found.out or storage.join(parent, "eval" if found.model else f"{name}-eval"))
    datasets = name_sets([storage.absolute(pattern) for pattern in found.datasets])
    options = Options(
        main,
        datasets,
        found.suite,
        out,
        storage.absolute(found.cache) if found.cache else storage.join(out, "features"),
        found.split,
        _templates(found.templates) if found.templates else [],
        tuple(sorted(set(found.shots))),
        found.repeats,
        found.batch_size,
        found.shift,
        name_humans(found.humans, list(datasets)),
        training_shards([storage.absolute(pattern) for pattern in found.overlap]),
        found.image_column,
        image_only=not found.model,
        placement=cli.parse(["--config", found.placement], "").placement if found.placement else PlacementConfig(),
    )
    beside = None
    if found.model and found.features:
        encoder = storage.absolute(found.features.rstrip("/"))
        own = storage.join(out, "encoders", encoder.rpartition("/")[2])
        beside = replace(options, model=encoder, out=own, shifts=[], humans={}, overlap=[], image_only=True)
    asked_pairs(options.shifts, list(datasets))
    gate = read_gate(found.fail_below, list(datasets)) if found.fail_below else None
    return Asked(out, options, gate, beside)


def name_sets(patterns: Sequence[str]) -> dict[str, str]:
    """Folders of sets by the last part of their names, or by as many as it takes to tell them apart."""
    roots = storage.expand_folders(list(patterns))
    parts = [root.split("/") for root in roots]
    depth = 1
    while len({tuple(one[-depth:]) for one in parts}) < len(roots):
        depth += 1
    return {"/".join(one[-depth:]): root for one, root in zip(parts, roots, strict=True)}


def name_humans(files: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Files of people's answers by set, from `set=file`, or `file` where there is one set.

    Raises
    ------
    ValueError : a set that is not measured, two files for one, or a file that is not there
    """
    found: dict[str, str] = {}
    for text in files:
        name, equals, uri = text.partition("=")
        if not equals and len(names) == 1:
            name, uri = names[0], text
        if name not in names:
            raise ValueError(f"--humans {text}: write set=file, of one of the sets {', '.join(names)}")
        if name in found:
            raise ValueError(f"--humans {text}: {name} has a file already: put all people's answers into one")
        found[name] = storage.absolute(uri)
        if not storage.exists(found[name]):
            raise ValueError(f"--humans {text}: there is no file {found[name]}")
    return found


def run(asked: Asked) -> str:
    """Do it, on the Ray that this process has joined, and write the report; of two, their comparison, too.

    Returns
    -------
    URI of the report

    Raises
    ------
    EvaluationFailed : some sets could not be measured, or scores are below the gate; the report is there
    """
    report = storage.join(asked.out, "report.md")
    if asked.results is not None:
        write_comparison(asked.out, asked.results)
        return report
    assert asked.options is not None
    result = evaluate(asked.options, lambda line: print(line, flush=True))
    write_report(asked.out, result)
    problems = [f"{name} failed: {why}" for name, why in result["failed"].items()]
    problems += below(asked.gate or {}, result["sets"])
    if asked.beside is not None:
        other = evaluate(asked.beside, lambda line: print(line, flush=True))
        write_report(asked.beside.out, other)
        problems += [f"{name} failed: {why}" for name, why in other["failed"].items() if name not in result["failed"]]
        write_comparison(storage.join(asked.out, "comparison"), read_results([asked.out, asked.beside.out]))
    if problems:
        raise EvaluationFailed("; ".join([*problems, f"the report is {report}"]))
    return report


def _templates(uri: str) -> list[str]:
    lines = [line.strip() for line in storage.read_bytes(uri).decode().splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"--templates {uri}: no template in it")
    if bad := next((line for line in lines if "{c}" not in line), None):
        raise ValueError(f"--templates {uri}: template {bad!r} has no {{c}} for the class name")
    return lines
