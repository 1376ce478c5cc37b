"""What is counted of a step's arithmetic is what was computed."""

import numpy as np
import pytest
import torch

from orchestrator.data.batch import positions
from orchestrator.model.scaling import Flops
from orchestrator.train.meter import Meter, peak_flops


def test_texts_count_up_to_the_last_position():
    meter = Meter(77, 1, torch.device("cpu"))
    flops = Flops(image=1000, text=770)
    meter.add(8, 30, flops)
    meter.add(4, 77, flops)
    read = meter.read()
    expected = 3 * (8 * (1000 + 300) + 4 * (1000 + 770))
    assert read["flops"] / read["samples_per_s"] == pytest.approx(expected / 12)
    assert "mfu" not in read and meter.read()["flops"] == 0


def test_positions_of_a_batch_are_those_of_its_longest_text():
    assert positions({"tokens": np.array([[5, 9, 0, 0], [5, 6, 9, 0], [9, 0, 0, 0]], np.int32)}) == 3


def test_a_devices_peak_is_known_by_the_start_of_its_name():
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12 and peak_flops("some other device") is None
