"""What travels: versions, limits, frames and messages. docs/protocol.md describes all of it."""
