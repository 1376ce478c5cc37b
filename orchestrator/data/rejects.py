"""Samples that could not be used: counted by reason, listed, and limited."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import ray

from orchestrator.data.shards import Reject


class RejectLimitExceeded(ValueError):
    """More of the data is bad than data.max_reject_share allows."""


class RejectLedger:
    """Counts each bad sample once, however many epochs meet it.

    Parameters
    ----------
    samples : of the manifest
    max_share : share of them that may be bad, 0 to 1
    """

    def __init__(self, samples: int, max_share: float):
        self._limit = int(samples * max_share)
        self._max_share = max_share
        self._samples = samples
        self._rejects: dict[tuple[str, int], Reject] = {}

    def add(self, rejects: Sequence[Reject]) -> str:
        """Record bad samples; returns why the run must stop, or nothing."""
        for reject in rejects:
            self._rejects.setdefault((reject.shard, reject.index), reject)
        if len(self._rejects) <= self._limit:
            return ""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common())
        first = next(iter(self._rejects.values()))
        return (
            f"data.max_reject_share={self._max_share}: {len(self._rejects)} of {self._samples} samples are bad "
            f"({reasons}), the first {first.shard} sample {first.index} ({first.key}); rejects.jsonl of the run lists "
            "them; mend the data or raise the limit"
        )

    @property
    def counts(self) -> Counter[str]:
        """How many bad samples there are, by reason."""
        return Counter(reject.reason for reject in self._rejects.values())

    def to_jsonl(self) -> str:
        """One JSON object a line: shard, index, key, reason, detail."""
        return "".join(json.dumps(asdict(reject)) + "\n" for reject in self._rejects.values())


@ray.remote(num_cpus=0)
class RejectActor:
    """A ledger that all reading tasks share."""

    def __init__(self, ledger: RejectLedger):
        self._ledger = ledger

    def add(self, rejects: Sequence[Reject]) -> str:
        return self._ledger.add(rejects)

    def ledger(self) -> RejectLedger:
        return self._ledger
