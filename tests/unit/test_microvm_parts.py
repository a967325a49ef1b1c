"""What virtual machines are made of: kernels, disks, pumps; and whether KVM works."""

from __future__ import annotations

import gzip
import lzma
import os
import socket
import subprocess
from pathlib import Path

import pytest

from flame.shims.build_cache import Cache
from flame.shims.guest.pump import Lines, Loop, Pump
from flame.shims.microvm_disks import IMAGE, DiskError, Tree, room_disk, write_disk
from flame.shims.microvm_inside import event_of
from flame.shims.microvm_kernel import Archive, Kernel, KernelError, find_kernel, initrd, module_files, needs, unpacked
from flame.shims.microvm_probe import Acceleration, boots, find_acceleration
from flame.shims.microvm_qemu import Qemu
from microvms import found

KEPT = {"disk": 2, "room": 2, "probe": 2, "initrd": 2}


# --- kernels ---------------------------------------------------------------------------------------------------------


def module(depends: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"


def test_modules_are_loaded_behind_those_that_they_need(tmp_path: Path) -> None:
    files = {"virtio_blk.ko": "virtio,virtio-ring", "virtio.ko": "virtio_ring", "virtio_ring.ko": "", "other.ko": ""}
    for name, depends in files.items():
        (tmp_path / name).write_bytes(module(depends))
    (tmp_path / "overlay.ko.xz").write_bytes(lzma.compress(module("")))
    ordered = module_files(Kernel("", str(tmp_path)), pci=False)
    assert [Path(path).name for path in ordered] == ["virtio_ring.ko", "virtio.ko", "virtio_blk.ko", "overlay.ko.xz"]
    assert module_files(Kernel("", ""), pci=False) == []


def test_modules_may_be_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, pack in (("a.ko.xz", lzma.compress), ("a.ko.gz", gzip.compress), ("a.ko", bytes)):
        (tmp_path / name).write_bytes(pack(b"code"))
        assert unpacked(str(tmp_path / name)) == b"code"
    (tmp_path / "a.ko.zst").write_bytes(b"?")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KernelError, match="compressed with zstd"):
        unpacked(str(tmp_path / "a.ko.zst"))
    assert needs(b"no module") == []


def test_the_newest_kernel_is_taken(tmp_path: Path) -> None:
    boot = tmp_path / "flame" / "microvm" / "boot"
    boot.mkdir(parents=True)
    for version in ("6.9.0", "6.10.0"):
        (boot / f"vmlinuz-{version}").write_text("")
    modules = boot.parent / "lib" / "modules" / "6.10.0"
    modules.mkdir(parents=True)
    found = find_kernel({"FLAME_MICROVM_KERNEL": str(boot / "vmlinuz-6.10.0")})
    assert found == Kernel(str(boot / "vmlinuz-6.10.0"), str(modules))
    assert find_kernel({"FLAME_MICROVM_KERNEL": str(boot / "vmlinuz-6.9.0")}).modules == ""


def test_an_archive_can_be_read() -> None:
    archive = Archive()
    archive.folder("a")
    archive.file("a/b", b"text", 0o755)
    busybox = subprocess.run(["busybox", "cpio", "-tv"], input=archive.finished(), capture_output=True, check=True)
    assert [line.split()[0] for line in busybox.stdout.decode().splitlines()] == ["drwxr-xr-x", "-rwxr-xr-x"]


# --- disks -----------------------------------------------------------------------------------------------------------


def test_a_disk_shows_what_it_was_made_of_and_nothing_hidden(tmp_path: Path) -> None:
    shown = tmp_path / "shown"
    (shown / "hidden").mkdir(parents=True)
    (shown / "hidden" / "x").write_text("no")
    (shown / "private").write_text("mine")
    (shown / "private").chmod(0o600)
    (shown / "link").symlink_to("private")
    cache = Cache(str(tmp_path / "cache"), KEPT)
    key, disk = room_disk(cache, [str(shown)], [str(shown / "hidden")], "/nowhere/program")
    assert disk is not None
    os.close(disk)
    image = f"{cache.place('room', key)}/{IMAGE}"
    listed = subprocess.run(
        ["/sbin/debugfs", "-R", f"ls -l {shown}", image], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1]: line.split()[1] for line in listed.stdout.splitlines() if line.strip()}
    assert set(names) == {".", "..", "private", "link"}
    assert names["private"] == "100644"  # the machine has one user only
    assert room_disk(cache, [], [], "/nowhere/program") == ("", None)


def test_a_disk_that_can_not_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DiskError, match="mke2fs can't make a disk of"):
        write_disk(str(tmp_path / "none"), str(tmp_path / "no" / "such" / "folder"))


def test_a_program_of_the_system_comes_with_its_libraries(tmp_path: Path) -> None:
    tree = Tree(str(tmp_path / "tree"))
    tree.add_program("/bin/sh")
    tree.add_libraries()
    inside = subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True, check=True).stdout
    for word in inside.split():
        assert not word.startswith("/") or os.path.exists(tree.top + word)  # noqa: PTH110
    assert os.access(f"{tree.top}/bin/sh", os.X_OK)


# --- what comes from inside ------------------------------------------------------------------------------------------


def test_bytes_are_moved_no_faster_than_they_are_taken() -> None:
    loop = Loop()
    source, into = os.pipe()
    out, sink = os.pipe()
    for descriptor in (source, into, sink):
        os.set_blocking(descriptor, False)
    pump = Pump(loop, source, sink)
    pump.begin()
    sent = 0
    while True:
        try:
            sent += os.write(into, bytes(4096))
        except BlockingIOError:
            loop.turn(0)
            if not pump.idle:
                break  # the sink is full: no more is read
    os.close(into)
    got = 0
    while got < sent:
        got += len(os.read(out, 1 << 20))
        loop.turn(0)
    loop.turn(0)
    assert (pump.moved, pump.ended, pump.idle) == (sent, True, True)
    for descriptor in (source, out, sink):
        os.close(descriptor)


def test_nobody_reads_any_more() -> None:
    loop = Loop()
    ours, theirs = socket.socketpair()
    source, into = os.pipe()
    pump = Pump(loop, source, ours.fileno())
    pump.begin()
    theirs.close()
    os.write(into, b"lost")
    loop.turn(0)
    assert (pump.moved, pump.idle) == (4, True)  # who writes can go on
    ours.close()
    os.close(source)
    os.close(into)


def test_lines_have_a_limit() -> None:
    lines = Lines(4)
    assert lines.feed(b"a\nbc") == [b"a"]
    assert lines.feed(b"de\nf") == [b"bcde"]
    with pytest.raises(ValueError, match="longer than 4 bytes"):
        lines.feed(b"ghijk")


def test_what_is_said_is_checked() -> None:
    assert event_of(b'{"event": "exited", "status": 3}') == {"event": "exited", "status": 3, "link": 0, "log": 0}
    for lie in (b"3", b"{}", b'{"event": 1}', b'{"event": "x", "log": true}', b'{"event": "x", "status": 1e3}'):
        with pytest.raises(ValueError, match=r"event|log|status"):
            event_of(lie)


# --- KVM -------------------------------------------------------------------------------------------------------------


def test_kvm_that_only_seems_to_be_there(tmp_path: Path) -> None:
    cache, kernel = Cache(str(tmp_path / "cache"), KEPT), Kernel("/dev/null", "")
    vmm = {"arguments": {"program": "/bin/true", "khz": 1}}

    def look() -> Acceleration:
        return find_acceleration(cache, vmm, kernel, [], "/bin/true", tmp_path)

    assert look() == Acceleration("tcg", "there is no /dev/kvm")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "kvm").write_text("")
    for path in ("sys/module/kvm_pvm", "proc/sys/kernel/random"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/random/boot_id").write_text("1")
    assert look().why == "the KVM of this machine (kvm_pvm) runs kernels that are made for it only"
    (tmp_path / "sys/module/kvm_pvm").rmdir()
    assert look() == Acceleration("tcg", "QEMU has ended, and says why on its stderr")  # by a QEMU that can't
    vmm["arguments"]["program"] = "/nowhere"  # what was found is remembered, for that QEMU
    with pytest.raises(FileNotFoundError):
        look()


def test_a_machine_has_to_boot_to_be_believed(tmp_path: Path) -> None:
    level = found(tmp_path)
    assert level.missing == ""
    kernel = find_kernel(os.environ)
    cache = Cache(str(tmp_path / "cache"), KEPT)
    first = initrd(cache, module_files(kernel, pci=False), "/usr/bin/busybox")[1]
    qemu = Qemu("/usr/bin/qemu-system-x86_64", "tcg", 2_000_000)
    assert boots(qemu, kernel, first, 60.0) == ""
    assert "did not boot within 0.1 s" in boots(qemu, kernel, first, 0.1)
    os.close(first)
