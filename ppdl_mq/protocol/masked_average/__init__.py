"""The machine of masked-average: a secure sum without a threshold. Source: docs/PROTOCOL.md, sections 13 to 16."""
