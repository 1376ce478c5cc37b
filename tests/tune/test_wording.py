"""Names of options as people read them."""

from orchestrator.tune import wording


def test_short_names_tell_options_apart():
    assert wording.short_names(["model.vision.width", "model.text.width", "optim.lr", "lr"]) == {
        "model.vision.width": "vision.width", "model.text.width": "text.width", "optim.lr": "optim.lr", "lr": "lr",
    }  # fmt: skip
