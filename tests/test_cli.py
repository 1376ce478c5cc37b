"""What a user types, and what a mistake answers."""

import subprocess
import sys

import pytest
import yaml
from ray_cluster import REPOSITORY

from orchestrator import cli
from orchestrator.config import Config, ConfigError


def parse(*argv):
    return cli.parse(list(argv), "")


def test_overrides_beat_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {epochs: 7, global_batch: 64}\ndata: {train: ['a.tar']}\n")
    config = parse("--config", str(file), "--train.epochs", "2")
    assert (config.train.epochs, config.train.global_batch, config.data.train) == (2, 64, ["a.tar"])


def test_shards_as_one_pattern_or_as_the_shell_expanded_them():
    assert parse("--data.train", "s3://b/{00..12}.tar").data.train == "s3://b/{00..12}.tar"
    assert parse("--data.train", "a.tar", "b.tar", "--run.seed", "3").data.train == ["a.tar", "b.tar"]


def test_the_resolved_config_is_read_again_unchanged(tmp_path):
    config = parse("--train.epochs", "3", "--data.train", "a.tar", "--model.vision.layers", "[2,2,2,2]")
    file = tmp_path / "saved.yaml"
    file.write_text(cli.to_yaml(config))
    assert parse("--config", str(file)) == config


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train.epoch", "2"], "train.epoch: no such option; did you mean train.epochs?"),
        (["--optim.epochs", "2"], "optim.epochs: no such option; did you mean train.epochs?"),
        (["--train.epochs", "two"], "train.epochs"),
        (["--run.resume", "perhaps"], "run.resume"),
        (["--config", "dmo"], "neither a recipe nor a file"),
    ],
)
def test_mistakes_on_the_command_line(argv, message):
    with pytest.raises(ConfigError) as error:
        parse(*argv)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_job_tells_a_mistake_before_it_loads_torch():
    command = [sys.executable, "-X", "importtime", "jobs/pretrain.py", "--train.epoch", "2"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    lines = done.stderr.splitlines()
    assert "error: train.epoch: no such option; did you mean train.epochs? (--help lists all)" in lines
    loaded = {line.rpartition("|")[2].strip() for line in lines}
    assert "orchestrator.cli" in loaded
    assert "torch" not in loaded


def test_unknown_key_in_a_file_names_the_nearest(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump({"optim": {"weigth_decay": 0.1}}))
    with pytest.raises(ConfigError, match=r"did you mean optim.weight_decay\?"):
        parse("--config", str(file))


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("train", {"global_batch": 7, "num_workers": 4}, "train.global_batch=7: .*train.num_workers=4"),
        ("model", {"image_size": 100}, "must divide model.image_size=100"),
        ("data", {"train": []}, "data.train"),
        ("data", {"crop_scale": 0.0}, "data.crop_scale=0.0"),
        ("data", {"max_reject_share": 2.0}, "data.max_reject_share=2.0"),
        ("optim", {"beta2": 1.0}, "optim.beta2=1.0"),
        ("run", {"name": "a/b"}, "run.name='a/b'"),
        ("tokenizer", {"vocab_size": 100}, "tokenizer.vocab_size=100"),
        ("evaluation", {"templates": ["a photo"]}, "needs {c}"),
    ],
)
def test_impossible_combinations(section, changes, message):
    config = Config()
    config.data.train = ["a.tar"]
    config.validate()
    for key, value in changes.items():
        setattr(getattr(config, section), key, value)
    with pytest.raises(ConfigError, match=message):
        config.validate()


def test_the_recipe_is_the_last_that_is_named():
    assert cli.recipe_of([]) == "demo"
    assert cli.recipe_of(["--train.epochs", "2", "--config", "rn50"]) == "rn50"
    assert cli.recipe_of(["--config", "rn50", "--config=mine.yaml", "--run.seed", "3"]) == "mine.yaml"
