"""What a user may vary, and how it is written."""

import pytest

from orchestrator.config import ConfigError
from orchestrator.tune.space import values
from orchestrator.tune.vary import parse_space


@pytest.mark.parametrize(
    ("word", "option", "found"),
    [
        ("optim.lr=1e-4..1e-2", "optim.lr", [1e-4, 1e-3, 1e-2]),
        ("optim.lr=1..3", "optim.lr", [1.0, 2.0, 3.0]),
        ("optim.weight_decay=0..0.2", "optim.weight_decay", [0.0, 0.1, 0.2]),
        ("train.epochs=2..6", "train.epochs", [2, 4, 6]),
        ("train.global_batch=128,256", "train.global_batch", [128, 256]),
        ("train.precision=fp32,bf16", "train.precision", ["fp32", "bf16"]),
        ("optim.learn_temperature=true,false", "optim.learn_temperature", [True, False]),
        ("model.vision.layers=[1,1,1,1],[2,2,2,2]", "model.vision.layers", [[1, 1, 1, 1], [2, 2, 2, 2]]),
        ("train.compile=auto,false", "train.compile", ["auto", False]),
        ("optim.lr=3e-4", "optim.lr", [3e-4]),
    ],
)
def test_values_have_the_option_s_type(word, option, found):
    space = parse_space([word])
    assert list(space) == [option]
    parsed = values(space[option], 3)
    assert parsed == pytest.approx(found) if isinstance(found[0], float) else parsed == found
    assert [type(value) for value in parsed] == [type(value) for value in found]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--vary: name what"),
        (["optim.lr"], "--vary optim.lr: give it values"),
        (["optim.lr="], "give it values"),
        (["optim.learning_rat=1..2"], "optim.learning_rat: no such option"),
        (["lr=1,2"], "did you mean optim.lr"),
        (["model.vision={}"], "no value of model.vision"),
        (["optim.lr=1e-2..1e-4"], "from a smaller to a larger"),
        (["optim.lr=1..1"], "from a smaller to a larger"),
        (["optim.lr=1e-4.."], "no value of optim.lr"),
        (["optim.lr=0..inf"], "optim.lr=0..inf: optim.lr: Expected"),
        (["optim.lr=a..b"], "Got value: a"),
        (["train.epochs=1.5..3"], "Got value: 1.5"),
        (["train.precision=fp32..bf16"], "a range is of numbers"),
        (["train.precision=fp32,fp8"], "Got value: fp8"),
        (["optim.lr=1,,2"], "no value of optim.lr"),
        (["optim.lr=1,1.0"], "named twice"),
        (["optim.lr=1,2", "optim.lr=3,4"], "varied already"),
        (["run.seed=1,2"], "run.seed is the same in all trials"),
        (["data.train=a,b"], "data.train is the same"),
        (["tokenizer.vocab_size=600,700"], "tokenizer.vocab_size is the same"),
    ],
)
def test_what_cannot_be_varied_is_named(words, named):
    with pytest.raises(ConfigError) as caught:
        parse_space(words)
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert not words or words[-1] in str(caught.value)
