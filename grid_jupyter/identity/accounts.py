"""The accounts of a Node or Network: who may come in, by token, password or invite, and how credentials are made.

What may be read and changed about accounts, roles and groups, and by whom, is in directory.py.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from grid_jupyter.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    IdNotUniqueError,
    NotAuthenticatedError,
    NotFound,
    TooManyAttemptsError,
)
from grid_jupyter.identity import passwords, roles, tokens
from grid_jupyter.identity.directory import Account, Directory, account_of, check_name, is_name
from grid_jupyter.identity.lockout import Lockouts, place
from grid_jupyter.identity.rows import AccountRow, AccountRows, InviteRow

__all__ = ["Account", "AccountRows", "Accounts"]

T = TypeVar("T")

Keys = tuple[tuple[str, str], ...]
"""What the failures of one attempt are counted under: (kind, place or user name)."""

LOGIN = "login"
"""Label of the tokens that a password was given for."""
LOGIN_TOKEN_S = 30 * 86_400.0
OWNER_INVITE_S = 7 * 86_400.0
HASHES_AT_ONCE = 2
HASHES_WAITING = 32
"""Attempts in line for a password hash; beyond that, whoever comes is told to come back."""

WRONG_LOGIN = "Invalid credentials! Check user name and password; the Node's owner can set a new password."
UNKNOWN_CREDENTIAL = (
    "this token does not count here: it is unknown, or it was revoked; "
    "ask the owner of this Node for a new one (jupyter grid token)"
)
UNKNOWN_INVITE = (
    "this invite does not count here: it is unknown, or it was used, for each works once; ask for a new one"
)


class Accounts:
    """Accounts over their rows. One per Node: it remembers who guessed wrong, and how many hashes are being computed.

    `directory` reads and edits users, roles and groups on behalf of a caller.
    """

    def __init__(self, rows: AccountRows, node_id: str, clock: Callable[[], float] = time.time) -> None:
        self.directory = Directory(rows, clock, hash_password=self._hash, login_label=LOGIN)
        self._rows = rows
        self._node_id = node_id
        self._clock = clock
        self._lockouts = Lockouts()
        self._hashing = asyncio.Semaphore(HASHES_AT_ONCE)
        self._waiting = 0

    # ------------------------------------------------------------------ starting

    async def first_start(self) -> str | None:
        """Seed the roles; while nobody owns this Node and no invite to own it is open, make one, to be shown once."""
        await self._rows.seed_roles(roles.SEEDED)
        if await self._rows.first_with_role(roles.OWNER) is not None:
            return None
        if await self._rows.has_open_invite(roles.OWNER, self._clock()):
            return None
        code, _ = await self.invite(roles.OWNER, OWNER_INVITE_S)
        return code

    async def ensure(self, username: str, role: str) -> Account:
        """The account of this name and role, made (without password) if it is not there; one that was deleted comes
        back, without what it had. For the Node's owner: nothing is asked of a caller.

        Raises Conflict if the account has another role, NotFound for an unknown role, BadRequest for an unfit name.
        """
        check_name(username, "user name")
        row = await self._rows.account_named(username)
        if row is None:
            unowned = await self._is_unowned(role)
            try:
                made = account_of(await self._rows.add_account(username, None, role, self._clock()))
                await self._settle(unowned)
                return made
            except IdNotUniqueError:  # somebody else made it just now
                row = await self._rows.account_named(username)
        if row is None:
            raise NotFound("there is no account of this name here")
        if row.disabled:
            return account_of(await self._rows.enable_account(row.id, role))
        if row.role != role:
            raise Conflict(f"there is an account {username} with the role {row.role}; change its role, or keep it")
        return account_of(row)

    async def create(self, username: str, password: str | None, role: str = roles.USER) -> Account:
        """A new account. For the Node's owner: nothing is asked of a caller (directory.create_user does).

        Raises IdNotUniqueError if the name is taken, NotFound for an unknown role, BadRequest for an unfit name or
        password.
        """
        check_name(username, "user name")
        password_hash = None if password is None else await self._hash(password)
        return account_of(await self._rows.add_account(username, password_hash, role, self._clock()))

    # ------------------------------------------------------------------ tokens

    async def issue_token(self, username: str, *, label: str = "", expires_s: float | None = None) -> str:
        """A new token of this account, shown once: only its digest is kept. Raises NotFound."""
        row = await self.directory.row_named(username)
        return await self._issue(row, label, expires_s)

    async def revoke_tokens(self, username: str) -> int:
        """End all tokens of this account; how many there were. Raises NotFound."""
        row = await self.directory.row_named(username)
        return await self._rows.revoke_tokens(row.id, self._clock())

    async def identify(self, token: str, origin: str) -> Account:
        """Whose token this is.

        Raises NotAuthenticatedError, with the remedy: of another Node, Jupyter's, no token at all, expired, or (one
        text for both) unknown or revoked. Raises TooManyAttemptsError for a wrong one during a lock-out of its origin.
        A right one is never locked out: 256 random bits are not guessed, and others may share the address.
        """
        keys = (("token", place(origin)),)
        node_id = tokens.node_of(token)
        row = await self._rows.token(tokens.digest(token)) if node_id == self._node_id else None
        if row is None or row.revoked is not None or row.account.disabled:
            raise self._refusal(keys, self._why_not(token, node_id))
        if row.expires is not None and row.expires <= self._clock():
            raise self._refusal(
                keys, "this token has expired; log in again, or ask the owner of this Node for a new one"
            )
        self._lockouts.succeed(keys)
        return account_of(row.account)

    async def login(self, username: str, password: str, origin: str) -> str:
        """A token, for user name and password. The same answer and the same work whether or not the user exists.

        Raises NotAuthenticatedError, TooManyAttemptsError, BadRequest for a password that cannot be one.
        """
        passwords.check_password(password)
        name = username if is_name(username) else ""
        keys = (("password", place(origin)), ("user", name))
        self._refuse_if_locked(keys)
        with self._in_line():
            # Counted before the work, so that attempts made at once cannot outrun the count; a right one takes it back.
            self._lockouts.fail(keys, self._clock())
            row = await self._rows.account_named(name)
            usable = row if row is not None and not row.disabled else None
            known = usable.password_hash if usable is not None else None
            right = await self._compute(lambda: passwords.verify(known, password))
            if usable is None or known is None or not right:
                raise NotAuthenticatedError(WRONG_LOGIN)
            self._lockouts.succeed(keys)
            if passwords.is_outdated(known):
                renewed = await self._compute(lambda: passwords.hash_password(password))
                await self._rows.set_password_hash(usable.id, renewed)
        return await self._issue(usable, LOGIN, LOGIN_TOKEN_S)

    # ------------------------------------------------------------------ invites

    async def invite(self, role: str, expires_s: float, username: str | None = None) -> tuple[str, float]:
        """A code that makes one account of this role, once, and when it expires (UTC seconds).

        With `username` the code is good for that name only, so that nobody else can take a name that data is already
        readable by. Raises NotFound for an unknown role, IdNotUniqueError for a taken name, BadRequest.
        """
        await self.directory.role_named(role)
        if username is not None:
            await self.directory.check_free(username)
        now = self._clock()
        code, expires = tokens.new_invite(), now + _duration(expires_s)
        await self._rows.add_invite(tokens.digest(code), role, username, now, expires)
        return code, expires

    async def accept_invite(self, code: str, username: str, password: str | None, origin: str) -> tuple[Account, str]:
        """Make the account that an invite is for, and its first token. Each code works once, also for two at once.

        Raises NotAuthenticatedError for an unknown, used or expired code, TooManyAttemptsError during a lock-out of
        the origin, Forbidden for a name that the code is not for; IdNotUniqueError and BadRequest as `create`, and
        then the code is still good.
        """
        keys = (("invite", place(origin)),)
        self._refuse_if_locked(keys)  # before a password is hashed
        found = tokens.invite_code(code)
        if found is None:
            raise self._refusal(keys, UNKNOWN_INVITE)
        check_name(username, "user name")
        now = self._clock()

        def admit(invite: InviteRow | None) -> str:
            if invite is None or invite.used_at is not None:
                raise NotAuthenticatedError(UNKNOWN_INVITE)
            if invite.expires <= now:
                raise NotAuthenticatedError("this invite has expired; ask for a new one")
            if invite.username is not None and invite.username != username:
                raise Forbidden("this invite is for another user name; use the name that it was made for")
            return invite.role

        password_hash = None if password is None else await self._hash(password)
        token = tokens.new_token(self._node_id)
        unowned = await self._is_unowned(roles.OWNER)
        try:
            row = await self._rows.redeem_invite(
                tokens.digest(found),
                admit,
                username=username,
                password_hash=password_hash,
                token_digest=tokens.digest(token),
                now=now,
            )
        except NotAuthenticatedError as error:
            raise self._refusal(keys, str(error)) from None
        self._lockouts.succeed(keys)
        await self._settle(unowned and row.role == roles.OWNER)
        return account_of(row), token

    # ------------------------------------------------------------------ within

    async def _is_unowned(self, role: str) -> bool:
        """Whether an account of this role would be the first owner's."""
        return role == roles.OWNER and await self._rows.first_with_role(roles.OWNER) is None

    async def _settle(self, first_owner: bool) -> None:
        """Once there is an owner, the invite of the first start, which somebody may have read, is good for nothing."""
        if first_owner:
            await self._rows.end_invites(roles.OWNER, self._clock())

    async def _issue(self, row: AccountRow, label: str, expires_s: float | None) -> str:
        now = self._clock()
        token = tokens.new_token(self._node_id)
        expires = None if expires_s is None else now + _duration(expires_s)
        await self._rows.add_token(tokens.digest(token), row.id, label, now, expires)
        return token

    def _why_not(self, token: str, node_id: str | None) -> str:
        if node_id is not None:
            if node_id == self._node_id:
                return UNKNOWN_CREDENTIAL
            return (
                f"this token is for the Node with the id {node_id}, not for this one ({self._node_id}); "
                "each Node takes only the tokens that it gave out itself"
            )
        if tokens.looks_like_jupyter(token):
            return (
                "this looks like Jupyter's own token, which opens notebooks and must never leave your machine; "
                "here a token of this Node is needed (jupyter grid token)"
            )
        return "this is not a token of a Node; they begin with gjt1_, and the owner of this Node gives them out"

    def _refuse_if_locked(self, keys: Keys) -> None:
        wait = self._lockouts.remaining_s(keys, self._clock())
        if wait > 0:
            seconds = math.ceil(round(wait, 3))  # 1.0000001 s, by rounding of the clock, are 1 s
            raise TooManyAttemptsError(f"too many wrong attempts; wait {max(1, seconds)} s, then try again")

    def _refusal(self, keys: Keys, text: str) -> Exception:
        self._refuse_if_locked(keys)
        self._lockouts.fail(keys, self._clock())
        return NotAuthenticatedError(text)

    async def _hash(self, password: str) -> str:
        passwords.check_password(password)
        with self._in_line():
            return await self._compute(lambda: passwords.hash_password(password))

    @contextmanager
    def _in_line(self) -> Iterator[None]:
        if self._waiting >= HASHES_WAITING:
            raise TooManyAttemptsError("too many people are logging in just now; wait 1 s, then try again")
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def _compute(self, hashing: Callable[[], T]) -> T:
        """Compute a hash beside the event loop, few at once: each takes 19 MiB and a core for some 30 ms."""
        async with self._hashing:
            return await asyncio.to_thread(hashing)


def _duration(seconds: float) -> float:
    if not (seconds > 0 and math.isfinite(seconds)):
        raise BadRequest("a credential lasts a finite number of seconds, more than 0")
    return seconds
