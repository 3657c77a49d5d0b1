"""Who may come in: tokens, passwords, invites, over a real database."""

from __future__ import annotations

import asyncio
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from grid_jupyter.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    GridError,
    IdNotUniqueError,
    NotAuthenticatedError,
    NotFound,
    TooManyAttemptsError,
)
from grid_jupyter.identity import passwords, roles, tokens
from grid_jupyter.identity.accounts import LOGIN_TOKEN_S, OWNER_INVITE_S, Account, Accounts
from grid_jupyter.store.accounts import AccountTable
from grid_jupyter.store.database import Database, sqlite_url

run = asyncio.run
HERE, ELSEWHERE = "192.0.2.1", "192.0.2.2"


class Clock:
    """UTC seconds, moved by hand."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "grid.db"


@pytest.fixture
def database(file: Path) -> Iterator[Database]:
    database = Database(sqlite_url(file))
    yield database
    database.close()


@pytest.fixture
def accounts(database: Database, clock: Clock) -> Accounts:
    accounts = Accounts(AccountTable(database), "bob-7f", clock)
    run(accounts.first_start())
    return accounts


def why_not(accounts: Accounts, token: str, origin: str = HERE) -> str:
    with pytest.raises(NotAuthenticatedError) as caught:
        run(accounts.identify(token, origin))
    return str(caught.value)


# ------------------------------------------------------------------ the first start


def test_the_first_start_shows_one_invite_to_own_the_node(database: Database, clock: Clock) -> None:
    accounts = Accounts(AccountTable(database), "bob-7f", clock)
    code = run(accounts.first_start())
    assert code is not None
    assert run(accounts.first_start()) is None  # it is open: none is shown in passing
    owner, token = run(accounts.accept_invite(code, "bob", "a password", HERE))
    assert (owner.role, owner.flags) == ("Owner", frozenset(roles.FLAGS))
    assert run(accounts.identify(token, HERE)) == owner
    clock.now += 2 * OWNER_INVITE_S
    assert run(accounts.first_start()) is None


def test_an_owner_invite_that_nobody_took_is_replaced_once_it_expired(accounts: Accounts, clock: Clock) -> None:
    assert run(accounts.first_start()) is None
    clock.now += OWNER_INVITE_S
    assert run(accounts.first_start()) is not None


def test_the_first_four_roles_have_the_ids_of_0_2_9(database: Database, accounts: Accounts) -> None:
    found = run(AccountTable(database).roles())
    assert [(role.id, role.name) for role in found] == [
        (1, "User"),
        (2, "Compliance Officer"),
        (3, "Administrator"),
        (4, "Owner"),
        (5, "Publisher"),
        (6, "Node"),
    ]
    assert {role.name: role.flags for role in found} == dict(roles.SEEDED)


# ------------------------------------------------------------------ accounts


def test_an_account_is_made_once_however_often_it_is_ensured(accounts: Accounts) -> None:
    bob = run(accounts.ensure("Bob", "Publisher"))
    assert bob == Account(id=bob.id, username="Bob", role="Publisher", flags=frozenset({"can_upload_data"}), groups=())
    assert run(accounts.ensure("Bob", "Publisher")) == bob

    async def at_once() -> list[Account]:
        return await asyncio.gather(*(accounts.ensure("Ana", "User") for _ in range(5)))

    assert len(set(run(at_once()))) == 1


def test_an_account_of_another_role_is_not_changed_in_passing(accounts: Accounts) -> None:
    run(accounts.ensure("Bob", "User"))
    with pytest.raises(Conflict, match="User"):
        run(accounts.ensure("Bob", "Owner"))


def test_a_name_is_taken_once(accounts: Accounts) -> None:
    run(accounts.create("Bob", None))
    with pytest.raises(IdNotUniqueError):
        run(accounts.create("Bob", "another"))


def test_an_unknown_role_is_not_found(accounts: Accounts) -> None:
    for attempt in (accounts.ensure("Bob", "God"), accounts.create("Bob", None, "God")):
        with pytest.raises(NotFound):
            run(attempt)
    with pytest.raises(NotFound, match="Administrator"):
        run(accounts.invite("God", 60.0))


@pytest.mark.parametrize("name", ["", " Bob", "Bob ", "a\nb", "a\0b", "x" * 129, "\ud800", "\uff22ob", "B\u0301\u200b"])
def test_a_name_that_could_pass_for_another_is_refused(accounts: Accounts, name: str) -> None:
    code, _ = run(accounts.invite("User", 60.0))
    for attempt in (
        accounts.ensure(name, "User"),
        accounts.create(name, None),
        accounts.invite("User", 60.0, name),
        accounts.accept_invite(code, name, None, HERE),
    ):
        with pytest.raises(BadRequest):
            run(attempt)


def test_names_are_text_whatever_they_look_like(accounts: Accounts) -> None:
    for name in ("ana@example.org", "<b>Bob</b>", "Zo\u00eb", "'; DROP TABLE account; --", "李雷"):
        assert run(accounts.create(name, None)).username == name


@pytest.mark.parametrize("password", ["", "x" * 1025, "\ud800"])
def test_what_cannot_be_a_password_is_refused(accounts: Accounts, password: str) -> None:
    for attempt in (accounts.create("Bob", password), accounts.login("Bob", password, HERE)):
        with pytest.raises(BadRequest):
            run(attempt)


# ------------------------------------------------------------------ tokens


def test_a_token_says_whose_it_is(accounts: Accounts) -> None:
    bob = run(accounts.ensure("Bob", "User"))
    token = run(accounts.issue_token("Bob", label="laptop"))
    assert token.startswith("gjt1_bob-7f_")
    assert run(accounts.identify(token, HERE)) == bob


def test_a_token_for_nobody_is_not_issued(accounts: Accounts) -> None:
    for name in ("Nobody", "", "\ud800"):
        with pytest.raises(NotFound):
            run(accounts.issue_token(name))
        with pytest.raises(NotFound):
            run(accounts.revoke_tokens(name))


def test_an_unknown_and_a_revoked_token_get_the_same_answer(accounts: Accounts) -> None:
    run(accounts.ensure("Bob", "User"))
    revoked = [run(accounts.issue_token("Bob")) for _ in range(2)]
    run(accounts.ensure("Ana", "User"))
    kept = run(accounts.issue_token("Ana"))
    assert run(accounts.revoke_tokens("Bob")) == 2
    assert run(accounts.revoke_tokens("Bob")) == 0
    assert why_not(accounts, revoked[0]) == why_not(accounts, tokens.new_token("bob-7f"), ELSEWHERE)
    assert run(accounts.identify(kept, HERE)).username == "Ana"


def test_a_token_counts_until_it_expires(accounts: Accounts, clock: Clock) -> None:
    run(accounts.ensure("Bob", "User"))
    token = run(accounts.issue_token("Bob", expires_s=60.0))
    clock.now += 59.0
    assert run(accounts.identify(token, HERE)).username == "Bob"
    clock.now += 1.0
    assert "expired" in why_not(accounts, token)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_credential_that_never_counts_is_not_made(accounts: Accounts, seconds: float) -> None:
    run(accounts.ensure("Bob", "User"))
    for attempt in (accounts.issue_token("Bob", expires_s=seconds), accounts.invite("User", seconds)):
        with pytest.raises(BadRequest):
            run(attempt)


def test_each_wrong_credential_is_told_its_remedy(accounts: Accounts) -> None:
    assert "alice-3c" in why_not(accounts, tokens.new_token("alice-3c"))
    assert "Jupyter's own token" in why_not(accounts, "0123456789abcdef" * 3)
    for odd in ("Bearer x", "\ud800", "gjt1_bob-7f_short", tokens.new_invite()):
        assert "begin with gjt1_" in why_not(accounts, odd, odd[:10])


def test_a_token_that_is_changed_by_one_character_does_not_count(accounts: Accounts) -> None:
    run(accounts.ensure("Bob", "User"))
    token = run(accounts.issue_token("Bob"))
    for wrong in (token[:-1] + ("A" if token[-1] != "A" else "B"), token + "A", token[:-1], token + "\n"):
        why_not(accounts, wrong)


def test_no_credential_and_no_password_is_in_the_database(accounts: Accounts, database: Database, file: Path) -> None:
    run(accounts.create("Bob", "correct horse battery"))
    token = run(accounts.issue_token("Bob"))
    code, _ = run(accounts.invite("User", 60.0))
    database.close()
    kept = file.read_bytes()
    assert b"Bob" in kept
    for secret in (token[-43:], code[-43:], "correct horse"):
        assert secret.encode() not in kept


def test_five_wrong_tokens_lock_out_wrong_tokens_and_nobody_else(accounts: Accounts, clock: Clock) -> None:
    run(accounts.ensure("Bob", "User"))
    right = run(accounts.issue_token("Bob"))
    for _ in range(5):
        why_not(accounts, tokens.new_token("bob-7f"))
    with pytest.raises(TooManyAttemptsError, match="wait 1 s"):
        run(accounts.identify(tokens.new_token("bob-7f"), HERE))
    why_not(accounts, tokens.new_token("bob-7f"), ELSEWHERE)
    clock.now += 1.0
    why_not(accounts, tokens.new_token("bob-7f"))
    with pytest.raises(TooManyAttemptsError, match="wait 2 s"):
        run(accounts.identify("0123456789abcdef" * 2, HERE))
    assert run(accounts.identify(right, HERE)).username == "Bob"  # others may share the address
    why_not(accounts, tokens.new_token("bob-7f"))


# ------------------------------------------------------------------ passwords


def test_user_name_and_password_give_a_token(accounts: Accounts, clock: Clock) -> None:
    bob = run(accounts.create("Bob", "correct horse"))
    token = run(accounts.login("Bob", "correct horse", HERE))
    assert run(accounts.identify(token, HERE)) == bob
    clock.now += LOGIN_TOKEN_S
    assert "log in again" in why_not(accounts, token)


def test_a_wrong_password_and_an_unknown_user_get_the_same_answer(accounts: Accounts) -> None:
    run(accounts.create("Bob", "correct horse"))
    run(accounts.ensure("Ana", "User"))  # has no password
    gone = run(accounts.create("Gone", "correct horse"))
    run(accounts.directory.delete_user(gone, gone.id))
    answers = set()
    for name in ("Bob", "Ana", "Gone", "Nobody", "", "x" * 1000, "\ud800"):
        with pytest.raises(NotAuthenticatedError) as caught:
            run(accounts.login(name, "wrong" if name == "Bob" else "correct horse", name[:20]))
        answers.add(str(caught.value))
    assert len(answers) == 1


def test_a_missing_user_costs_the_same_work_as_a_wrong_password() -> None:
    known = passwords.hash_password("correct horse")

    def cpu_s(password_hash: str | None) -> float:
        begin = time.thread_time()
        assert not passwords.verify(password_hash, "wrong")
        return time.thread_time() - begin

    gc.collect()
    pairs = [(cpu_s(known), cpu_s(None)) for _ in range(9)]
    with_user, without = (statistics.median(times) for times in zip(*pairs, strict=True))
    assert 0.5 < with_user / without < 2.0
    assert without > 0.001


def test_a_hash_is_argon2id_with_todays_parameters() -> None:
    found = passwords.hash_password("correct horse")
    assert found.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert passwords.verify(found, "correct horse")
    assert not passwords.is_outdated(found)
    assert found != passwords.hash_password("correct horse")


def test_a_hash_of_older_parameters_is_renewed_at_the_next_login(database: Database, accounts: Accounts) -> None:
    from argon2 import PasswordHasher

    bob = run(accounts.create("Bob", "correct horse"))
    older = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1).hash("correct horse")
    run(AccountTable(database).set_password_hash(bob.id, older))
    run(accounts.login("Bob", "correct horse", HERE))
    renewed = run(AccountTable(database).account(bob.id)).password_hash
    assert renewed is not None
    assert not passwords.is_outdated(renewed)
    run(accounts.login("Bob", "correct horse", HERE))


def fail_to_log_in(accounts: Accounts, name: str, origin: str, times: int) -> None:
    for _ in range(times):
        with pytest.raises(NotAuthenticatedError):
            run(accounts.login(name, "wrong", origin))


def test_who_guesses_passwords_waits_whatever_name_they_try(accounts: Accounts, clock: Clock) -> None:
    run(accounts.create("Bob", "correct horse"))
    for n in range(5):
        fail_to_log_in(accounts, f"user {n}", HERE, 1)
    with pytest.raises(TooManyAttemptsError):
        run(accounts.login("Bob", "correct horse", HERE))
    assert run(accounts.login("Bob", "correct horse", ELSEWHERE))
    clock.now += 1.0
    assert run(accounts.login("Bob", "correct horse", HERE))
    fail_to_log_in(accounts, "user 6", HERE, 5)  # the success started over


def test_a_name_that_is_guessed_at_from_many_places_waits_whether_or_not_it_exists(accounts: Accounts) -> None:
    run(accounts.create("Bob", "correct horse"))
    for name in ("Bob", "Nobody"):
        for n in range(5):
            fail_to_log_in(accounts, name, f"198.51.100.{n}", 1)
        with pytest.raises(TooManyAttemptsError, match="wait 1 s"):
            run(accounts.login(name, "correct horse", ELSEWHERE))


def test_guesses_made_at_once_do_not_outrun_the_count(accounts: Accounts) -> None:
    run(accounts.create("Bob", "correct horse"))

    async def flood() -> list[type[object]]:
        guesses = (accounts.login("Bob", f"guess {n}", f"198.51.100.{n}") for n in range(20))
        return [type(answer) for answer in await asyncio.gather(*guesses, return_exceptions=True)]

    answers = run(flood())
    assert answers.count(NotAuthenticatedError) == 5
    assert answers.count(TooManyAttemptsError) == 15


def test_only_so_many_hashes_wait_in_line_and_nobody_is_blamed_for_it(accounts: Accounts) -> None:
    async def flood() -> list[BaseException | str]:
        attempts = (accounts.login(f"user {n}", "guess", f"198.51.100.{n}") for n in range(40))
        return await asyncio.gather(*attempts, return_exceptions=True)

    answers = run(flood())
    busy = [n for n, answer in enumerate(answers) if isinstance(answer, TooManyAttemptsError)]
    assert len(busy) == 8
    for n in busy:
        fail_to_log_in(accounts, f"user {n}", f"198.51.100.{n}", 1)
    fail_to_log_in(accounts, f"user {busy[0]}", ELSEWHERE, 4)


# ------------------------------------------------------------------ invites


def test_an_invite_makes_one_account_of_its_role(accounts: Accounts, clock: Clock) -> None:
    code, expires = run(accounts.invite("Publisher", 3600.0))
    assert expires == clock.now + 3600.0
    ana, token = run(accounts.accept_invite(f" http://bob.example:3000/#{code}\n", "Ana", "correct horse", HERE))
    assert (ana.username, ana.role) == ("Ana", "Publisher")
    assert run(accounts.identify(token, HERE)) == ana
    assert run(accounts.identify(run(accounts.login("Ana", "correct horse", HERE)), HERE)) == ana
    with pytest.raises(NotAuthenticatedError) as used:
        run(accounts.accept_invite(code, "Eve", None, HERE))
    with pytest.raises(NotAuthenticatedError) as unknown:
        run(accounts.accept_invite(tokens.new_invite(), "Eve", None, HERE))
    assert str(used.value) == str(unknown.value)


def test_of_many_who_accept_one_invite_at_once_one_comes_in(accounts: Accounts) -> None:
    code, _ = run(accounts.invite("User", 60.0))

    async def race() -> list[object]:
        attempts = (accounts.accept_invite(code, f"user {n}", None, f"198.51.100.{n}") for n in range(20))
        return await asyncio.gather(*attempts, return_exceptions=True)

    answers = run(race())
    assert len([answer for answer in answers if isinstance(answer, tuple)]) == 1
    assert len([answer for answer in answers if isinstance(answer, NotAuthenticatedError)]) == 19


def test_of_two_processes_that_accept_one_invite_one_comes_in(accounts: Accounts, file: Path) -> None:
    code, _ = run(accounts.invite("User", 1e9))
    script = """
import asyncio, pathlib, sys
from grid_jupyter.errors import NotAuthenticatedError
from grid_jupyter.identity.accounts import Accounts
from grid_jupyter.store.accounts import AccountTable
from grid_jupyter.store.database import Database, sqlite_url
accounts = Accounts(AccountTable(Database(sqlite_url(pathlib.Path(sys.argv[1])))), "bob-7f", lambda: 1_000_000.0)
print("ready", flush=True)
input()
try:
    print(asyncio.run(accounts.accept_invite(sys.argv[2], sys.argv[3], None, "here"))[0].username)
except NotAuthenticatedError:
    print("-")
"""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(file), code, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("Ana", "Eve")
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    answers = sorted(child.communicate(timeout=30)[0].strip() for child in children)
    assert answers in (["-", "Ana"], ["-", "Eve"])


def test_an_invite_ends_when_it_expires(accounts: Accounts, clock: Clock) -> None:
    code, _ = run(accounts.invite("User", 60.0))
    clock.now += 60.0
    with pytest.raises(NotAuthenticatedError, match="expired"):
        run(accounts.accept_invite(code, "Ana", None, HERE))


def test_an_invite_is_still_good_after_a_name_or_password_that_was_refused(accounts: Accounts) -> None:
    run(accounts.ensure("Bob", "User"))
    code, _ = run(accounts.invite("User", 60.0))
    refused: tuple[tuple[str, str | None, type[GridError]], ...] = (
        ("Bob", None, IdNotUniqueError),
        ("", None, BadRequest),
        ("Ana", "", BadRequest),
    )
    for name, password, error in refused:
        with pytest.raises(error):
            run(accounts.accept_invite(code, name, password, HERE))
    assert run(accounts.accept_invite(code, "Ana", None, HERE))[0].username == "Ana"


def test_an_invite_for_a_name_is_good_for_that_name_only(accounts: Accounts) -> None:
    code, _ = run(accounts.invite("User", 60.0, "Ana"))
    with pytest.raises(Forbidden):
        run(accounts.accept_invite(code, "Eve", None, HERE))
    assert run(accounts.accept_invite(code, "Ana", None, HERE))[0].username == "Ana"
    with pytest.raises(IdNotUniqueError):
        run(accounts.invite("User", 60.0, "Ana"))


def test_guessing_invites_is_locked_out(accounts: Accounts, clock: Clock) -> None:
    right, _ = run(accounts.invite("User", 60.0))
    for wrong in ("", "hello", tokens.new_invite(), "http://x/#gji1_short", tokens.new_token("bob-7f")):
        with pytest.raises(NotAuthenticatedError):
            run(accounts.accept_invite(wrong, "Eve", None, HERE))
    with pytest.raises(TooManyAttemptsError):
        run(accounts.accept_invite(right, "Ana", None, HERE))
    clock.now += 1.0
    assert run(accounts.accept_invite(right, "Ana", None, HERE))[0].username == "Ana"


# ------------------------------------------------------------------ the form of credentials


@pytest.mark.parametrize("node_id", ["a", "bob_7f", "n" * 64, "gjt1_x_"])
def test_a_token_names_its_node_whatever_the_node_is_called(node_id: str) -> None:
    assert tokens.node_of(tokens.new_token(node_id)) == node_id


@pytest.mark.parametrize("node_id", ["", "n" * 65, "a b", "a/b", "ä"])
def test_a_node_id_that_does_not_fit_a_token_is_refused(node_id: str) -> None:
    with pytest.raises(ValueError, match="node id"):
        tokens.new_token(node_id)
