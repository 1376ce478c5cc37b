"""Ray on this machine, where a start fails."""

import pytest
import ray

from orchestrator.config import Config
from orchestrator.train.cluster import connect

SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup"


@pytest.mark.parametrize(
    ("failures", "starts"),
    [([SLOW], 2), ([SLOW] * 3, 4), ([SLOW] * 4, 4), (["no space left"], 1), ([SLOW, "no space left"], 2)],
)
def test_a_start_that_took_too_long_is_tried_again(failures, starts, monkeypatch):
    asked = []

    def init(**options):
        asked.append(options)
        if len(asked) <= len(failures):
            raise Exception(failures[len(asked) - 1])

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if len(failures) < starts:
        assert connect(Config()).startswith("on this machine")
    else:
        with pytest.raises(Exception, match=failures[-1]):
            connect(Config())
    assert len(asked) == starts and all(options == asked[0] for options in asked)
    assert asked[0]["address"] == "local"
