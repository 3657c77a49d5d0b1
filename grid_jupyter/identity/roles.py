"""The rights of a Node or Network, and the roles that every one starts with."""

from __future__ import annotations

from types import MappingProxyType

FLAGS = (
    "can_triage_requests",
    "can_edit_settings",
    "can_create_users",
    "can_create_groups",
    "can_edit_roles",
    "can_manage_infrastructure",
    "can_upload_data",
)
"""The rights, by the names that 0.2.9 gave them."""

USER = "User"
COMPLIANCE_OFFICER = "Compliance Officer"
ADMINISTRATOR = "Administrator"
OWNER = "Owner"
PUBLISHER = "Publisher"
NODE = "Node"

SEEDED = MappingProxyType(
    {
        USER: frozenset[str](),
        COMPLIANCE_OFFICER: frozenset({"can_triage_requests"}),
        ADMINISTRATOR: frozenset(FLAGS) - {"can_edit_roles", "can_manage_infrastructure"},
        OWNER: frozenset(FLAGS),
        PUBLISHER: frozenset({"can_upload_data"}),
        NODE: frozenset[str](),  # a Network's members; what they may do follows from being one
    }
)
"""Roles that are there from the first start; the first four keep the ids that they had in 0.2.9 (1 to 4)."""
