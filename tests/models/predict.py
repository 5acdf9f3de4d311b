"""Runs an MLflow model directly: predict.py MODEL_DIR ROWS.json prints {"predictions": [...]}."""

import json
import sys

import mlflow.pyfunc
import pandas as pd

model = mlflow.pyfunc.load_model(sys.argv[1])
with open(sys.argv[2], encoding="utf-8") as file:
    rows = json.load(file)["dataframe_split"]
frame = pd.DataFrame(rows["data"], columns=rows["columns"])
print(json.dumps({"predictions": model.predict(frame).tolist()}))
