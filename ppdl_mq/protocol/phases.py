"""What a peer knows and what it waits for, in every protocol."""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    """A state's name. The session's phases are common to all protocols."""

    NEW = "new"
    AWAITING_HELLOS = "awaiting hellos"
    AWAITING_CONFIRMS = "awaiting confirms"
    BUILDING = "building the initial weights"
    # The sequential protocols.
    AWAITING_TURN = "awaiting turn"
    FETCHING = "fetching the weights"
    TRAINING = "training"
    HANDING_OVER = "handing over"
    AWAITING_FINAL = "awaiting final"
    ANSWERING_FINAL = "answering final"
    AWAITING_DONES = "awaiting dones"
    # masked-average.
    AWAITING_INITIAL = "awaiting the initial weights"
    MEASURING = "measuring"
    MASKING = "masking"
    COMMITTED = "awaiting commitments and shards"
    RECEIPTED = "awaiting receipts"
    RELEASED = "awaiting releases"
    ADDING = "adding up"
    GATHERING = "awaiting sums"
    AVERAGING = "averaging"
    AUDITING = "recomputing a sum"
    AGREEING = "awaiting agreement"
    ABANDONING = "abandoning an attempt"
    CLOSING = "closing"
    ENDED = "ended"
    LEFT = "left"
    ENDED_EARLY = "ended early"
