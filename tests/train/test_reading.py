"""The process that splits the data, whenever training processes start."""

import subprocess
import sys

from ray_cluster import REPOSITORY


def test_it_loads_no_torch_which_would_delay_each_start():
    code = "import sys, orchestrator.train.reading; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_that_it_asks_of_ray_is_deprecated():
    """Ray would say so between the job's own messages."""
    code = """
from orchestrator.config import Config
from orchestrator.train.reading import data_config

config = Config()
config.train.deterministic, config.placement.data = True, {"pool": "data"}
options = data_config(config)._resolve_execution_options("train")
assert (options.preserve_order, options.label_selector) == (True, {"pool": "data"})
config.train.deterministic, config.placement.data = False, {}
options = data_config(config)._resolve_execution_options("train")
assert (options.preserve_order, options.label_selector) == (False, None)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
