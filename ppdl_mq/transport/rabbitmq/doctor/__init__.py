"""A doctor for the broker: what keeps a trial from running there, found before the trial begins.

Each module looks at one part and yields findings. Nothing is changed that the peer itself would not change at its
start, and no message of a trial is taken: most questions are asked so that the broker has to refuse them, after it has
checked the right and before it does anything.
"""

from ppdl_mq.transport.rabbitmq.doctor.examination import examine
from ppdl_mq.transport.rabbitmq.doctor.management import Management

__all__ = ["Management", "examine"]
