"""Run a study: many small pretraining runs that together answer a question.

python jobs/tune.py --study temperature --base demo --trials 12
ray job submit --working-dir . -- python jobs/tune.py --study scaling --base demo --compute 1,2,4 --trials 18
python jobs/tune.py --study options --vary optim.lr=1e-4..1e-2 --vary train.global_batch=128,256 --trials 18
python jobs/tune.py --study scaling --search optuna --compute 1,2 --trials 30    # or grid, random, settings
python jobs/tune.py --study options --search population --vary optim.lr=1e-4..1e-2 --trials 8 --rounds 5
python jobs/tune.py --resume runs/tune-temperature                               # after a crash, goes on
python jobs/tune.py --resume runs/tune-temperature --only_report                 # of the trials that there are
python jobs/tune.py --study temperature --trials 4 --train.max_steps 20          # smoke; any option of a run may follow
"""

from __future__ import annotations

import sys

from orchestrator.data import demo
from orchestrator.errors import UserError
from orchestrator.evaluate import after_training
from orchestrator.train.cluster import connect
from orchestrator.tune import command


def main(argv: list[str]) -> None:
    asked = command.parse(argv, __doc__ or "")
    base = asked.study.base
    if base.data.train == "demo":
        demo.fill(base)
    base.validate()
    after_training.open_sets(base.evaluation)
    plan = asked.plan()
    print(f"study {asked.study.uri}, {asked.trials} trials, {connect(base, study=True)}", flush=True)
    report = command.run(asked, plan, after_training.Accuracy(base))
    print(f"report    {report}/report.md")
    print(f"go on     python jobs/tune.py --resume {asked.study.uri}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
