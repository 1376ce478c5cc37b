"""Where the cluster has no room, the job says what it needs and what there is."""

from __future__ import annotations

import pytest
import ray
from ray_cluster import wait_until

from orchestrator.config import Config
from orchestrator.train.progress import ProgressDisplay, RunBoard
from orchestrator.train.waiting import explain_waiting


@pytest.fixture(scope="module")
def small_ray():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@ray.remote
class Holder:
    """Holds the CPUs that it was given, as a trainer or a reading task does."""

    def ready(self) -> bool:
        return True


def hold(cpus):
    holder = Holder.options(num_cpus=cpus).remote()
    ray.get(holder.ready.remote())
    return holder


def config_of(workers, cpus_per_worker, cpus_per_reader):
    config = Config()
    config.train.num_workers, config.train.cpus_per_worker = workers, cpus_per_worker
    config.train.device, config.data.cpus_per_reader = "cpu", cpus_per_reader
    return config


def test_no_place_for_the_trainers(small_ray):
    said = explain_waiting(config_of(3, 1.0, 1.0), workers=0)
    assert "3 trainers need 3 CPUs" in said and "the cluster has 2 CPUs" in said and "train.num_workers" in said


def test_no_place_for_reading_beside_the_trainers(small_ray):
    config = config_of(2, 0.8, 0.5)

    def free():
        return ray.available_resources().get("CPU", 0.0)

    trainers = [hold(0.8), hold(0.8)]
    wait_until(lambda: free() < 0.5, "the trainers' reservation")
    said = explain_waiting(config, workers=2)
    assert "a reading task needs 0.5 CPUs" in said and "more than 0.4 free" in said
    assert "2 trainers hold 1.6 of the cluster's 2 CPUs" in said
    assert explain_waiting(config_of(2, 0.8, 0.4), workers=2) == ""
    for trainer in trainers:
        ray.kill(trainer)
    # One trainer less and a reading task that runs: nothing is lacking.
    wait_until(lambda: free() == 2.0, "the end of the trainers")
    holders = [hold(1.4), hold(0.5)]
    wait_until(lambda: free() < 0.2, "the reading task's reservation")
    assert explain_waiting(config_of(1, 1.4, 0.5), workers=1) == ""
    for holder in holders:
        ray.kill(holder)


def test_it_is_said_once_the_run_has_not_moved_for_a_while(small_ray, capsys):
    board, asked = RunBoard.remote("mine"), []

    def explain(workers):
        asked.append(workers)
        return f"waiting: {workers} workers lack a CPU"

    with ProgressDisplay(board, explain, patience_s=0.0):
        ray.get([board.begin.remote(0), board.placed.remote(3)])
        wait_until(lambda: 3 in asked, "the question what is lacking")
        board.say.remote("a message")
        record = {"step": 4, "total_steps": 9, "epoch": 0.1, "loss": 1.0, "logit_scale": 14.3, "samples_per_s": 10.0,
                  "workers": 3, "data_wait": 0.5, "eta_s": 7261.0}  # fmt: skip
        ray.get(board.post.remote(record))
    out = capsys.readouterr().out
    assert "waiting: 3 workers lack a CPU" in out
    assert "a message" in out
    assert "step 4/9  epoch 0.10  loss 1.000  scale 14.3  10 samples/s  3 workers  data wait 50%  ETA 2:01:01" in out


def test_all_workers_of_a_group_hear_the_same_about_going_back(small_ray):
    board = RunBoard.remote("mine")

    def asked():
        return [ray.get(board.may_roll_back.remote("why", 1)) for _ in range(2)]

    ray.get(board.begin.remote(0))
    assert asked() == [True, True]
    ray.get(board.begin.remote(0))
    assert asked() == [False, False]
