"""`<base_url>/grid/api/preview` and `publish`: a file that Jupyter serves becomes a data set of the owner's Node."""

from __future__ import annotations

import asyncio
from typing import Any

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import JupyterHandler
from tornado import web

from grid_jupyter.server.file_reader import FileReader
from grid_jupyter.server.panel_doors import PanelDoor
from grid_jupyter.server.served_files import place_of
from grid_jupyter.wire.owner import FilePreview, FilePublish, FileTask


class FileDoor(PanelDoor):
    """Base of what is done with files of the file browser."""

    @property
    def reader(self) -> FileReader:
        """What reads them."""
        reader: FileReader = self.settings["grid_jupyter"].reader
        return reader

    async def file(self, path: str) -> str:
        """Where it is on the disk. Raises NotFound, Forbidden, BadRequest."""
        contents: Any = self.contents_manager
        return str(await asyncio.to_thread(place_of, contents, path))


class PanelPreview(FileDoor):
    """POST <base_url>/grid/api/preview: form and first rows of a file, for the owner alone."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        file = await self.file(self.body(FilePreview).path)
        self.tell(await self.reader.do(FileTask(file=file)))


class PanelPublish(FileDoor):
    """POST <base_url>/grid/api/publish: publish a file at the owner's Node."""

    @web.authenticated
    @authorized
    async def post(self) -> None:
        asked = self.body(FilePublish)
        file = await self.file(asked.path)
        self.tell(await self.reader.do(FileTask(file=file, socket=self.socket, publish=asked.publish)))


PUBLISH_RULES: list[tuple[str, type[JupyterHandler]]] = [
    (r"grid/api/preview", PanelPreview),
    (r"grid/api/publish", PanelPublish),
]
