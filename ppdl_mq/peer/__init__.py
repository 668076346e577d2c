"""One organisation's process: drives the machines over a transport, with a journal and a worker."""
