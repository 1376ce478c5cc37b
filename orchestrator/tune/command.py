"""A study from its command line to its report."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile

import ray

from orchestrator import cli, storage
from orchestrator.config import Config, ConfigError
from orchestrator.tune import plots, temperature
from orchestrator.tune.report import write_report
from orchestrator.tune.search import SettingsThenSeeds
from orchestrator.tune.study import Measure, Study, run_study
from orchestrator.tune.trial import Trial

QUESTIONS = {"temperature": "How should the temperature be set?"}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    Parameters
    ----------
    study : its folder and the configuration that trials change
    trials : in all
    at_once : trials side by side; 0: as many as the cluster has room for
    """

    study: Study
    trials: int
    at_once: int


def parse(argv: list[str], description: str) -> Asked:
    """Read the command line; what it does not know is an option of a run.

    Raises
    ------
    ConfigError : an unknown question or option, a study to go on with that is not there, or one that is there already
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--study", choices=sorted(QUESTIONS), default="temperature")
    parser.add_argument("--base", default=cli.DEFAULT_RECIPE, help="recipe or YAML file that trials change")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--at_once", type=int, default=0, help="trials side by side; 0: as many as there is room for")
    parser.add_argument("--name", default="", help="of the study's folder under run.storage_path")
    parser.add_argument("--resume", default="", metavar="FOLDER", help="of a study that was cut off")
    known, rest = parser.parse_known_args(argv)
    if known.resume:
        return _resume(known.resume.rstrip("/"), rest)
    base = cli.parse(["--config", known.base, *rest], description)
    name = known.name or f"tune-{known.study}"
    uri = storage.join(storage.absolute(base.run.storage_path), name)
    if storage.exists(storage.join(uri, "study.json")):
        raise ConfigError(f"{uri} holds a study already: go on with --resume {uri}, or choose another --name")
    return Asked(Study(known.study, uri, base), known.trials, known.at_once)


def _resume(folder: str, rest: list[str]) -> Asked:
    uri = storage.absolute(folder)
    if rest:
        raise ConfigError(f"--resume {folder}: the study is as it was started; leave out {rest[0]}")
    if not storage.exists(storage.join(uri, "study.json")):
        raise ConfigError(f"--resume {folder}: there is no study at {uri}")
    with tempfile.TemporaryDirectory() as scratch:
        file = os.path.join(scratch, "config.yaml")
        with open(file, "wb") as out:
            out.write(storage.read_bytes(storage.join(uri, "config.yaml")))
        base = cli.parse(["--config", file], "")
    saved = json.loads(storage.read_bytes(storage.join(uri, "study.json")))
    return Asked(Study(saved["question"], uri, base), saved["trials"], saved["at_once"])


def run(asked: Asked, measure: Measure) -> str:
    """Make the trials that are still to be made, and the report; returns the report's folder. Ray must be initialised.

    Raises
    ------
    ConfigError : a trial's configuration that cannot work, found before the first one starts
    """
    study = asked.study
    settings = temperature.settings(study.base.model, asked.trials)
    for place, setting in enumerate(settings):
        study.config(setting, f"{place:03d}", study.base.run.seed)
    study.prepare()
    state = {"format": 1, "question": study.question, "trials": asked.trials, "at_once": asked.at_once}
    storage.write_bytes(storage.join(study.uri, "study.json"), json.dumps(state, indent=1).encode())
    search = SettingsThenSeeds(settings, asked.trials, study.base.run.seed)
    trials = run_study(study, search, asked.trials, measure, asked.at_once or room_for(study.base))
    return _report(study, trials)


def room_for(config: Config) -> int:
    """Trials that the cluster's CPUs and GPUs hold side by side; at least one."""
    train, total = config.train, ray.cluster_resources()
    workers = train.worker_range[0]
    fitting = [total.get("CPU", 0) // (workers * train.cpus_per_worker + config.data.cpus_per_reader)]
    if total.get("GPU", 0) and train.device != "cpu":
        fitting.append(total["GPU"] // workers)
    return max(1, int(min(fitting)))


def _report(study: Study, trials: list[Trial]) -> str:
    answer = temperature.answer(trials)
    print("\n".join(answer.sentences), flush=True)
    figures = {
        "Accuracy against the temperature at the start": plots.accuracy_against(trials, temperature.INITIAL),
        "The logit scale on its way": plots.paths(trials, "logit_scale"),
        "Loss on its way": plots.paths(trials, "loss"),
    }
    uri = storage.join(study.uri, "report")
    drawn = {title: figure for title, figure in figures.items() if figure is not None}
    write_report(uri, QUESTIONS[study.question], trials, answer, drawn)
    return uri
