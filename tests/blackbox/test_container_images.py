"""Images that can't be had, or shall not be: with the real podman, which is left as it was found."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

import flame
from cluster import Cluster
from flame.proto import types_pb2
from flame.shims.container_commands import Commands, TooMuchError
from flame.shims.container_disk import disk_of
from flame.shims.container_images import Images
from flame.shims.container_limits import ImageLimits
from flame.shims.processes import Keeper
from flame.shims.shim import BindError
from images import add_busybox, imported, layer, oci_layout, podman
from scripted_manager import PATIENCE, a_node_apart, a_node_here, gone
from untrusted import named

MIB = 1024**2
LARGE = ImageLimits(timeout=PATIENCE)
SMALL = ImageLimits(max_bytes=2 * MIB, max_files=100, timeout=PATIENCE)


def known() -> set[str]:
    """The images that podman has."""
    return set(podman("images", "--all", "--quiet", "--no-trunc").split())


@pytest.fixture
def before() -> Iterator[set[str]]:
    """The images that podman had before the test; it has no others afterwards."""
    found = known()
    yield found
    for identity in known() - found:
        podman("rmi", "--force", identity)


@asynccontextmanager
async def a_store(folder: Path, limits: ImageLimits = SMALL, program: str = "podman") -> AsyncGenerator[Images]:
    """A node's images in `folder`/images; what it runs is in `folder`/running meanwhile."""
    (folder / "running").mkdir(parents=True)
    keeper = Keeper()
    images = Images(program, folder / "images", Commands(keeper, folder / "running", os.environ, limits), limits)
    images.open()
    try:
        yield images
    finally:
        await keeper.close()
        assert not list((folder / "running").iterdir())


async def refusal(images: Images, name: str) -> str:
    with pytest.raises(BindError) as caught:
        await images.provide(name)
    assert caught.value.code == 10
    return caught.value.message


# --- bombs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"zeros": 20 * MIB}, f"it is larger than {2 * MIB} bytes"),
        ({f"zeros-{number}": MIB for number in range(30)}, f"it is larger than {2 * MIB} bytes"),
        ({f"zeros-{number}": MIB for number in range(3)}, f"it is larger than {2 * MIB} bytes"),
        ({f"f/{number}": 0 for number in range(1000)}, "it has more than 100 files"),
    ],
    ids=["one file", "many large files", "some large files", "many files"],
)
async def test_a_bomb_is_refused_and_leaves_no_image(
    tmp_path: Path, before: set[str], files: dict[str, int], why: str
) -> None:
    name = oci_layout(tmp_path / "layout", [layer(files)])
    async with a_store(tmp_path) as images:
        message = await refusal(images, name)
        assert message.startswith(f"image '{name}' can't be had: {why}, which is what this node allows")
        assert not list((tmp_path / "images").iterdir())
        assert known() == before
        assert podman("ps", "--all", "--quiet", "--filter", "name=flame-") == ""


async def test_one_that_came_in_part_does_not_keep_others_from_coming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it may be when podman was killed at the wrong moment: it answers nothing any more until that one is gone."""
    conf = tmp_path / "storage.conf"
    conf.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n')
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(conf))
    podman("pull", "--quiet", oci_layout(tmp_path / "broken", [layer({"one": 1})]))
    (broken,) = known()
    (manifest,) = (tmp_path / "graph").glob("vfs-images/*/manifest")
    manifest.unlink()
    with pytest.raises(subprocess.CalledProcessError):
        known()
    async with a_store(tmp_path) as images:
        image = await images.provide(oci_layout(tmp_path / "layout", [layer({"two": 2})]))
        assert (image.root / "two").exists()
    assert known() & {broken} == set()


async def test_what_writes_without_end_is_ended(tmp_path: Path) -> None:
    keeper = Keeper()
    seconds = f"37{os.getpid()}"  # by which it is found
    with pytest.raises(TooMuchError, match="it is larger than 2097152 bytes"):
        await Commands(keeper, tmp_path, os.environ, SMALL).run(
            "sh", "-c", f"sleep {seconds} & sh -c 'exec cat /dev/zero >/dev/null'"
        )
    assert named(seconds) == []
    await keeper.close()


def test_the_client_hears_that_an_image_is_too_large(tmp_path: Path, before: set[str]) -> None:
    name = oci_layout(tmp_path / "layout", [layer({"zeros": 2 * MIB})])
    settings = {"executors": {"capacity": "cpu=2,mem=4g", "images": {"max_size": "1Mi"}}}
    with Cluster(tmp_path, settings=settings) as cluster, flame.connect(cluster.endpoint) as connection:
        connection.register_application("bomb", {"shim": flame.Shim.CONTAINER, "image": name, "command": "sh"})
        with connection.create_session("bomb") as session, pytest.raises(flame.FlameError) as caught:
            session.invoke(b"x")
    assert "it is larger than 1048576 bytes" in str(caught.value)
    assert "executors.images.max_size" in str(caught.value)


# --- which images ----------------------------------------------------------------------------------------------------


async def test_an_image_for_another_machine(tmp_path: Path, before: set[str]) -> None:
    name = oci_layout(tmp_path / "layout", [layer({"bin/sh": 1})], architecture="s390x")
    async with a_store(tmp_path) as images:
        assert "is made for linux/s390x, and this node is linux/" in await refusal(images, name)
    assert known() == before


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Upper:case", "repository name must be lowercase"),
        ("localhost:1/nobody/there:1", "connection refused"),
        ("oci:/nowhere", "no such file or directory"),
    ],
)
async def test_a_reference_that_leads_nowhere_says_why(tmp_path: Path, name: str, why: str) -> None:
    async with a_store(tmp_path) as images:
        message = await refusal(images, name)
        assert message.startswith(f"podman can't fetch image '{name}': ")
        assert why in message


@pytest.mark.parametrize("cwd", ["/srv/app", "srv//app/"])
async def test_a_working_directory_that_the_image_lacks_is_made(tmp_path: Path, before: set[str], cwd: str) -> None:
    name = oci_layout(tmp_path / "layout", [layer({"bin/tool": 1})], WorkingDir=cwd, Cmd=["tool"])
    async with a_store(tmp_path) as images:
        image = await images.provide(name)
        assert image.has_folder("/srv/app")
        assert (image.cwd, list(image.command)) == ("/srv/app", ["tool"])


async def test_devices_of_an_image_are_left_out(tmp_path: Path, before: set[str]) -> None:
    stream = io.BytesIO(layer({"app/file": 1}))
    with tarfile.open(fileobj=stream, mode="a") as tar:
        for kind, name in ((tarfile.BLKTYPE, "app/disk"), (tarfile.CHRTYPE, "app/memory")):
            member = tarfile.TarInfo(name)
            member.type, member.devmajor, member.devminor = kind, 1, 1
            tar.addfile(member)
    async with a_store(tmp_path) as images:
        image = await images.provide(oci_layout(tmp_path / "layout", [stream.getvalue()]))
        assert [file.name for file in (image.root / "app").iterdir()] == ["file"]


async def test_several_nodes_fetch_one_image_at_once(tmp_path: Path, before: set[str]) -> None:
    name = oci_layout(tmp_path / "layout", [layer({f"f/{number}": 1000 for number in range(50)})])
    async with a_store(tmp_path / "one") as one, a_store(tmp_path / "other") as other:
        found = await asyncio.gather(one.provide(name), other.provide(name), one.provide(name), other.provide(name))
        assert len({image.identity for image in found}) == 1
        assert {image.root.parent.parent.name for image in found} == {"one", "other"}
        assert all(len(list((image.root / "f").iterdir())) == 50 for image in found)


async def test_images_that_are_not_used_go_from_podman_too_if_they_came_for_us(
    tmp_path: Path, before: set[str]
) -> None:
    names = [oci_layout(tmp_path / text, [layer({text: 1})]) for text in ("first", "second", "third")]
    had = podman("pull", "--quiet", names[0]).strip()
    async with a_store(tmp_path, msgspec.structs.replace(SMALL, keep_count=1)) as images:
        first, second = await images.provide(names[0]), await images.provide(names[1])
        assert not first.root.exists()  # nobody held it
        assert known() == {*before, f"sha256:{had}", f"sha256:{second.identity}"}
        images.hold(second)
        await images.provide(names[2])
        assert second.root.exists()
        images.release(second)
        await images.provide(names[0])
        assert not second.root.exists()
        assert known() == {*before, f"sha256:{had}"}


async def test_the_disk_of_an_image_goes_with_it_and_counts(tmp_path: Path, before: set[str]) -> None:
    """It is larger than the image itself, which may be as large as this node allows."""
    names = [oci_layout(tmp_path / text, [layer({text: MIB})]) for text in ("first", "second")]
    folder = tmp_path / "images"
    async with a_store(tmp_path, msgspec.structs.replace(SMALL, keep_bytes=4 * MIB)) as images:
        first = await images.provide(names[0])
        second = await images.provide(names[1])
        assert {path.stem for path in folder.iterdir()} == {first.identity, second.identity}
        await images.provide(names[0], disk=True)
        assert {path.stem for path in folder.iterdir()} == {first.identity}
        assert disk_of(first.root).stat().st_size > 4 * MIB
        await images.provide(names[1])
        assert {path.stem for path in folder.iterdir()} == {second.identity}


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path podman takes."""
    with tempfile.TemporaryDirectory(prefix="fl", dir="/tmp") as name:
        yield Path(name)


async def test_layers_of_a_fetch_that_was_stopped_go_with_the_image_once_it_came(tmp_path: Path, short: Path) -> None:
    """Podman removes those that were not finished when it runs next, and keeps the others: no image has them."""
    program = tmp_path / "podman"
    program.write_text(f'#!/bin/sh\nexec podman --root {tmp_path}/root --runroot {short}/run "$@"\n')
    program.chmod(0o755)
    large = oci_layout(tmp_path / "large", [layer({"first": 1}), layer({"second": 20 * MIB})])
    other = oci_layout(tmp_path / "other", [layer({"third": 1})])

    def layers() -> list[int]:
        """Their sizes, of those that podman has."""
        (file,) = (tmp_path / "root").glob("*-layers/layers.json")
        found = json.loads(file.read_bytes())
        assert not any(each.get("flags", {}).get("incomplete") for each in found)
        return sorted(each["diff-size"] for each in found)

    async with a_store(tmp_path / "stopped", SMALL, str(program)) as images:
        assert "it is larger than" in await refusal(images, large)
        assert not list((tmp_path / "stopped/images").iterdir())
    (first,) = layers()
    async with a_store(tmp_path / "again", msgspec.structs.replace(LARGE, keep_count=1), str(program)) as images:
        await images.provide(large)
        assert layers()[0] == first
        assert len(layers()) == 2
        await images.provide(other)
        assert len(layers()) == 1
        assert layers()[0] < 20 * MIB


# --- podman ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exec sleep $TIME", "podman did not end within 0.5 s (executors.images.timeout)"),
        ("sleep $TIME & exit 3", "podman can't fetch image 'app:1': "),
        ("echo '{}'", "what podman says of image 'app:1' makes no sense: '{}"),
        ("echo 'Error: no storage' >&2; exit 125", "podman can't fetch image 'app:1': no storage"),
    ],
)
async def test_a_podman_that_does_not_work_says_so(tmp_path: Path, script: str, why: str) -> None:
    program = tmp_path / "podman"
    seconds = f"36{os.getpid()}"  # by which its processes are found
    program.write_text(f"#!/bin/sh\nTIME={seconds}\n{script}\n")
    program.chmod(0o755)
    limits = msgspec.structs.replace(SMALL, timeout=0.5 if "exec" in script else PATIENCE)
    async with a_store(tmp_path, limits, str(program)) as images:
        assert why in await refusal(images, "app:1")
        assert named(seconds) == []


async def test_a_podman_that_is_gone_says_so(tmp_path: Path) -> None:
    async with a_store(tmp_path, program="/nowhere/podman") as images:
        assert await refusal(images, "app:1") == "image 'app:1' can't be had: No such file or directory"


async def test_nothing_is_left_of_a_node_that_is_killed_while_it_unpacks(tmp_path: Path) -> None:
    """Its podman never ends when it is to export the image, so that it is killed there."""
    bin_dir, told = tmp_path / "bin", tmp_path / "told"
    bin_dir.mkdir()
    os.mkfifo(told)
    stuck = f"if [ $1 = export ]; then echo $$ > {told}; exec sleep 3600; fi"
    (bin_dir / "podman").write_text(f'#!/bin/sh\n{stuck}\nexec {shutil.which("podman")} "$@"\n')
    (bin_dir / "podman").chmod(0o755)
    archive = tmp_path / "image.tar"
    with tarfile.open(archive, "w") as tar:
        add_busybox(tar, ("sh",))
    with imported(archive) as name:
        async with a_node_here() as node:
            process = await a_node_apart(node, PATH=f"{bin_dir}:{os.environ['PATH']}")
            node.manager.start(1, "sh", shim=types_pb2.Container, image=name)
            stuck_pid = int(await asyncio.to_thread(told.read_text))
            folder = node.folder / "alone/shims/container"
            (part,) = folder.iterdir()
            assert podman("ps", "--all", "--quiet", "--filter", f"ancestor={name}") != ""
            process.kill()
            await process.wait()
            await gone(stuck_pid)
            keeper = Keeper()
            images = Images("podman", folder, Commands(keeper, tmp_path, os.environ, LARGE), LARGE)
            images.open()
            assert not part.exists()
            assert podman("ps", "--all", "--quiet", "--filter", f"ancestor={name}") == ""
            assert (await images.provide(name)).has_folder("/bin")
            await keeper.close()
