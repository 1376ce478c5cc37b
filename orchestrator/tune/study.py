"""A study on Ray Tune: each trial is a pretraining run, with the trainer, data and checkpoints of any other.

<storage_path>/<name>/
  study.json                  the question, and how many trials
  config.yaml, manifest.json, tokenizer/
                              the configuration that trials change, and the data that all of them train on
  trials/<trial>/             the run folders
  tune/                       Tune's records, from which a study that was cut off goes on
  report/                     what came of it
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator import storage
from orchestrator.cli import to_yaml
from orchestrator.config import Config, ConfigError
from orchestrator.data.manifest import Manifest
from orchestrator.train.checkpoint import TrainState
from orchestrator.train.cluster import TRIAL_CPUS
from orchestrator.train.data_actors import make_data_actors
from orchestrator.train.inherit import inherit
from orchestrator.train.progress import ProgressDisplay
from orchestrator.train.resolution import Resolutions
from orchestrator.train.run import RunDirectory
from orchestrator.train.trainer import TrainingStopped, open_data, pretrain, total_steps
from orchestrator.train.waiting import require_placement
from orchestrator.tune import notices
from orchestrator.tune.population import check_rounds, round_end
from orchestrator.tune.progress import StudyDisplay
from orchestrator.tune.recipe import configured
from orchestrator.tune.reservations import FreeReservations
from orchestrator.tune.room import RoomLimiter, require_room
from orchestrator.tune.trial import Trial

# The share of a run's last records that its loss is the mean of: single steps are noisy.
LAST = 0.1

Measure = Callable[[str], float]


@dataclasses.dataclass(frozen=True)
class Study:
    """What all trials have in common.

    Parameters
    ----------
    question : temperature, scaling or options
    uri : of its folder
    base : the configuration that trials change
    """

    question: str
    uri: str
    base: Config

    def config(self, setting: Mapping[str, Any], name: str, seed: int) -> Config:
        """The configuration of one trial.

        Parameters
        ----------
        setting : option, such as model.init_temperature -> value
        name, seed : of its run

        Raises
        ------
        ConfigError : an option that does not exist, or a value that cannot work
        """
        config = configured(self.base, setting)
        runs = storage.join(self.uri, "trials")
        config.run = dataclasses.replace(config.run, name=name, seed=seed, resume="auto", storage_path=runs)
        config.validate()
        return config

    def prepare(self, settings: Iterable[Mapping[str, Any]], rounds: int = 1) -> None:
        """Pin the data and the vocabulary that all trials share, in a folder like a run's. Ray must be initialised.

        Parameters
        ----------
        settings : that trials have
        rounds : that a run is cut into

        Raises
        ------
        ConfigError : a setting whose global batch is larger than all that it trains on, more rounds than steps, or
            that the cluster has no place for
        """
        settings = list(settings)
        require_placement(self.base)
        require_room(self.config(setting, "counted", 0) for setting in settings)
        data = self._shared()
        if not data.started:
            manifest, tokenizer = open_data(self.base, data)
            for setting in settings:
                config = self.config(setting, "counted", 0)
                steps = total_steps(manifest.samples, config)
                if steps < 1:
                    raise ConfigError(
                        f"train.global_batch={config.train.global_batch}: more than the {manifest.samples} samples of "
                        f"{config.train.epochs} epochs; lower it or add data"
                    )
                check_rounds(rounds, steps)
            data.save(to_yaml(self.base), manifest, tokenizer)

    def _shared(self) -> RunDirectory:
        config = copy.deepcopy(self.base)
        folder, _, name = self.uri.rpartition("/")
        config.run = dataclasses.replace(config.run, storage_path=folder, name=name)
        return RunDirectory(config)

    def open_run(self, config: Config) -> Manifest:
        """Give a trial's folder the data and the vocabulary of the study."""
        run, shared = RunDirectory(config), self._shared()
        if not run.started:
            run.save(to_yaml(config), shared.load_manifest(), shared.load_tokenizer())
        return run.load_manifest()

    def flops(self, settings: Iterable[Mapping[str, Any]]) -> list[float]:
        """Floating point operations of whole trials, one a setting; the study must be prepared."""
        samples = self._shared().load_manifest().samples
        counted: dict[tuple[Any, ...], int] = {}  # counting takes a tenth of a second
        found = []
        for setting in settings:
            config = self.config(setting, "counted", 0)
            steps = total_steps(samples, config)
            key = repr(config.model), config.train.half_resolution, steps
            if key not in counted:
                counted[key] = Resolutions.of(config, steps).training(0, steps)
            found.append(float(config.train.global_batch * counted[key]))
        return found


class _Reporter(ProgressDisplay):
    """Tells Tune what a run records, and whoever watches the study what it says, rather than a terminal of its own."""

    def __init__(
        self, board: Any, explain_waiting: Callable[[int], str], name: str, cost: Callable[[Mapping[str, Any]], dict]
    ):
        super().__init__(board, explain_waiting, log_interval_s=0)
        self._name, self._cost, self._told = name, cost, 0

    def _report(self, record: dict[str, Any], last: bool) -> None:
        if record["step"] > self._told:
            self._told = record["step"]
            tune.report({**self._cost(record), "accuracy": math.nan, "eta_s": record["eta_s"], "finished": False})

    def _print(self, message: str) -> None:
        notices.tell(f"{self._name}: {message}")


def run_trial(spec: dict[str, Any], study: Study, measure: Measure) -> None:
    """One trial, in a process of Tune's: train, or go on, and measure.

    Parameters
    ----------
    spec : setting, name and seed; of a round of a population also round (from 0), rounds, and the name of its parent,
        empty in the first
    study : that it belongs to
    measure : URI of a run's folder -> its zero-shot accuracy, in [0, 1], or NaN
    """
    started = time.monotonic()
    config = study.config(spec["setting"], spec["name"], spec["seed"])
    manifest = study.open_run(config)
    run, parent = RunDirectory(config), spec.get("parent", "")
    start = inherit(run, storage.join(run.storage_path, parent)) if parent else TrainState()
    steps = total_steps(manifest.samples, config)
    resolutions = Resolutions.of(config, steps)

    def cost(record: Mapping[str, Any]) -> dict[str, Any]:
        samples, steps_made = round(record["epoch"] * manifest.samples) - start.samples, record["step"] - start.step
        flops = samples * resolutions.training(start.step, record["step"]) / max(1, steps_made)
        known = {key: record[key] for key in ("step", "loss", "logit_scale")}
        return {**known, "samples": samples, "flops": flops, "seconds": time.monotonic() - started}

    try:
        reporter = partial(_Reporter, name=spec["name"], cost=cost)
        pretrain(config, reporter, round_end(steps, spec.get("round", 0), spec.get("rounds", 1)))
    except TrainingStopped as error:  # Tune would try again, which does not help.
        tune.report({"finished": True, "error": str(error), "loss": math.nan, "accuracy": math.nan})
        return
    lines = storage.read_bytes(run.path("metrics.jsonl")).decode().splitlines()
    records = list(map(json.loads, lines))
    # Its own alone; bad samples may have made the data so short that it has none.
    records = [record for record in records if record["step"] > start.step] or records
    last = records[-max(1, round(LAST * len(records))) :]
    loss = sum(record["loss"] for record in last) / len(last)
    ended = {**cost(records[-1]), "loss": loss, "accuracy": measure(run.uri), "eta_s": 0.0, "finished": True}
    tune.report(ended)


def early_stopping(flops: Sequence[float], keep: float = 3.0) -> TrialScheduler:
    """Stops a trial whose loss is not among the best `1 / keep` of those that have spent as much compute.

    Parameters
    ----------
    flops : floating point operations of whole trials
    keep : at each `keep`-fold amount of compute, from a ninth of the cheapest trial on

    Source: Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning (ASHA). Compute in place of steps, so
    that a large model is not held against a small one that was cheaper.
    """
    return AsyncHyperBandScheduler(
        time_attr="flops", metric="loss", mode="min", max_t=int(max(flops) * 2), grace_period=int(min(flops) / 9),
        reduction_factor=keep,
    )  # fmt: skip


def run_study(
    study: Study,
    search: Searcher,
    trials: int,
    measure: Measure,
    at_once: int,
    scheduler: TrialScheduler | None = None,
) -> list[Trial]:
    """Make all trials of a study, or those that are still to be made. Ray must be initialised.

    Parameters
    ----------
    study : prepared
    search : proposes {setting, name, seed}, or what else run_trial knows
    trials : in all
    measure : as of run_trial
    at_once : trials that run side by side; 0: as many as the cluster has room for while the study goes on
    scheduler : stops trials early; None: every trial runs to its end

    Returns
    -------
    one Trial each, failed ones too
    """
    # A trial's process only waits: on the nodes for data, rather than on those that are dear or may be taken away.
    place = tune.PlacementGroupFactory([{"CPU": TRIAL_CPUS}], bundle_label_selector=[study.base.placement.data])
    trainable = tune.with_resources(tune.with_parameters(run_trial, study=study, measure=measure), place)
    filesystem, path = storage.open_location(storage.join(study.uri, "tune"))
    folder, _, name = path.rpartition("/")
    if tune.Tuner.can_restore(path, storage_filesystem=filesystem):
        tuner = tune.Tuner.restore(
            path, trainable=trainable, resume_unfinished=True, restart_errored=True, storage_filesystem=filesystem
        )
    else:
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=search if at_once else RoomLimiter(search, study.base, trials),
                num_samples=trials,
                scheduler=scheduler,
                max_concurrent_trials=at_once or None,
                metric=None if scheduler else "loss",  # else the scheduler's own
                mode=None if scheduler else "min",
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=folder,
                storage_filesystem=filesystem,
                # Of a trial's process; its run has as many of its own, and what would fail again is not tried again.
                failure_config=tune.FailureConfig(max_failures=study.base.train.max_failures),
                callbacks=[StudyDisplay(trials), FreeReservations()],
                verbose=0,
            ),
        )
    make_data_actors()
    with notices.gathered():
        tuner.fit()
    return read_trials(study)


def _name(trial: Any) -> str:
    return trial.config["name"]


def read_trials(study: Study) -> list[Trial]:
    """What Tune has recorded so far, of a study that may be unfinished."""
    filesystem, path = storage.open_location(storage.join(study.uri, "tune"))
    known = tune.ExperimentAnalysis(path, storage_filesystem=filesystem)
    frames = known.trial_dataframes
    return [
        trial_of(
            one.config, one.last_result or {}, frames.get(one.trial_id), one.get_pickled_error() or one.get_error()
        )
        for one in known.trials
    ]


def trial_of(
    spec: Mapping[str, Any], newest: Mapping[str, Any], history: pandas.DataFrame | None, failure: Exception | None
) -> Trial:
    """A row from what Tune knows of a trial.

    Parameters
    ----------
    spec : setting, name and seed
    newest : what it reported last; empty: nothing yet
    history : all that it reported, a row each
    failure : what ended it
    """
    error = str(failure) if failure else str(newest.get("error") or "")
    # What Tune has ended although it had more to do was stopped.
    unfinished = "stopped" if newest.get("done") else "running"
    state: Any = "failed" if error else "done" if newest.get("finished") else unfinished
    path: Sequence[Mapping[str, Any]] = []
    if history is not None and "step" in history:
        frame = history.dropna(subset=["step", "logit_scale"])
        path = frame[~frame["finished"].astype(bool)][["step", "loss", "logit_scale"]].to_dict("records")
    number = {key: newest.get(key) for key in ("step", "samples", "flops", "loss", "accuracy", "seconds")}
    return Trial(
        name=spec["name"],
        setting=dict(spec["setting"]),
        seed=spec["seed"],
        state=state,
        **{key: value for key, value in number.items() if value is not None},
        path=[(int(row["step"]), float(row["loss"]), float(row["logit_scale"])) for row in path],
        run=f"trials/{spec['name']}",
        error=error,
        parent=spec.get("parent", ""),
    )
