"""What kind of place a folder is: a disk of this machine, another machine's, a synced one."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlxroles.machine import apple

NETWORK = {
    "nfs", "nfs4", "smbfs", "cifs", "smb2", "smb3", "afpfs", "webdav", "davfs", "9p", "ceph",
    "lustre", "gpfs", "beegfs", "glusterfs", "sshfs", "fuse.sshfs", "fuse.glusterfs",
    "fuse.rclone", "afs",
}  # fmt: skip
"""File systems of another machine, whose locks cannot be relied on."""

_SYNCED = (
    (r"/Library/Mobile Documents(/|$)", "iCloud Drive"),
    (r"/Library/CloudStorage/Dropbox", "Dropbox"),
    (r"/Library/CloudStorage/OneDrive", "OneDrive"),
    (r"/Library/CloudStorage/GoogleDrive", "Google Drive"),
    (r"/Library/CloudStorage/", "a cloud service"),
    (r"/Dropbox( \([^/]*\))?(/|$)", "Dropbox"),
    (r"/OneDrive( - [^/]*)?(/|$)", "OneDrive"),
    (r"/Google ?Drive(/|$)", "Google Drive"),
    (r"/(Nextcloud|ownCloud|Syncthing|pCloudDrive|MEGA)(/|$)", None),
)


@dataclass(frozen=True)
class Place:
    """What is known about the place of a folder."""

    filesystem: str | None
    """Its type, e.g. ``apfs``."""
    synced: str | None
    """The service that copies it away."""

    @property
    def on_network(self) -> bool:
        """Whether the disk is another machine's."""
        return self.filesystem in NETWORK

    def warning(self) -> str | None:
        """What to know before a run is stored there."""
        if self.on_network:
            return (
                f"lies on a network disk ({self.filesystem}): its locks cannot be relied on; see"
                " that one process writes a run, or use a disk of this machine"
            )
        if self.synced:
            return (
                f"is copied by {self.synced}, which may hold, rename or remove files of a running"
                " run; put results elsewhere and link to them"
            )
        return None


def place(folder: Path) -> Place:
    """Looks up the place of a folder; of the nearest one that exists if it does not."""
    try:
        path = folder.resolve()
    except (OSError, RuntimeError):
        path = folder.absolute()
    return Place(filesystem(path), synced(path))


def synced(path: Path) -> str | None:
    """The service whose folder the path lies in, by the names of folders."""
    for pattern, name in _SYNCED:
        if match := re.search(pattern, path.as_posix()):
            return name or match[1]
    return None


def filesystem(path: Path, mounts: Callable[[], dict[str, str]] | None = None) -> str | None:
    """The type of the file system that holds the path.

    Args:
        path: Absolute, without links.
        mounts: Where what is mounted; None to ask the system.
    """
    found = (mounts or _mounts)()
    for folder in (path, *path.parents):
        if str(folder) in found:
            return found[str(folder)]
    return None


def _mounts() -> dict[str, str]:
    if sys.platform == "darwin":
        return of_mount(apple.ask("/sbin/mount"))
    try:
        return of_mountinfo(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return {}


def of_mountinfo(text: str) -> dict[str, str]:
    """Folder -> type, from ``/proc/self/mountinfo``; the last mount on a folder is what is seen."""
    found = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        words = before.split(" ")
        if after and len(words) > 4:
            folder = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4])
            found[folder] = after.split(" ")[0]
    return found


def of_mount(text: str) -> dict[str, str]:
    """Folder -> type, from what ``mount`` prints on macOS."""
    lines = re.findall(r"^.* on (/.*) \((\w+)[,)]", text, re.MULTILINE)
    found = dict(lines)
    # the volume that holds what is written is hidden behind the sealed one
    if "/" in found and "/System/Volumes/Data" in found:
        found["/"] = found["/System/Volumes/Data"]
    return found
