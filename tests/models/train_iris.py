#!/usr/bin/env python3
"""Trains a small classifier on the iris data and saves it as an MLflow model.

usage: train_iris.py OUTDIR

OUTDIR must not exist, or be empty. Needs mlflow-skinny, pandas and scikit-learn, and no network: run it
in a container of runtime-mlflow. Prints one line of JSON: the versions used and the score.
"""

import json
import os
import platform
import sys

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import mlflow
import mlflow.sklearn
import numpy
import pandas
import sklearn
from mlflow.models import infer_signature
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    out = sys.argv[1]
    rows, species = load_iris(return_X_y=True, as_frame=True)
    model = LogisticRegression(max_iter=1000).fit(rows, species)
    example = rows.head(2)
    mlflow.sklearn.save_model(
        model,
        out,
        signature=infer_signature(rows, model.predict(rows)),
        input_example=example,
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
                "accuracy": round(float(model.score(rows, species)), 4),
                "mlflow": mlflow.__version__,
                "numpy": numpy.__version__,
                "pandas": pandas.__version__,
                "python": platform.python_version(),
                "scikit_learn": sklearn.__version__,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
