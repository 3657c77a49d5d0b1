"""Who is calling: accounts, roles, groups, passwords, tokens, invites, and the lock-out of those who guess."""
