"""A study from its command line to its report."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from typing import Any

from orchestrator import cli, storage
from orchestrator.config import ConfigError
from orchestrator.train.cluster import uses_gpu
from orchestrator.tune.learning_rate import VARY, LearningRate
from orchestrator.tune.options import Options
from orchestrator.tune.plan import SEARCHES, Plan, make_plan
from orchestrator.tune.question import Question
from orchestrator.tune.report import write_report
from orchestrator.tune.room import nodes, room_for
from orchestrator.tune.scaling import Scaling
from orchestrator.tune.study import Measure, Study, early_stopping, read_trials, run_study
from orchestrator.tune.temperature import Temperature

STUDIES = ("options", "scaling", "temperature")


# What a study that goes on keeps of its command line, besides its question and its trials.
KEPT = ("compute", "equal", "search", "vary", "stop_early", "rounds")
GOING_ON = ("--resume", "--only_report")
ROUNDS = 4


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    Parameters
    ----------
    study : its folder and the configuration that trials change
    trials : in all; of a population, its members
    at_once : trials side by side; 0: as many as the cluster has room for, while the study goes on
    compute : budgets of a scaling study, as multiples of the base model's operations
    equal : samples or compute: what the trials of a scaling study have alike
    search : what proposes the settings, one of SEARCHES
    vary : of a study of options: `option=a..b` or `option=a,b,c`
    stop_early : trials that fall behind others of the same compute
    only_report : make no trial, only the report of those that there are
    rounds : of a population, each of which makes a trial of every member; else 1
    """

    study: Study
    trials: int
    at_once: int
    compute: tuple[float, ...] = (1.0, 2.0, 4.0)
    equal: str = "samples"
    search: str = "settings"
    vary: tuple[str, ...] = ()
    stop_early: bool = False
    only_report: bool = False
    rounds: int = 1

    def plan(self) -> Plan:
        """What the study asks, and the search that proposes its trials.

        Raises
        ------
        ConfigError : it cannot be asked so, or a trial's configuration cannot work
        """
        return make_plan(self.study, self._question(), self.search, self.trials, self.rounds)

    def _question(self) -> Question:
        match self.study.question:
            case "scaling":
                return Scaling(self.study.base, self.trials, self.compute, self.equal)
            case "options" if self.search == "population":
                return LearningRate(self.study.base, self.trials, self.rounds, self.vary)
            case "options":
                return Options(self.study.base, self.trials, self.vary)
        return Temperature(self.study.base, self.trials)

    def to_json(self) -> bytes:
        """All but the base configuration, which lies beside it."""
        state: dict[str, Any] = {
            "format": 1,
            "question": self.study.question,
            "trials": self.trials,
            "at_once": self.at_once,
        }
        state |= {key: getattr(self, key) for key in KEPT}
        return json.dumps(state, indent=1).encode()


def parse(argv: list[str], description: str) -> Asked:
    """Read the command line; what it does not know is an option of a run.

    Raises
    ------
    ConfigError : an unknown question or option, a study to go on with that is not there, or one that is there already
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--study", choices=STUDIES, default="temperature")
    parser.add_argument("--base", default=cli.DEFAULT_RECIPE, help="recipe or YAML file that trials change")
    parser.add_argument("--trials", type=int, default=12, help="in all; population: its members")
    parser.add_argument("--compute", default="1,2,4", help="scaling: budgets, as multiples of the base model's")
    parser.add_argument("--equal", choices=("samples", "compute"), default="samples", help="scaling: for all trials")
    parser.add_argument(
        "--search",
        choices=SEARCHES,
        help="settings: the study's own choice of them; options: optuna where none is named; population: options alone",
    )
    parser.add_argument("--rounds", type=int, help=f"population: parts of training, {ROUNDS} where none is named")
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="OPTION=VALUES",
        help="options: a..b (a range) or a,b,c; repeat it",
    )
    parser.add_argument("--at_once", type=int, default=0, help="trials side by side; 0: as many as there is room for")
    parser.add_argument("--stop_early", action="store_true", help="trials that fall behind others of the same compute")
    parser.add_argument("--name", default="", help="of the study's folder under run.storage_path")
    parser.add_argument("--resume", default="", metavar="FOLDER", help="of a study that was cut off")
    parser.add_argument("--only_report", action="store_true", help="with --resume: of the trials that there are")
    known, rest = parser.parse_known_args(argv)
    if known.resume:
        rest = [word for word in argv if word.startswith("--") and word.partition("=")[0] not in GOING_ON]
        return dataclasses.replace(_resume(known.resume.rstrip("/"), rest), only_report=known.only_report)
    if known.only_report:
        raise ConfigError("--only_report: name the study with --resume FOLDER")
    if known.vary and known.study != "options":
        raise ConfigError(f"--vary {known.vary[0]}: for --study options alone")
    if known.search == "population":
        if known.study != "options":
            raise ConfigError(f"--search population: for --study options {VARY} alone")
        if known.stop_early:
            raise ConfigError("--stop_early: in a population the best take the place of the worst; leave it out")
        known.rounds = ROUNDS if known.rounds is None else known.rounds
    elif known.rounds is not None:
        raise ConfigError(f"--rounds {known.rounds}: for --search population alone")
    base = cli.parse(["--config", known.base, *rest], description)
    if known.study == "scaling" and base.train.half_resolution:
        print("train.half_resolution=0: a budget counts whole pictures, and not every size can be halved", flush=True)
        base.train.half_resolution = 0.0
    name = known.name or f"tune-{known.study}"
    uri = storage.join(storage.absolute(base.run.storage_path), name)
    if storage.exists(storage.join(uri, "study.json")):
        raise ConfigError(f"{uri} holds a study already: go on with --resume {uri}, or choose another --name")
    try:
        compute = tuple(float(part) for part in known.compute.split(","))
    except ValueError:
        raise ConfigError(f"--compute {known.compute}: numbers with commas between, such as 1,2,4") from None
    return Asked(
        Study(known.study, uri, base), known.trials, known.at_once, compute, known.equal,
        known.search or ("optuna" if known.study == "options" else "settings"), tuple(known.vary), known.stop_early,
        rounds=1 if known.rounds is None else known.rounds,
    )  # fmt: skip


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
    study = Study(saved["question"], uri, base)
    known: dict[str, Any] = {key: saved[key] for key in KEPT if key in saved}
    known |= {key: tuple(value) for key, value in known.items() if isinstance(value, list)}
    return Asked(study, saved["trials"], saved["at_once"], **known)


def run(asked: Asked, plan: Plan, measure: Measure) -> str:
    """Make the trials that are still to be made, and the report; returns the report's folder. Ray must be initialised.

    Raises
    ------
    ConfigError : a trial that cannot be made of the data there is, found before the first one starts
    """
    study, question = asked.study, plan.question
    study.prepare(plan.examples, asked.rounds)
    storage.write_bytes(storage.join(study.uri, "study.json"), asked.to_json())
    if asked.only_report:
        trials = read_trials(study)
    else:
        scheduler = early_stopping(study.flops(plan.examples)) if asked.stop_early else None
        room = room_for(study.base, nodes(), uses_gpu(study.base), asked.at_once)
        if asked.at_once > room:
            cure = "unless nodes are added, trials may wait for each other's CPUs"
            print(f"--at_once {asked.at_once}: the cluster has room for {room}; {cure}", flush=True)
        trials = run_study(study, plan.search, plan.trials, measure, asked.at_once, scheduler)
    answer = question.answer(trials)
    print("\n".join(answer.sentences), flush=True)
    report = storage.join(study.uri, "report")
    write_report(report, question.title, trials, answer, question.figures(trials))
    return report
