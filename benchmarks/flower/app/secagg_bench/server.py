"""The server: it runs rounds of SecAgg+, times each, and writes seconds and errors to `server.json`."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.common import ndarrays_to_parameters
from flwr.server import LegacyContext, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_PARAMS_RECORD
from flwr.serverapp import ServerApp

app = ServerApp()


class TimedSecAggPlus(SecAggPlusWorkflow):
    """SecAgg+ with Flower's defaults, all peers sharing with all. It keeps each round's seconds and aggregate."""

    def __init__(self, peers):
        super().__init__(num_shares=peers, reconstruction_threshold=peers - 1)
        self.seconds = []
        self.aggregate = None

    def __call__(self, grid, context):
        model = context.state.array_records[MAIN_PARAMS_RECORD]
        started = time.perf_counter()
        super().__call__(grid, context)
        self.seconds.append(time.perf_counter() - started)
        aggregated = context.state.array_records[MAIN_PARAMS_RECORD]
        if aggregated is model:
            raise RuntimeError("the round ended without an aggregate; the log says why")
        self.aggregate = aggregated.to_numpy_ndarrays()[0]
        # The aggregate is float64. Without this the next round would send the clients twice as many bytes as this one.
        context.state.array_records[MAIN_PARAMS_RECORD] = model


@app.main()
def main(grid, context):
    folder = Path(str(context.run_config["folder"]))
    peers = int(context.run_config["peers"])
    while len(list(grid.get_node_ids())) < peers:  # else the first round's seconds would hold the start of the clients
        time.sleep(0.2)

    # The model sent out is noise like the vectors: Flower sends equal parts once, so zeros would travel for free.
    model = np.load(folder / "model.npy")
    strategy = FedAvg(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=peers,
        min_available_clients=peers,
        initial_parameters=ndarrays_to_parameters([model]),
    )
    secagg = TimedSecAggPlus(peers)
    rounds = ServerConfig(num_rounds=int(context.run_config["rounds"]))
    DefaultWorkflow(fit_workflow=secagg)(grid, LegacyContext(context, config=rounds, strategy=strategy))

    error = np.abs(secagg.aggregate - np.load(folder / "mean.npy"))
    result = {
        "round_seconds": [round(seconds, 2) for seconds in secagg.seconds],
        "max_abs_error": float(error[2:].max()),
        "error_out_of_range_at_one": float(error[0]),
        "error_out_of_range_at_all": float(error[1]),
    }
    (folder / "server.json").write_text(json.dumps(result))
