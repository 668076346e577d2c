"""Every limit on lengths, counts and waits, with its unit. What comes from outside is held to these before any work."""

from __future__ import annotations

from typing import Final

# The trial.
MAX_PEERS: Final = 200
MAX_EPOCHS: Final = 100_000
MAX_TURNS_PER_EPOCH: Final = 10_000
MAX_TURNS: Final = 10_000_000
MAX_BATCH: Final = 1_000_000
MAX_CLASSES: Final = 100_000
MAX_TURN_STEPS: Final = 1_000_000_000
MAX_ATTEMPTS: Final = 10_000  # the highest number of an attempt of one step of masked-average
ATTEMPTS_AT_ONCE: Final = 8  # of a step, with the same members; before every later one a peer rests
MAX_SHAPE_DIMENSIONS: Final = 8
MAX_DECLARED_SAMPLES: Final = 2**31  # of one peer
MAX_SAMPLE_VALUES: Final = 1_000_000_000  # numbers in one input sample
MAX_MANIFEST_BYTES: Final = 256 * 1024
MAX_SETTINGS_BYTES: Final = 256 * 1024
MAX_ARGUMENT_DEPTH: Final = 8  # tables and arrays within each other, in a file that a person writes
MAX_KEY_WORDS: Final = 32  # joined by dots, in a file that a person writes
MAX_BROKER_HOSTS: Final = 32  # in one URL
MAX_DIFFERENCES: Final = 20  # fields named when two manifests differ

# A message.
MIN_CHUNK_BYTES: Final = 4 * 1024
USUAL_CHUNK_BYTES: Final = 900_000
MAX_CHUNK_BYTES: Final = 16 * 1024 * 1024
MAX_META_BYTES: Final = 512 * 1024
MAX_BODY_BYTES: Final = 16 * 1024**3  # of one message, all parts together: weights of four milliard float32
MAX_CONTEXT_BYTES: Final = 16 * 1024
MAX_PARTS: Final = 4_194_304
MAX_DEPTH: Final = 16  # lists and maps within each other

# An identity file.
MAX_IDENTITY_BYTES: Final = 16 * 1024
MAX_PASSPHRASE_BYTES: Final = 1024
MAX_ARGON2_OPS: Final = 20
MAX_ARGON2_BYTES: Final = 1024**3

# What a peer keeps for others.
MAX_OPEN_MESSAGES_PER_SENDER: Final = 8  # that miss parts, or came too early
MAX_QUARANTINE_RECORDS: Final = 1_000
MAX_SEEN_PER_SENDER: Final = 10_000  # message ids; what comes again beyond is worked on again, which is harmless

# Waiting, in seconds.
BROKER_WAIT_S: Final = 300.0
SAY_AGAIN_S: Final = 600.0  # what is waited for all that time
LOOK_S: Final = 0.2  # between two looks round of a thread that waits for the relay
BACKOFF_FIRST_S: Final = 0.2
BACKOFF_LAST_S: Final = 10.0
HEARTBEAT_S: Final = 30
TCP_S: Final = 10.0  # until one address of a host accepts; 75 s and more by themselves
LOGIN_S: Final = 15.0  # until it lets us in: TCP, TLS and AMQP together
HOST_S: Final = 20.0  # what one host may hold up the next one, with its name's resolution and all its addresses
MAX_STATE_BYTES: Final = 16 * 1024 * 1024  # of a machine's state in the journal; 200 peers may drop each other
MAX_PARKED_PER_SENDER: Final = 4  # parts that cannot be opened before the session is known
MAX_REFUSED_HEAD_BYTES: Final = 256  # of a refused message, kept for inspection

# The noise of differential privacy, in units of the clip: less protects nobody, more trains nothing.
LEAST_NOISE: Final = 0.3
MOST_NOISE: Final = 10_000.0

# What people see, in seconds.
INBOX_EVERY_S: Final = 30.0  # between two looks at how much waits in the own inbox
HEALTHY_S: Final = 120.0  # a status that is older is one of a loop that hangs
STARTING_S: Final = 600.0  # before the loop begins: reading the data, building the model

# Being stopped.
STOP_S: Final = 5.0  # how long a step of training, or a relay that takes nothing, is waited for

# What a peer does in one go.
RECEIVE_BATCH_PARTS: Final = 32
RECEIVE_BATCH_BYTES: Final = 32 * 1024 * 1024

# How long it waits before it asks again or gives up, in seconds.
PATIENCE_FIRST_S: Final = 60.0
PATIENCE_LAST_S: Final = 3_600.0
MISMATCH_GRACE_S: Final = 5.0
REST_FIRST_S: Final = 1.0  # before an attempt of masked-average, where many were given up
REST_LAST_S: Final = 3_600.0
