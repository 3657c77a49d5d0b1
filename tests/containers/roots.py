"""Unpacked Debian systems, of this machine's processor or of another: where the steps of the image run without Docker.

They are made by mmdebstrap from the mirror that this machine's apt uses, with its settings. Programs for another
processor run by emulation (qemu-user-static), which is 10 to 30 times slower: good for behaviour, not for speed.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
RELEASE = "bookworm"
SCRIPTS = REPOSITORY / "docker" / "hivecell-notebook"
BARE = (
    "base-files", "base-passwd", "bash", "ca-certificates", "coreutils", "dash", "debianutils", "diffutils",
    "findutils", "grep", "gzip", "hostname", "libc-bin", "libstdc++6", "mawk", "openssl", "passwd", "python3",
    "python3-pip-whl", "python3-setuptools-whl", "python3-venv", "sed", "tar", "util-linux",
)  # fmt: skip
"""What a root needs that is unpacked and not set up: seconds, also for another processor."""


class Root:
    """A folder that is a Debian system, and how to run something in it as root."""

    def __init__(self, folder: Path, architecture: str) -> None:
        self.folder = folder
        self.architecture = architecture

    def make(self, *packages: str, variant: str = "minbase") -> Root:
        """Unpack the system. With variant "extract", nothing is set up in it."""
        settings = self.folder.parent / "apt.conf"
        settings.write_text(_output("apt-config", "dump", "Acquire"))
        _check(
            "mmdebstrap", "--quiet", f"--arch={self.architecture}", f"--variant={variant}", f"--aptopt={settings}",
            "--aptopt=APT::Sandbox::User \"root\"", f"--include={','.join(packages)}", RELEASE, str(self.folder),
            _mirror(),
        )  # fmt: skip
        shutil.copy("/etc/resolv.conf", self.folder / "etc/resolv.conf")
        bundle = Path("etc/ssl/certs/ca-certificates.crt")
        (self.folder / bundle).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/" / bundle, self.folder / bundle)  # with those that this machine trusts besides
        if (self.folder / "etc/apt/apt.conf.d").exists():
            shutil.copy(settings, self.folder / "etc/apt/apt.conf.d/90host")
            (self.folder / "etc/apt/apt.conf.d/91root").write_text('APT::Sandbox::User "root";\n')
        for config in (Path("/etc/pip.conf"), Path.home() / ".config/pip/pip.conf"):
            if config.exists():
                shutil.copy(config, self.folder / "etc/pip.conf")
        shutil.copytree(SCRIPTS, self.folder / "opt/grid")
        return self

    def command(self, *command: str, user: str = "root", **variables: str) -> list[str]:
        """What runs a command in this root; mounts end with it."""
        mounts = []
        for path in ("/proc", "/dev", *_packages_on_disk()):
            inside = shlex.quote(f"{self.folder}{path}")
            mounts += [f"mkdir -p {inside}", f"mount --rbind {shlex.quote(path)} {inside}"]
        kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        path = "/opt/grid/env/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        seen = {
            **kept,
            "PATH": path,
            "LANG": "C.UTF-8",
            "HOME": "/root" if user == "root" else f"/home/{user}",
            "QEMU_CPU": "cortex-a76",  # near a Jetson's; torch 2.15 multiplies wrongly on the one that it emulates else
            **variables,
        }
        inner = ["chroot", f"--userspec={user}", str(self.folder), "env", "-i", *(f"{k}={v}" for k, v in seen.items())]
        script = " && ".join([*mounts, f"exec {shlex.join([*inner, *command])}"])
        return ["unshare", "--mount", "bash", "-c", script]

    def run(self, *command: str, user: str = "root", **variables: str) -> str:
        """Run a command; returns what it printed. Raises AssertionError with that if it failed."""
        return _check(*self.command(*command, user=user, **variables))

    def take(self, source: Path, target: str) -> None:
        """Copy a file of the repository, or a folder, into the root."""
        place = self.folder / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, dirs_exist_ok=True)
        else:
            shutil.copy2(source, place)


def missing(architecture: str) -> str:
    """What this machine lacks to make and run such a root; empty if nothing."""
    if os.geteuid() != 0:
        return "roots are made by root alone"
    if shutil.which("mmdebstrap") is None:
        return "no mmdebstrap; on Debian: apt-get install mmdebstrap"
    if architecture == own_architecture():
        return ""
    handlers = Path("/proc/sys/fs/binfmt_misc")
    if not (handlers / "status").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "none", str(handlers)], check=False, capture_output=True)
    if not (handlers / "qemu-aarch64").exists() and shutil.which("update-binfmts"):
        subprocess.run(["update-binfmts", "--enable", "qemu-aarch64"], check=False, capture_output=True)
    if not (handlers / "qemu-aarch64").exists():
        return "no emulation of arm64; on Debian: apt-get install qemu-user-static binfmt-support"
    return ""


def own_architecture() -> str:
    """This machine's processor, in Debian's words."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def build_wheel(folder: Path) -> Path:
    """The wheel of this repository, by the image's own step, on this machine."""
    _check(
        "env", f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}",
        str(SCRIPTS / "wheel.sh"), str(REPOSITORY), str(folder),
    )  # fmt: skip
    (wheel,) = folder.glob("grid_jupyter-*.whl")
    return wheel


def _mirror() -> str:
    """The line of Debian's main packages in this machine's apt settings."""
    targets = _output(
        "apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT) $(CREATED_BY)", "Origin: Debian"
    )
    for line in targets.splitlines():
        site, release, component, made_by = line.split()
        if (release, component, made_by) == (RELEASE, "main", "Packages"):
            return f"deb {site} {RELEASE} main"
    raise AssertionError(f"this machine's apt knows no packages of Debian {RELEASE}:\n{targets}")


def _packages_on_disk() -> Sequence[str]:
    """Folders that this machine's pip takes packages from."""
    told = _output(sys.executable, "-m", "pip", "config", "list").replace("'", " ").replace("\\n", " ").split()
    told += os.environ.get("PIP_FIND_LINKS", "").split()
    # the pages of an index point to files beside it
    folders = [Path(word[7:]).parent if word.startswith("file://") else Path(word) for word in told]
    return sorted({str(folder) for folder in folders if folder.is_absolute() and folder.is_dir()})


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _check(*command: str) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)[-400:]}\n{done.stdout[-6000:]}"
    return done.stdout
