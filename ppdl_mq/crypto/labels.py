"""Every domain-separation label of the project. Two uses of one key or hash never share a label."""

from __future__ import annotations

from typing import Final

PREFIX: Final = b"ppdl-mq/1 "

TRIAL_ID: Final = PREFIX + b"trial id\0"
SESSION_ID: Final = PREFIX + b"session id\0"
SESSION_KEY: Final = PREFIX + b"session key\0"
FINGERPRINT: Final = PREFIX + b"fingerprint\0"
PUBLIC_LINE: Final = PREFIX + b"public line\0"
SCHEDULE: Final = PREFIX + b"schedule\0"
SAMPLE_SEED: Final = PREFIX + b"sample seed\0"
LAYOUT: Final = PREFIX + b"layout\0"
MESSAGE: Final = PREFIX + b"message\0"
IDENTITY_PAIR: Final = PREFIX + b"identity pair\0"
SESSION_PAIR: Final = PREFIX + b"session pair\0"
TRIAL_KEY: Final = PREFIX + b"trial key\0"
JOURNAL_KEY: Final = PREFIX + b"journal key\0"
TURN_STATEMENT: Final = PREFIX + b"turn statement\0"
FINAL_STATEMENT: Final = PREFIX + b"final statement\0"
