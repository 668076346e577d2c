"""The SGD worker: device, data plug-ins, models, loop, evaluation."""
