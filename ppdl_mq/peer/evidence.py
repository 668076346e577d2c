"""Evidence against a peer that signed two things where one is allowed: kept, and never forgotten by a restart.

Source: docs/PROTOCOL.md, sections 7 and 8.
"""

from __future__ import annotations

from typing import Final

from ppdl_mq.errors import Equivocation, SplitView
from ppdl_mq.peer.journal import Journal
from ppdl_mq.wire.envelope import Opened
from ppdl_mq.wire.meta import encode_meta

_FACT: Final = "equivocation"


def keep_evidence(journal: Journal, error: Equivocation, opened: Opened) -> None:
    """Keep the second message with its signature; what the peer signed first is in the journal's state.

    Header, meta and digest of the weights are what the signature covers, so that others can check it.
    """
    evidence = {
        "reason": error.message,
        "hint": error.hint,
        "split": isinstance(error, SplitView),
        "sender": opened.header.sender,
        "header": opened.header.encode(),
        "meta": encode_meta(opened.message),
        "blob_digest": opened.blob_digest,
        "signature": opened.signature,
    }
    journal.keep_secret_fact(_FACT, evidence)  # sealed, since a CONFIRM holds a secret


def refuse_after_equivocation(journal: Journal) -> None:
    """Do not go on with a peer that was caught.

    Raises:
        Equivocation: evidence is in the journal.
    """
    evidence = journal.secret_fact(_FACT)
    if evidence is not None:
        if evidence["split"]:  # who told whom what, one peer alone cannot know
            raise SplitView(evidence["reason"], hint=evidence["hint"])
        raise Equivocation(
            evidence["reason"],
            hint=f"The proof is in {journal.folder}. Settle it with that organisation, then start a renewed trial.",
        )
