"""Pretrain CLIP on image-text shards and measure it zero-shot.

python jobs/pretrain.py                                   # the demo, on this machine
python jobs/pretrain.py --config demo --train.epochs 2 --data.train 's3://bucket/cc12m/{00000..01242}.tar'
ray job submit --working-dir . -- python jobs/pretrain.py --config demo
python jobs/pretrain.py --print_config                    # every option with its value
python jobs/pretrain.py --config demo --train.max_steps 5 # smoke: a minute on a laptop
"""

from __future__ import annotations

import sys

from orchestrator import cli
from orchestrator.config import Config
from orchestrator.data import demo
from orchestrator.errors import UserError
from orchestrator.evaluate import after_training
from orchestrator.train import submission
from orchestrator.train.cluster import connect
from orchestrator.train.run import RunDirectory


def main(argv: list[str]) -> None:
    config = cli.parse(argv, __doc__ or "")
    if config.data.train == "demo":
        demo.fill(config)
    config.validate()
    sets = after_training.open_sets(config.evaluation)
    print(f"pretraining {config.run.name} {connect(config)}", flush=True)
    submission.note(recipe=cli.recipe_of(argv), run=RunDirectory(config).uri, commit=submission.commit())
    # Only now, for it loads torch: what is wrong with the options is told before, and Ray's first workers start beside.
    from orchestrator.train.trainer import pretrain

    run = pretrain(config)
    print(f"model     {run.path('final')}")
    if sets:
        summary = after_training.read_result(run.uri) or after_training.evaluate_run(run.uri, sets, config)
        after_training.print_table(summary)
        print(f"result    {run.path(after_training.RESULT)}\npicture   {run.path(after_training.PICTURE)}")
    print(f"metrics   tensorboard --logdir {run.path('tensorboard')}")
    print(f"go on     python jobs/pretrain.py --config {run.path('config.yaml')} --run.name {_next(config)}")


def _next(config: Config) -> str:
    return f"{config.run.name}-2"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
