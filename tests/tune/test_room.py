"""How many trials have a place side by side, against places tried one by one."""

from __future__ import annotations

import functools

import pytest

from orchestrator.config import Config
from orchestrator.tune.room import Node, at_once, room_for

DATA, TRAIN = {"role": "data"}, {"role": "train"}


def config(workers=1, cpus=1.0, reader=1.0, gpus=1.0, placed=False):
    made = Config()
    made.train.num_workers, made.train.cpus_per_worker, made.train.gpus_per_worker = workers, cpus, gpus
    made.data.cpus_per_reader = reader
    if placed:
        made.placement.data, made.placement.train = DATA, TRAIN
    return made


@functools.cache
def has_places(asked, free):
    """Whether all have a place, by every way to give them one: CPUs of each, CPUs of each node."""
    if not asked:
        return True
    first, *rest = asked
    return any(
        has_places(tuple(rest), tuple(sorted((*free[:at], round(cpus - first, 6), *free[at + 1 :]))))
        for at, cpus in enumerate(free)
        if cpus >= first
    )


@pytest.mark.parametrize("sizes", [(4,), (2, 2), (1, 3), (5, 1, 1), (2.02, 0)])
@pytest.mark.parametrize(("workers", "cpus", "reader"), [(1, 1, 1), (2, 0.5, 1), (1, 1, 0.5), (2, 1, 0.25)])
def test_every_trial_counted_has_its_places_and_one_more_has_none(sizes, workers, cpus, reader):
    room = room_for(config(workers, cpus, reader), [Node(size) for size in sizes], gpu=False, most=9)

    def hold(trials):
        return has_places((cpus,) * workers * trials + (reader,) * trials + (0.01,) * trials, tuple(sorted(sizes)))

    assert hold(room) and not hold(room + 1)


def test_two_cpus_do_not_hold_a_trainer_a_reader_and_the_trial():
    assert room_for(config(), [Node(2)], False, 9) == 0
    assert room_for(config(reader=0.9), [Node(2)], False, 9) == 1


def test_no_process_has_parts_of_two_gpus():
    nodes = [Node(64, 2)]
    assert room_for(config(gpus=0.4), nodes, True, 99) == 4
    assert room_for(config(gpus=0.1), nodes, True, 99) == 20
    assert room_for(config(gpus=1.0), nodes, True, 99) == 2


def test_trainers_and_readers_keep_to_their_nodes():
    nodes = [Node(64, 4, TRAIN), Node(3, 0, DATA)]
    assert room_for(config(placed=True), nodes, True, 99) == 2  # the third's own 0.01 CPUs are not there
    assert room_for(config(placed=True), nodes[:1], True, 99) == 0


def test_a_cluster_that_grows_is_asked_for_as_much_again():
    nodes = [Node(4, 0, {}), Node(4, 0, {})]
    needs = config(workers=2, cpus=1.0, reader=1.0)
    assert at_once(needs, nodes, False, 12, grows=False) == 2
    assert at_once(needs, nodes, False, 12, grows=True) == 4
    assert at_once(needs, nodes, False, 3, grows=True) == 3
    # Nothing there yet, as where a head has no CPUs: the first trial asks for it.
    assert at_once(needs, [Node(0)], False, 12, grows=True) == 1


def test_who_could_start_and_find_nobody_to_read_is_not_let_in():
    """The second's trainer would fit, its reading task would not, nor then the first's."""
    assert at_once(config(reader=0.5), [Node(2.6)], False, 12, grows=True) == 1
    # Nodes for training come, those for reading hold no more.
    nodes = [Node(8, 1, TRAIN), Node(1.1, 0, DATA)]
    assert at_once(config(placed=True), nodes, True, 12, grows=True) == 1
    assert at_once(config(placed=True), [nodes[0], Node(2.1, 0, DATA)], True, 12, grows=True) == 2
