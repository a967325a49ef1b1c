"""Where instances come in: what they make in their folders is noticed, however much others make in theirs."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from pathlib import Path

import pytest
from asyncinotify import Inotify

from flame.model.errors import InvalidConfigError
from flame.shims.reception import Reception, default_socket_root

LIMIT = 1 << 20
QUEUED = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())


def listen(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    return server


async def test_a_socket_is_noticed_even_where_somebody_makes_files_without_end(tmp_path: Path) -> None:
    reception = Reception(tmp_path, LIMIT, tmp_path)
    await reception.open()
    loud, quiet = (reception.expect(name, "token", link=False) for name in ("loud", "quiet"))
    try:
        # Nobody reads meanwhile, so the kernel has no room for news of more.
        for number in range(QUEUED + 10):
            os.close(os.open(loud.folder / str(number), os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))
        with listen(quiet.socket):
            async with asyncio.timeout(30):
                await quiet.file
            assert quiet.address().is_socket()
        assert not loud.file.done()
    finally:
        for arrival in (loud, quiet):
            await reception.forget(arrival)
        await reception.close()


async def test_the_folder_of_an_instance_goes_with_it(tmp_path: Path) -> None:
    reception = Reception(tmp_path, LIMIT, tmp_path)
    await reception.open()
    arrival = reception.expect("e-1", "token", link=False)
    assert arrival.folder.stat().st_mode & 0o777 == 0o700
    (arrival.folder / "left").touch()
    await reception.forget(arrival)
    assert not arrival.folder.exists()
    await reception.close()


async def test_instances_outlive_the_reception_of_a_node_that_stops(tmp_path: Path) -> None:
    reception = Reception(tmp_path, LIMIT, tmp_path)
    await reception.open()
    arrival = reception.expect("e-1", "token", link=False)
    await reception.close()
    await reception.forget(arrival)
    assert not arrival.folder.exists()
    with pytest.raises(OSError, match="the executor manager is stopping"):
        reception.expect("e-2", "token", link=False)


async def test_a_socket_is_found_even_where_somebody_took_all_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    reception = Reception(tmp_path, LIMIT, tmp_path)
    await reception.open()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(Inotify, "add_watch", full)
            one, other = (reception.expect(name, "token", link=False) for name in ("one", "other"))
        for arrival in (one, other):
            assert not arrival.file.done()
            with listen(arrival.socket):
                async with asyncio.timeout(30):
                    await arrival.file
            await reception.forget(arrival)
        third = reception.expect("third", "token", link=False)  # there are watches again
        with listen(third.socket):
            async with asyncio.timeout(30):
                await third.file
        await reception.forget(third)
    finally:
        await reception.close()


def test_the_folder_for_sockets_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    assert default_socket_root() == tmp_path / "run" / "flame"
    monkeypatch.setenv("FLAME_SOCKET_DIR", str(tmp_path / "s"))
    assert default_socket_root() == tmp_path / "s"
    (tmp_path / "s").chmod(0o777)
    with pytest.raises(InvalidConfigError, match="is open to others") as raised:
        default_socket_root()
    assert raised.value.remedy == "remove it, or set FLAME_SOCKET_DIR"
