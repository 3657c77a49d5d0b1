"""Binder's files, run for real: what they install, the last step of the image, and the start, in 2 GB and one port."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import urllib.request
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
from jupyter_process import eventually
from memory_limit import MemoryLimit, NoLimitError
from packaging.requirements import Requirement

import grid_jupyter as sy
from grid_jupyter.client.credentials import Credentials
from grid_jupyter.errors import NotAuthenticatedError

REPOSITORY = Path(__file__).parents[2]
BINDER = REPOSITORY / "binder"
START_HERE = Path("notebooks/tutorials/00-start-here.ipynb")
KNOWN = {"apt.txt", "environment.yml", "postBuild", "requirements.txt", "runtime.txt", "start"}
"""Of what repo2docker looks for, what could be of use here; it says nothing of a file that it does not know."""
TOOLS = ("bash", "cat", "grep", "mkdir", "sh", "sleep")
"""Of the system's programs, those that the files use. Binder has no bubblewrap, so here there is none either."""
BASE_URL = "/user/x/"
TOKEN = "0123456789abcdef"
MEMORY = 2_000_000_000
"""Bytes that Binder gives to one visitor."""
EXECUTE = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def lines() -> list[str]:
    text = (BINDER / "requirements.txt").read_text().splitlines()
    return [line for line in text if line and not line.startswith(("#", "-"))]


class Image:
    """An environment with what requirements.txt says, and the home of its user, where the checkout lies."""

    def __init__(self, folder: Path) -> None:
        self.prefix, self.home = folder / "env", folder / "home"
        self.python = self.prefix / "bin/python3"
        venv.create(self.prefix, symlinks=True)
        (site,) = self.prefix.glob("lib/python*/site-packages")
        # Packages are taken from the environment of the tests; grid_jupyter is installed anew and comes first.
        (site / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
        lab = self.prefix / "share/jupyter/lab"
        lab.mkdir(parents=True)
        for part in ("schemas", "static", "themes"):  # JupyterLab looks for its own pages beside Python
            (lab / part).symlink_to(Path(sysconfig.get_path("data")) / "share/jupyter/lab" / part)
        shutil.copytree(REPOSITORY / START_HERE.parent, self.home / START_HERE.parent)
        strange = ("JUPYTER", "JPY_", "GRID_JUPYTER", "PYTHON", "XDG_", "VIRTUAL_ENV")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
        tools = folder / "tools"
        tools.mkdir()
        for name in TOOLS:
            (tools / name).symlink_to(str(shutil.which(name)))
        self.env |= {"HOME": str(self.home), "PATH": f"{self.prefix}/bin:{tools}"}

    def tell(self, *command: str | Path, where: Path | None = None, **env: str) -> str:
        done = subprocess.run(
            command,
            cwd=where or self.home,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


class Launched:
    """What `start` was told to run, and all that runs beside it."""

    def __init__(self, image: Image, limit: MemoryLimit | None) -> None:
        self.image, self.limit = image, limit
        self.log = image.home.parent / "binder.log"
        server = (image.python, "-m", "jupyterlab", "--ip=0.0.0.0", "--port=0", "--no-browser", "--allow-root")
        told = (f"--ServerApp.base_url={BASE_URL}", f"--IdentityProvider.token={TOKEN}")
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.within([BINDER / "start", *server, *told]),
                cwd=image.home,
                env=image.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.most = self.limited = 0
        self.largest: dict[str, int] = {}
        self.beside: list[psutil.Process] = []
        self._end = threading.Event()
        self._watching = threading.Thread(target=self._watch)
        self._watching.start()

    def within(self, command: Sequence[str | Path]) -> Sequence[str | Path]:
        """The command as one of the container's processes."""
        return self.limit.within(command) if self.limit else command

    @property
    def state(self) -> Path:
        return self.image.home / ".local/share/grid_jupyter"

    def local(self) -> dict[str, Any]:
        """What sy.local() finds; {} before there is a grid."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            return dict(json.loads((self.state / "local.json").read_text()))
        except FileNotFoundError:
            return {}

    def url(self) -> str:
        (info,) = (self.image.home / ".local/share/jupyter/runtime").glob("jpserver-*.json")
        return str(json.loads(info.read_text())["url"])

    def get(self, path: str) -> str:
        """What is answered below the base_url; fails where it is refused."""
        request = urllib.request.Request(self.url() + path, headers={"Authorization": f"token {TOKEN}"})
        with urllib.request.urlopen(request, timeout=20) as response:
            return str(response.read().decode())

    def family(self) -> list[psutil.Process]:
        """All processes that a visitor's container would have."""
        me = psutil.Process(self.process.pid)
        found = [me, *me.children(recursive=True)]
        for process in self.beside:
            with contextlib.suppress(psutil.NoSuchProcess):
                found += process.children(recursive=True)
        return found

    def close(self) -> None:
        self._end.set()
        self._watching.join()
        for process in reversed(self.family()) if self.process.poll() is None else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(10)

    def _watch(self) -> None:
        """Keep the most memory that all of it ever had, each shared page counted once."""
        while not self._end.wait(0.5):
            try:
                now = {f"{process.pid} {' '.join(process.cmdline())}": pss(process.pid) for process in self.family()}
            except psutil.NoSuchProcess:
                continue
            if self.limit:
                self.limited = max(self.limited, self.limit.in_use())
            if sum(now.values()) > self.most:
                self.most, self.largest = sum(now.values()), now


def pss(pid: int) -> int:
    """Bytes of memory of a process, its share of what others have, too; 0 if it has ended meanwhile."""
    try:
        found = re.search(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found[1]) * 1024 if found else 0


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    image = Image(tmp_path_factory.mktemp("binder"))
    # All lines but torch's, whose build for processors is another index's: what the tests have serves for it.
    ours = [line for line in lines() if not line.startswith("torch")]
    pip = ("-m", "pip", "install", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    image.tell(image.python, *pip, *ours, where=REPOSITORY)
    return image


@pytest.fixture(scope="module")
def limit() -> Iterator[MemoryLimit | NoLimitError]:
    """The memory of a visitor's container, or why there cannot be one."""
    try:
        made = MemoryLimit("grid-jupyter-binder", MEMORY)
    except NoLimitError as error:
        yield error
        return
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def launched(image: Image, limit: MemoryLimit | NoLimitError) -> Iterator[Launched]:
    image.tell(BINDER / "postBuild")
    launched = Launched(image, limit if isinstance(limit, MemoryLimit) else None)
    try:
        eventually(launched.local, "the start of the grid", 120.0)
        yield launched
    finally:
        launched.close()


def test_binder_knows_each_of_the_files_and_shellcheck_has_nothing_to_say():
    assert {path.name for path in BINDER.iterdir()} <= KNOWN
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    said = subprocess.run([shellcheck, BINDER / "postBuild", BINDER / "start"], capture_output=True, text=True)
    assert said.returncode == 0, said.stdout
    assert re.fullmatch(r"python-3\.\d+\n", (BINDER / "runtime.txt").read_text())


def test_torch_is_the_tested_release_without_cuda():
    (torch,) = (Requirement(line) for line in lines() if line.startswith("torch"))
    (tested,) = re.findall(r"^TORCH \?= (torch==\S+)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert str(torch) == f"{tested}+cpu"


def test_the_last_step_fails_where_an_extension_is_missing(tmp_path):
    without = Image(tmp_path)  # with Jupyter, but this project is not installed
    done = subprocess.run([BINDER / "postBuild"], cwd=without.home, env=without.env, capture_output=True, text=True)
    assert (done.returncode, done.stderr.partition(":")[0]) == (1, "The server extension is not there")


def test_the_start_tutorial_runs_on_two_nodes_within_2_gb(launched, tmp_path):
    executed = tmp_path / "executed.ipynb"
    command = [launched.image.python, "-c", EXECUTE, launched.image.home / START_HERE, executed]
    running = subprocess.Popen(
        launched.within(command),
        cwd=launched.image.home / START_HERE.parent,
        env=launched.image.env,
        stderr=subprocess.PIPE,
        text=True,
    )
    launched.beside.append(psutil.Process(running.pid))  # its child is the notebook's kernel
    try:
        _, said = running.communicate(timeout=240)
    finally:
        launched.beside.clear()
        running.kill()
    assert running.returncode == 0, said
    cells = [cell for cell in json.loads(executed.read_text())["cells"] if cell["cell_type"] == "code"]
    errors = [output["ename"] for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    assert errors == ["GetNotPermittedError"]  # as the tutorial says
    assert "".join(cells[-1]["outputs"][0]["data"]["text/plain"]) == "True"  # more than 0.9 of held-out digits
    assert list(launched.local()["nodes"]) == ["Bob", "Alice"]
    print(f"memory at most: {launched.most / 1e6:.0f} MB; as the container counts it, {launched.limited / 1e6:.0f} MB")
    assert 0 < launched.most < MEMORY, launched.largest


def test_both_nodes_have_their_workers_from_one_fork_server(launched):
    family = launched.family()
    forked = {one.pid: one for one in family if any("forkserver" in part for part in one.cmdline())}
    assert {one.cmdline()[2] for one in forked.values()} == {"grid_jupyter.worker.shared_forkserver"}
    tops = [one for one in forked.values() if one.ppid() not in forked]
    assert [len(tops), len(tops[0].children())] == [1, 2]
    assert all(node.children() for node in tops[0].children()), "Workers of each"


def test_all_of_that_has_had_a_hard_limit_of_memory(launched, limit):
    if isinstance(limit, NoLimitError):
        pytest.skip(f"measured alone: {limit}")
    assert {process.pid for process in launched.family()} <= limit.members()
    assert limit.killed() == 0
    assert 0 < launched.limited < MEMORY


def test_whoever_goes_beyond_such_a_limit_is_killed(limit):
    if isinstance(limit, NoLimitError):
        pytest.skip(str(limit))
    small = MemoryLimit("grid-jupyter-small", 64 << 20)
    try:
        greedy = subprocess.run(small.within([sys.executable, "-c", "bytearray(b'x' * (256 << 20))"]), check=False)
        assert (greedy.returncode, small.killed()) == (-signal.SIGKILL, 1)
    finally:
        small.close()


@pytest.fixture
def badge(tmp_path) -> str:
    """Where the README's badge leads, after whoever publishes a copy has said where it is."""
    shutil.copy(REPOSITORY / "README.md", tmp_path)
    command = ["make", "-f", REPOSITORY / "Makefile", "badge", "REPOSITORY=somebody/grid"]
    subprocess.run(command, cwd=tmp_path, check=True)
    (address,) = re.findall(r"badge_logo\.svg\)\]\((\S+?)\)", (tmp_path / "README.md").read_text())
    assert address.startswith("https://mybinder.org/v2/gh/somebody/grid/HEAD?")
    return str(address)


def test_jupyterlab_opens_the_start_tutorial_and_asks_nobody_for_news(launched, badge):
    (urlpath,) = parse_qs(urlsplit(badge).query)["urlpath"]
    assert urlpath == f"lab/tree/{START_HERE}"
    assert '"baseUrl": "/user/x/"' in launched.get(urlpath)
    assert json.loads(launched.get(f"api/contents/{START_HERE}?content=0"))["type"] == "notebook"
    news = json.loads(launched.get("lab/api/settings/@jupyterlab/apputils-extension:notification"))
    assert news["schema"]["properties"]["fetchNews"]["default"] == "false"
    node = json.loads(launched.get("grid/api/status"))
    assert (node["node"]["name"], node["node"]["network"]["state"]) == ("Alice", "joined")
    assert node["node"]["isolation"].startswith("reduced")


def test_one_port_is_open_and_through_it_others_reach_the_node(launched, tmp_path):
    ports = {
        connection.laddr.port
        for process in launched.family()
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.ip not in ("127.0.0.1", "::1")
    }
    url = urlsplit(launched.url())
    assert ports == {url.port}
    assert url.path == BASE_URL
    mine = Credentials(launched.state / "credentials.json")
    theirs, address = Credentials(tmp_path / "credentials.json"), f"http://127.0.0.1:{url.port}{BASE_URL}grid/public"
    theirs.store(address, "Ana", mine.get(launched.local()["nodes"]["Alice"], "Ana"))
    with sy.NodeClient(address, user="Ana", credentials=theirs) as node:
        (found,) = node.search("#digits", "#X")
        assert 0.2 < found.mean().get().unwrap().item() < 0.4
        assert node.address.url == address
    with sy.NodeClient(address, credentials=theirs) as guest, pytest.raises(NotAuthenticatedError):
        guest.search("#digits")
