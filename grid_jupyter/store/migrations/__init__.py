"""The database's schema over time: Alembic revisions, run without an ini file.

`HEAD` stands here so that opening a database that is already there costs no import of Alembic.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection

from grid_jupyter.errors import GridError

HEAD = "0011"
"""The newest revision; tests hold it equal to what is in versions/."""


def check_known(revision: str) -> None:
    """Raises GridError for a revision that this software does not know."""
    if revision not in {script.name[1:5] for script in (Path(__file__).parent / "versions").glob("r[0-9]*_*.py")}:
        raise GridError(
            f"the database is at schema {revision}, which this version of grid_jupyter does not know: "
            "a newer version wrote it; upgrade grid_jupyter, or give it another state directory"
        )


def upgrade(connection: Connection, revision: str | None) -> None:
    """Bring the database behind `connection`, now at `revision`, to HEAD within its transaction.

    Raises GridError if the database is at a revision that this software does not know.
    """
    from alembic import command
    from alembic.config import Config

    if revision is not None:
        check_known(revision)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
