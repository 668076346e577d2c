"""The client: it returns its fixed vector, whatever model it is sent."""

from pathlib import Path

import numpy as np
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp

# The workflow's default `max_weight`. SecAgg+ multiplies a vector by num_examples / max_weight before it clips and
# quantises. Here the factor is 1: values are clipped at exactly 8, and a smaller factor would make the error larger.
NUM_EXAMPLES = 1000


class FixedVector(NumPyClient):
    """Answers `fit` with the vector in `path`."""

    def __init__(self, path):
        self.path = path

    def fit(self, parameters, config):  # noqa: ARG002  (Flower's signature)
        return [np.load(self.path)], NUM_EXAMPLES, {}


def client_fn(context):
    folder = Path(str(context.run_config["folder"]))
    return FixedVector(folder / f"vector-{context.node_config['partition-id']}.npy").to_client()


app = ClientApp(client_fn=client_fn, mods=[secaggplus_mod])
