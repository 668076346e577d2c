"""The organisation's samples. The ready-made plug-ins are named as `ppdl_mq.training.data:csv` and so on."""

from ppdl_mq.training.data.arrays import idx, npz
from ppdl_mq.training.data.images import image_folder
from ppdl_mq.training.data.samples import Samples, Split
from ppdl_mq.training.data.tables import csv, parquet

__all__ = ["Samples", "Split", "csv", "idx", "image_folder", "npz", "parquet"]
