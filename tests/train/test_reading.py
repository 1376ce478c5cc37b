"""The process that splits the data, whenever training processes start."""

import subprocess
import sys

from ray_cluster import REPOSITORY


def test_it_loads_no_torch_which_would_delay_each_start():
    code = "import sys, orchestrator.train.reading; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
