"""What Ray's list of jobs says of a submitted run: its recipe, its commit, its folder."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
from pathlib import Path

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR


def note(**facts: str) -> None:
    """Add facts to the metadata of the job that this process was submitted as, if it was.

    Ray takes metadata with a submission (`--metadata-json`) and has no call that adds to them later, so they are
    written where Ray keeps them. What was submitted stays as it is: only the submitter knows the commit, since
    `ray job submit` leaves `.git` behind.

    Parameters
    ----------
    facts : names and what they say; empty ones are left out
    """
    submitted = os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR)
    if submitted is None:
        return
    try:
        asyncio.run(_add(json.loads(submitted)["metadata"], {name: fact for name, fact in facts.items() if fact}))
    except Exception as error:  # whatever Ray's inner parts raise: a run does not stop for its metadata
        print(f"the job's metadata stay as they were submitted: {error}", flush=True)


async def _add(submitted: dict[str, str], facts: dict[str, str]) -> None:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.dashboard.modules.job.common import JOB_ID_METADATA_KEY, JobInfoStorageClient

    job = submitted[JOB_ID_METADATA_KEY]
    store = JobInfoStorageClient(GcsClient(address=ray.get_runtime_context().gcs_address))
    info = await store.get_info(job)
    if info is not None:
        await store.put_info(job, dataclasses.replace(info, metadata={**facts, **(info.metadata or {})}))


def commit() -> str:
    """Of the checkout that this code runs from; empty where it is none."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git
        return ""
