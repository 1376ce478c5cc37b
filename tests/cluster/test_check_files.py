"""The preflight of a `ray up` file: each failure that it names."""

from __future__ import annotations

import io
import tarfile

import pytest
import yaml

from cluster.check import check, main
from orchestrator.config import Config

ANYWHERE = ["--placement.data", "{}", "--placement.train", "{}"]
SHAPE = {"head": (0, 0, 0), "cpu": (2, 8, 0), "gpu": (4, 16, 4)}


def write_file(folder, shape=SHAPE, **fields):
    """A file for AWS: node types by name, each (max_workers, CPUs, GPUs)."""
    types = {
        name: {
            "max_workers": most,
            "resources": {"CPU": cpus, "GPU": gpus},
            "node_config": {"InstanceType": "m5.large"},
        }
        for name, (most, cpus, gpus) in shape.items()
    }
    content = {
        "cluster_name": "test",
        "max_workers": 6,
        "provider": {"type": "aws", "region": "us-west-2"},
        "auth": {"ssh_user": "ubuntu"},
        "available_node_types": types,
        "head_node_type": "head",
        **fields,
    }
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


def configured(folder, **train):
    """A run beside a shard that can be read."""
    with tarfile.open(folder / "0.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("0.txt"), io.BytesIO())
    config = Config()
    config.run.storage_path = str(folder / "runs")
    config.data.train = [str(folder / "0.tar")]
    for name, value in train.items():
        setattr(config.train, name, value)
    return config


def found(lines, status):
    return {line.check for line in lines if line.status == status}


def only(lines, check):
    return next(line for line in lines if line.check == check)


def test_all_is_well(tmp_path):
    lines = check(write_file(tmp_path), configured(tmp_path, num_workers=16), 60)
    assert [(line.status, line.check) for line in lines] == [
        ("ok", "file"), ("ok", "resources"), ("ok", "storage"), ("ok", "shards"),
    ]  # fmt: skip
    assert not list((tmp_path / "runs").iterdir())


def test_the_command_says_each_line_and_fails_for_one(tmp_path, capsys):
    options = ["--config", "vit-b-32", "--run.storage_path", str(tmp_path), "--data.train", str(tmp_path / "none.tar")]
    assert main([write_file(tmp_path), *options, "--train.num_workers", "2", *ANYWHERE]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", "file"], ["ok", "resources"], ["ok", "storage"], ["fail", "shards"], ["4", "checks,"],
    ]  # fmt: skip
    assert "none.tar: no such object" in lines[3]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_wrokers": 3}, "max_wrokers"),
        ({"head_node_type": "tail"}, "head_node_type"),
        ({"max_workers": "six"}, "six"),
    ],
)
def test_a_file_that_ray_refuses(tmp_path, fields, words):
    lines = check(write_file(tmp_path, **fields), configured(tmp_path), 60)
    assert only(lines, "file").status == "fail"
    assert words in only(lines, "file").seen
    assert "resources" not in {line.check for line in lines}


@pytest.mark.parametrize("text", ["a: [1", "- 1", ""])
def test_a_file_that_is_none(tmp_path, text):
    (tmp_path / "cluster.yaml").write_text(text)
    assert found(check(str(tmp_path / "cluster.yaml"), configured(tmp_path), 60), "fail") == {"file"}


def test_a_file_that_is_absent(tmp_path):
    lines = check(str(tmp_path / "absent.yaml"), configured(tmp_path), 60)
    assert "No such file" in only(lines, "file").seen


@pytest.mark.parametrize(
    ("train", "shape", "most", "status", "room"),
    [
        # 4 nodes of 4 GPUs; the reading task finds a place beside them.
        ({"num_workers": 16}, SHAPE, 6, "ok", 16),
        ({"num_workers": 17}, SHAPE, 6, "fail", 16),
        ({"num_workers": "2..17"}, SHAPE, 6, "warn", 16),
        # The file's own max_workers counts.
        ({"num_workers": 9}, SHAPE, 2, "fail", 8),
        # CPUs bind: 16 CPUs hold one trainer of 12.
        ({"num_workers": 5, "cpus_per_worker": 12.0}, SHAPE, 6, "fail", 4),
        # Without GPUs: trainers of 2 CPUs, and one of 8 CPUs' nodes gives one to the reader.
        ({"num_workers": 7, "cpus_per_worker": 2.0}, {"head": (0, 0, 0), "cpu": (2, 8, 0)}, 6, "ok", 7),
        ({"num_workers": 8, "cpus_per_worker": 2.0}, {"head": (0, 0, 0), "cpu": (2, 8, 0)}, 6, "fail", 7),
        ({"num_workers": 1, "device": "gpu"}, {"head": (0, 0, 0), "cpu": (2, 8, 0)}, 6, "fail", 0),
    ],
)
def test_node_types_against_what_is_asked(tmp_path, train, shape, most, status, room):
    line = only(check(write_file(tmp_path, shape, max_workers=most), configured(tmp_path, **train), 60), "resources")
    assert line.status == status
    assert f"room for {room}" in line.seen
    assert bool(line.cure) == (status != "ok")


def test_no_place_for_the_reading_task(tmp_path):
    config = configured(tmp_path)
    config.data.cpus_per_reader = 17.0
    line = only(check(write_file(tmp_path), config, 60), "resources")
    assert (line.status, "no node has room for the reading task" in line.seen) == ("fail", True)


def test_a_bucket_in_use_is_left_as_it_was(tmp_path, s3):
    import boto3

    config = configured(tmp_path)
    config.run.storage_path = s3.uri("runs")
    assert only(check(write_file(tmp_path), config, 60), "storage").status == "ok"
    assert boto3.client("s3").list_objects_v2(Bucket=s3.bucket)["KeyCount"] <= 1  # the folder's own mark


def test_a_missing_bucket(tmp_path, s3):
    config = configured(tmp_path)
    config.run.storage_path = "s3://no-such-bucket-here/runs"
    line = only(check(write_file(tmp_path), config, 60), "storage")
    assert line.status == "fail"
    assert "no-such-bucket-here" in line.seen and line.cure


def test_a_bucket_that_refuses(tmp_path, s3, refusing_s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", refusing_s3_server)
    config = configured(tmp_path)
    config.run.storage_path = s3.uri("runs")
    line = only(check(write_file(tmp_path), config, 60), "storage")
    assert line.status == "fail"
    assert "denied" in line.seen


def test_a_disk_that_cannot_be_written(tmp_path):
    config = configured(tmp_path)
    (tmp_path / "file").write_text("")
    config.run.storage_path = str(tmp_path / "file/runs")
    assert only(check(write_file(tmp_path), config, 60), "storage").status == "fail"
