"""The files of an unpacked image: looked up as its programs would, which no link leads out of, and made ready."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_NOBODY = 2**31  # users and groups have smaller numbers
_LINKS = 40  # as many as the kernel follows
# What is mounted over in a sandbox has to be there.
_MOUNTED_OVER = ("etc/resolv.conf", "etc/hosts")


def locate(root: Path, path: str) -> Path | None:
    """Where in `root` that is what a program with this root finds at an absolute path; None when there is nothing."""
    pending = path.split("/")[::-1]
    found: list[str] = []
    links = 0
    while pending:
        part = pending.pop()
        if part in ("", "."):
            continue
        if part == "..":
            del found[-1:]
            continue
        file = root.joinpath(*found, part)
        try:
            mode = file.lstat().st_mode
            target = os.readlink(file) if stat.S_ISLNK(mode) else None  # noqa: PTH115 - as it is written
        except OSError:
            return None
        if target is None:
            found.append(part)
            continue
        links += 1
        if links > _LINKS:
            return None
        if target.startswith("/"):
            found.clear()
        pending += target.split("/")[::-1]
    return root.joinpath(*found)


def user_of(root: Path, text: str) -> tuple[int, int] | None:
    """The numbers of the user and the group that an image names as NAME, NUMBER, or with a group behind a colon; None
    when that is nobody, or root. Raises LookupError with the reason when it has no such user."""
    name, _, group = text.partition(":")
    users, groups = _entries(root, "/etc/passwd"), _entries(root, "/etc/group")
    known = next((entry for entry in users if len(entry) > 3 and name in (entry[0], entry[2])), None)
    numbers = [known[2] if known else name, known[3] if known else "0"] if name else ["0", "0"]
    if group:
        numbers[1] = next((entry[2] for entry in groups if len(entry) > 2 and entry[0] == group), group)
    if not all(number.isdecimal() and number.isascii() and int(number) < _NOBODY for number in numbers):
        raise LookupError(f"its user {text!r} is not in its /etc/passwd or /etc/group")
    return (int(numbers[0]), int(numbers[1])) if int(numbers[0]) else None


def _entries(root: Path, path: str) -> list[list[str]]:
    file = locate(root, path)
    if file is None or not file.is_file():
        return []
    return [line.split(":") for line in file.read_text(errors="replace").splitlines()]


def prepare(root: Path, cwd: str) -> None:
    """Make what a sandbox needs, and the image's own working directory, which images need not have. Nothing of it is a
    device. Raises OSError."""
    root.chmod(0o755)
    for folder, _, names in os.walk(root):
        for name in names:
            file = Path(folder, name)
            mode = file.lstat().st_mode
            if stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
                file.unlink()
    for name in _MOUNTED_OVER:
        folder = make_folder(root, "/etc")
        file = folder / Path(name).name if folder is not None else None
        if file is not None and not file.is_symlink() and not file.exists():
            file.touch()
    make_folder(root, cwd)


def make_folder(root: Path, path: str) -> Path | None:
    """The folder at an absolute path of the image, made if it is missing; None when something else is in the way.
    Raises OSError."""
    made = root
    for part in Path(path).parts[1:]:
        inside = "/" + str(made.relative_to(root) / part)
        found = locate(root, inside)
        if found is None:
            if (made / part).is_symlink() or part == "..":
                return None
            found = made / part
            found.mkdir()
        if not found.is_dir():
            return None
        made = found
    return made
