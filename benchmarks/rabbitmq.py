"""Run `ppdl-mq bench` on a private RabbitMQ node, which is started for it and thrown away.

    python benchmarks/rabbitmq.py --megabytes 4 --megabytes 40 --megabytes 400 --repeat 5

Every option goes to `ppdl-mq bench`. The node's version stands on stderr.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `tests`, which no package installs

from ppdl_mq.cli.main import run
from tests.rabbit import RabbitNode, why_absent


def main() -> int:
    """Return the exit code of `ppdl-mq bench`."""
    reason = why_absent()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 1
    with RabbitNode() as node:
        print("RabbitMQ", node.ctl("version").strip(), file=sys.stderr)
        return run(["bench", "--broker", node.url(), *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
