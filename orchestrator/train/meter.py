"""What training costs: speed, waiting, arithmetic and memory since the last reading."""

from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Iterator

import torch

from orchestrator.model.scaling import Flops

# Dense bf16 rates in FLOP/s that the makers state, by the start of the device's name.
PEAK_FLOPS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
}


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a device; None where its name is not known."""
    return next((flops for start, flops in PEAK_FLOPS.items() if device_name.startswith(start)), None)


class Meter:
    """Samples a second and where the time went.

    Parameters
    ----------
    context_length : positions of the text tower
    devices : that share the work
    device : this worker's
    """

    def __init__(self, context_length: int, devices: int, device: torch.device):
        self._context_length = context_length
        self._device = device
        peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._peak_flops = peak and peak * devices
        self._first_batch_s: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._start, self._samples, self._flops = time.perf_counter(), 0, 0.0
        self._spent_s = {"data": 0.0, "checkpoint": 0.0}

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Time that training waits: for `data`, or for a `checkpoint`."""
        start = time.perf_counter()
        yield
        waited_s = time.perf_counter() - start
        if what == "data" and self._first_batch_s is None:
            # The first batch waits for the pipeline to start; it would hide the steady state.
            self._first_batch_s = waited_s
            self._start = time.perf_counter()
        else:
            self._spent_s[what] += waited_s

    def add(self, samples: int, positions: int, flops: Flops) -> None:
        """Count a step.

        Parameters
        ----------
        samples : over all workers
        positions : of the longest text
        flops : of a forward pass of one pair, with all of the text tower's positions
        """
        self._samples += samples
        # The backward pass does twice the work of the forward pass.
        self._flops += 3 * samples * (flops.image + flops.text * positions / self._context_length)

    def read(self) -> dict[str, float]:
        """Since the last reading: samples_per_s; data_wait and checkpoint_stall as shares of the time; flops, FLOP/s of
        all workers' forward and backward passes, of the positions that were computed; mfu, their share of what the
        devices can do, where that is known; peak_memory_gb of this worker's process, or of its GPU."""
        elapsed_s = time.perf_counter() - self._start
        samples_per_s = self._samples / elapsed_s
        reading = {
            "samples_per_s": samples_per_s,
            "data_wait": self._spent_s["data"] / elapsed_s,
            "checkpoint_stall": self._spent_s["checkpoint"] / elapsed_s,
            "first_batch_s": self._first_batch_s or 0.0,
            "flops": self._flops / elapsed_s,
            "peak_memory_gb": self._peak_memory_bytes() / 1e9,
        }
        if self._peak_flops:
            reading["mfu"] = reading["flops"] / self._peak_flops
        self._reset()
        return reading

    def _peak_memory_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
