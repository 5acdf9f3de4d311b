#!/usr/bin/env python3
"""Trains a forest of as many trees as make one row take so many milliseconds on this machine.

usage: train_forest.py OUTDIR [MILLISECONDS]

The default is 20. OUTDIR must not exist, or be empty. Needs mlflow-skinny, pandas and scikit-learn, and no network: run it
in a container of runtime-mlflow. Prints one line of JSON: trees, milliseconds measured, score and versions.
"""

import json
import os
import sys
import time

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow
import mlflow.sklearn
import numpy
import pandas
import sklearn
from mlflow.models import infer_signature
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier


TRIAL_TREES = 100
LEAST_TREES, MOST_TREES = 50, 3000


def one_row_ms(model, row) -> float:
    """The quickest of some: what the model needs, whatever else the machine does."""
    model.predict(row)
    took = []
    for _ in range(15):
        started = time.perf_counter()
        model.predict(row)
        took.append(time.perf_counter() - started)
    return min(took) * 1000


def main() -> int:
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    out = sys.argv[1]
    wanted_ms = float(sys.argv[2]) if len(sys.argv) == 3 else 20.0
    rows, species = load_iris(return_X_y=True, as_frame=True)
    row = rows.head(1)

    def forest(trees: int):
        # One thread: a replica has about one core.
        return RandomForestClassifier(n_estimators=trees, n_jobs=1, random_state=1).fit(rows, species)

    trial_ms = one_row_ms(forest(TRIAL_TREES), row)
    trees = min(max(round(TRIAL_TREES * wanted_ms / trial_ms), LEAST_TREES), MOST_TREES)
    model = forest(trees)
    mlflow.sklearn.save_model(
        model,
        out,
        signature=infer_signature(rows, model.predict(rows)),
        input_example=row,
        # A file of somebody else's could crash with these; this one is ours, and is loaded in a container.
        skops_trusted_types=["sklearn.tree._tree.Tree"],
        # Named here, so that MLflow does not load the model in another process to find out.
        pip_requirements=[
            f"mlflow-skinny=={mlflow.__version__}",
            f"numpy=={numpy.__version__}",
            f"pandas=={pandas.__version__}",
            f"scikit-learn=={sklearn.__version__}",
        ],
    )
    print(
        json.dumps(
            {
                "model": out,
                "trees": trees,
                "one_row_ms": round(one_row_ms(model, row), 1),
                "accuracy": round(float(model.score(rows, species)), 4),
                "mlflow": mlflow.__version__,
                "scikit_learn": sklearn.__version__,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
