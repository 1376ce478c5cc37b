"""What a trial says, in a process of its own, is shown where the study is watched."""

from __future__ import annotations

import io

import pytest
import ray
from ray_cluster import wait_until
from rich.console import Console

from orchestrator.config import Config, ConfigError
from orchestrator.train.progress import RunBoard
from orchestrator.tune import notices
from orchestrator.tune.progress import StudyDisplay
from orchestrator.tune.room import require_room
from orchestrator.tune.study import _Reporter


@pytest.fixture(scope="module", autouse=True)
def small_cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@ray.remote(num_cpus=0)
def trial(board) -> None:
    reporter = _Reporter(board, lambda workers: "waiting for a place", "003-0", lambda record: {})
    reporter._patience_s = -1.0
    reporter._show(last=False)


def test_messages_of_a_run_and_what_it_waits_for_are_shown_with_its_name():
    board = RunBoard.remote("003-0")
    ray.get(board.say.remote("going back to the last checkpoint: a loss of nan"))
    out = io.StringIO()
    display = StudyDisplay(2, console=Console(file=out, width=200))
    with notices.gathered():
        ray.get(trial.remote(board))

        def shown() -> list[str]:
            display._listened_at = 0.0
            display.on_step_end(0, [])
            return out.getvalue().splitlines() if out.getvalue().count("\n") == 2 else []

        lines = wait_until(shown, "the trial's lines")
    assert lines == ["003-0: going back to the last checkpoint: a loss of nan", "003-0: waiting for a place"]


def test_nobody_listening_stops_no_trial():
    notices.tell("001-0: anything")
    assert notices.take() == []


def test_a_trial_that_no_node_holds_is_refused_with_what_it_needs_and_what_there_is():
    config = Config()
    config.train.num_workers, config.train.cpus_per_worker, config.data.cpus_per_reader = 2, 0.5, 0.5
    require_room([config])
    config.train.num_workers = 4
    with pytest.raises(
        ConfigError, match=r"train\.num_workers=4: .* needs 4 x 0\.5 CPUs .* nodes have 2 CPUs and 0 GPUs"
    ):
        require_room([config])
