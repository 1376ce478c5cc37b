"""What a study of named options tries, and what it says."""

import math

import pytest
import yaml

from orchestrator import cli
from orchestrator.config import Config, ConfigError
from orchestrator.tune.comparison import pareto_front
from orchestrator.tune.options import Options
from orchestrator.tune.trial import Trial

LR, BATCH = "optim.lr", "train.global_batch"


@pytest.fixture
def base() -> Config:
    return cli.parse(["--config", "demo", "--data.train", "shards/{0..3}.tar", "--optim.lr", "0.001"], "")


@pytest.fixture
def options(base) -> Options:
    return Options(base, 12, [f"{LR}=1e-4..1e-1", f"{BATCH}=64,128"])


def trial(place: int, lr: float, batch: int, seed: int, accuracy: float, flops: float = 1e9, **rest) -> Trial:
    fields = {"state": "done", "loss": 1 / accuracy, "accuracy": accuracy, "flops": flops, "step": 9, **rest}
    return Trial(f"{place:03d}-{seed}", {LR: lr, BATCH: batch}, seed, **fields)


def study(base: Config) -> list[Trial]:
    own = base.train.global_batch
    return [
        *(trial(0, 1e-3, own, seed, 0.40 + seed / 1000, 3e9) for seed in range(3)),
        *(trial(1, 1e-2, 64, seed, 0.50 + seed / 1000, 4e9) for seed in range(3)),
        trial(2, 1e-4, 64, 0, 0.30, 1e9),
        trial(3, 1e-4, 128, 0, 0.35, 5e9),
        trial(4, 1e-1, 128, 0, 0.1, 1e9, state="failed", error="diverged"),
    ]


def test_the_base_configuration_is_the_reference(base, options):
    (own,) = options.references()
    assert options.setting(own) == {LR: 0.001, BATCH: base.train.global_batch}
    assert options.title == "Which lr and global_batch should be chosen?"


def test_the_best_is_named_with_its_margin_over_the_base(base, options):
    said = options.answer(study(base))
    assert said.sentences[0] == "Best: lr=0.01, global_batch=64, accuracy 0.5010 ± 0.0010 (3 seeds)."
    assert f"own setting (lr=0.001, global_batch={base.train.global_batch}" in said.sentences[1]
    assert "+0.1000 (95% interval" in said.sentences[1] and "beyond the noise" in said.sentences[1]
    assert "1 of 9 trials failed" in said.sentences[-1]
    (rows,) = said.tables.values()
    assert [row["seeds"] for row in rows] == [3, 3, 1, 1]
    assert [row["lr"] for row in rows] == [1e-2, 1e-3, 1e-4, 1e-4]
    # The fourth costs more than all others and is worse than two of them.
    assert [row["on the Pareto front"] for row in rows] == ["yes", "yes", "", "yes"]
    (front,) = (one for one in said.sentences if one.startswith("Pareto front"))
    assert front.index("lr=0.0001") < front.index("lr=0.001,") < front.index("lr=0.01") and "3 of 4 settings" in front


def test_an_option_without_effect_is_named_and_wins_nothing(base, options):
    twin = trial(5, 1e-2, 256, 0, 0.50, 4e9)  # The best one's first run.
    said = options.answer([*study(base), twin])
    assert "global_batch=64" in said.sentences[0] and len(said.tables["Settings"]) == 5
    assert any("global_batch=256" in one and "had no effect" in one for one in said.sentences)


def test_the_recipe_is_the_winner(base, options, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(options.answer(study(base)).recipe_yaml)
    config = cli.parse(["--config", str(file)], "")
    config.validate()
    assert (config.optim.lr, config.train.global_batch, config.run.name) == (0.01, 64, "demo-options")
    before = base.as_dict()
    assert {key for key, value in yaml.safe_load(file.read_text()).items() if value != before[key]} == {
        "run", "optim", "train",
    }  # fmt: skip


def test_unfinished_studies_have_an_answer(base, options):
    assert "nothing to say" in options.answer([]).sentences[0]
    assert not any(options.figures([]).values())
    alone = options.answer([trial(1, 1e-2, 64, 0, 0.5)])
    assert "own setting has not ended" in alone.sentences[1]
    first = options.answer(study(base)[:3])
    assert "nothing that was tried is better" in first.sentences[1]
    blind = options.answer([trial(0, 1e-2, 64, 0, math.nan, loss=2.0)])
    assert "loss 2.0000" in blind.sentences[0] and "Pareto front, loss against" in blind.sentences[2]


def test_figures(base, options):
    figures = options.figures(study(base))
    assert list(figures) == [
        "All settings", "Accuracy against lr", "Accuracy against global_batch", "Accuracy against compute",
    ]  # fmt: skip
    assert all(figure is not None for figure in figures.values())
    (axes,) = figures["Accuracy against compute"].axes
    settings, front = axes.lines
    assert sorted(settings.get_xdata()) == [1e9, 3e9, 4e9, 5e9]
    assert list(front.get_xdata()) == [1e9, 3e9, 4e9]
    assert list(front.get_ydata()) == pytest.approx([30, 40.1, 50.1])


def test_a_front_has_what_no_other_beats_in_both():
    def one(accuracy: float, flops: float) -> list[Trial]:
        return [trial(0, 1, 1, 0, accuracy, flops)]

    groups = [one(0.5, 2.0), one(0.4, 1.0), one(0.4, 3.0), one(0.5, 2.5), one(0.6, 4.0), one(0.3, 1.0)]
    assert pareto_front(groups) == [groups[1], groups[0], groups[4]]


def test_bad_input(base):
    with pytest.raises(ConfigError, match="--trials 1"):
        Options(base, 1, [f"{LR}=1,2"])
    with pytest.raises(ConfigError, match="--vary: name what"):
        Options(base, 9, [])
    with pytest.raises(ConfigError, match="choose grid, random or optuna"):
        Options(base, 9, [f"{LR}=1,2"]).settings()
