"""What a study shows while it runs."""

import io
import math
import pickle

from rich.console import Console

from orchestrator.tune.progress import StudyDisplay, line


def result(name: str, finished: bool = False, **rest) -> dict:
    config = {"name": name, "setting": {"model.init_temperature": 0.07}, "seed": 3}
    newest = {"step": 40, "loss": 2.5, "accuracy": math.nan, "flops": 1.5e12, "seconds": 12.4, "eta_s": 3725.0}
    return {"config": config, "finished": finished, **newest, **rest}


def test_a_log_gets_lines_now_and_then_and_every_end(capsys):
    display = StudyDisplay(2, interval_s=3600, console=Console(file=io.StringIO()))
    for step in range(5):
        display.on_trial_result(0, [], None, result("000-3", step=step))
    display.on_trial_result(0, [], None, result("000-3", finished=True, accuracy=0.25))
    first, last = capsys.readouterr().out.splitlines()
    assert first == ("[0/2] 000-3: init_temperature=0.07 seed=3  step 0  loss 2.500  1.50e+12 FLOPs  12 s  ETA 1:02:05")
    assert (
        last == "[1/2] 000-3: init_temperature=0.07 seed=3  step 40  loss 2.500  accuracy 25.0%  1.50e+12 FLOPs  12 s"
    )


def test_what_was_stopped_says_why():
    assert line(result("000-3", error="diverged", loss=math.nan)).endswith("seed=3  stopped: diverged")


def test_a_terminal_gets_a_table():
    out = io.StringIO()
    display = StudyDisplay(2, console=Console(file=out, force_terminal=True, width=140, color_system=None))
    display.on_trial_result(0, [], None, result("000-3"))
    display.on_trial_result(0, [], None, result("001-3", finished=True, accuracy=0.5))
    display.on_experiment_end([])
    text = out.getvalue()
    assert "1 of 2 trials have ended" in text and "1:02:05" in text and "50.0%" in text
    assert "000-3" in text and "001-3" in text


def test_tune_may_keep_it():
    display = StudyDisplay(7)
    assert pickle.loads(pickle.dumps(display)).table().title.endswith("of 7 trials have ended")
