"""Measure a model as CLIP's paper measures: zero-shot, linear probes, few-shot, retrieval, natural shifts, overlap with
training, people beside the model; one report.

python jobs/evaluate.py --model runs/demo/final --datasets 's3://eval/wds/*'
ray job submit --working-dir . -- python jobs/evaluate.py --model s3://bucket/runs/mine/final --datasets 's3://eval/wds/*'
python jobs/evaluate.py --model runs/demo/final --datasets 'sets/*' --suite zero-shot --fail-below bounds.yaml
python jobs/evaluate.py --model runs/demo/final --datasets 'sets/*' --overlap 's3://train/{000..100}.tar'
python jobs/evaluate.py --model runs/demo/final --datasets sets/pets --humans answers.csv
python jobs/evaluate.py --model s3://bucket/runs/mine/final --datasets 's3://eval/wds/*' --placement vit-b-32
python jobs/evaluate.py --compare runs/a/eval runs/b/eval runs/c/eval

The same command goes on after an interruption: what has been measured of a set is not measured again.
"""

from __future__ import annotations

import sys

from orchestrator.config import Config
from orchestrator.errors import UserError
from orchestrator.evaluate import command
from orchestrator.train.cluster import connect


def main(argv: list[str]) -> None:
    asked = command.parse(argv, __doc__ or "")
    if asked.options is not None:
        joined = connect(Config(placement=asked.options.placement))
        print(f"evaluating {asked.options.model} on {len(asked.options.datasets)} sets {joined}", flush=True)
    print(f"report    {command.run(asked)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
