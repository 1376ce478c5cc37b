"""Samples that could not be used: counted by reason, listed, and limited."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import ray
from pyroaring import BitMap

from orchestrator.data.manifest import Manifest
from orchestrator.data.shards import Reject
from orchestrator.telemetry import Exporter

# Bad samples that are listed one by one, at most; the others are counted.
LISTED = 100_000


class RejectLimitExceeded(ValueError):
    """More of the data is bad than data.max_reject_share allows."""


class RejectLedger:
    """Counts each bad sample once, however many epochs meet it.

    Parameters
    ----------
    manifest : the shards
    max_share : share of its samples that may be bad, 0 to 1
    """

    def __init__(self, manifest: Manifest, max_share: float):
        self._max_share = max_share
        self._places = manifest.ledger()
        self.limit = int(self._places.size * max_share)
        self._shards = {shard.uri: number for number, shard in enumerate(manifest.shards)}
        self._listed: list[Reject] = []
        self.places = BitMap()
        self.counts: Counter[str] = Counter()

    def add(self, rejects: Sequence[Reject]) -> str:
        """Record bad samples; returns why the run must stop, or nothing."""
        for reject in rejects:
            place = self._places.place(self._shards[reject.shard], reject.index)
            if place not in self.places:
                self.places.add(place)
                self.counts[reject.reason] += 1
                if len(self._listed) < LISTED:
                    self._listed.append(reject)
        if len(self.places) <= self.limit:
            return ""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common())
        first = self._listed[0]
        return (
            f"data.max_reject_share={self._max_share}: {len(self.places)} of {self._places.size} samples are bad "
            f"({reasons}), the first {first.shard} sample {first.index} ({first.key}); rejects.jsonl of the run lists "
            "them; mend the data or raise the limit"
        )

    def to_jsonl(self) -> str:
        """One JSON object a line: shard, index, key, reason, detail; the first 100,000."""
        return "".join(json.dumps(asdict(reject)) + "\n" for reject in self._listed)

    def to_bytes(self) -> bytes:
        """All that is known, for a checkpoint: a line of JSON, the list, the places in Roaring's portable format."""
        listed = self.to_jsonl().encode()
        header = {"format": 1, "counts": self.counts, "listed": len(listed)}
        return json.dumps(header).encode() + b"\n" + listed + self.places.serialize()

    def restore(self, data: bytes) -> None:
        """Go on from what `to_bytes` made."""
        header, _, body = data.partition(b"\n")
        fields = json.loads(header)
        listed, places = body[: fields["listed"]], body[fields["listed"] :]
        self.counts, self.places = Counter(fields["counts"]), BitMap.deserialize(places)
        self._listed = [Reject(**json.loads(line)) for line in listed.decode().splitlines()]


@ray.remote(num_cpus=0)
class RejectActor:
    """A ledger of bad samples that all reading tasks share.

    Parameters
    ----------
    ledger : to go on with
    run : name of the run that reads
    """

    def __init__(self, ledger: RejectLedger, run: str):
        self._ledger = ledger
        self._exported = Exporter("rejects", "reject_limit", run=run)
        self._exported.set("reject_limit", ledger.limit)
        self._export_counts()

    def add(self, rejects: Sequence[Reject]) -> str:
        why = self._ledger.add(rejects)
        self._export_counts()
        return why

    def _export_counts(self) -> None:
        for reason, count in self._ledger.counts.items():
            self._exported.set("rejects", count, reason=reason)

    def count(self) -> int:
        return len(self._ledger.places)

    def to_bytes(self) -> bytes:
        return self._ledger.to_bytes()

    def ledger(self) -> RejectLedger:
        return self._ledger
