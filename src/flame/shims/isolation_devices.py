"""GPUs in a sandbox: the device files of those that it was given, and the names that they have there."""

from __future__ import annotations

from pathlib import Path

from flame.model.states import BindCode
from flame.shims.shim import BindError

_SHARED = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")  # of the driver, not of a GPU


def device_files(names: str, root: Path = Path("/")) -> list[Path]:
    """The files of GPUs that are named as in CUDA_VISIBLE_DEVICES. `root` is where /dev and /proc are, for tests.

    Raises BindError for one that is not there, and for parts of GPUs.
    """
    minors = _minors(root)
    found: list[Path] = []
    for name in names.split(","):
        if name.startswith("MIG-"):
            raise BindError(BindCode.START, f"isolation process can't give a part of a GPU to an instance: {name}")
        minor = minors.get(name, name if not minors else "")
        file = root / "dev" / f"nvidia{minor}"
        if not minor.isdecimal() or not file.exists():
            raise BindError(BindCode.START, f"GPU {name} of this node can't be found: there is no device file for it")
        found.append(file)
    return [*found, *(file for name in _SHARED if (file := root / "dev" / name).exists())]


def names_inside(names: str) -> str:
    """CUDA counts those that it can open; what are no numbers are names everywhere."""
    given = names.split(",")
    return ",".join(str(place) if name.isdecimal() else name for place, name in enumerate(given))


def _minors(root: Path) -> dict[str, str]:
    """The numbers in the names of device files, by index in the order of the bus and by UUID."""
    found: dict[str, str] = {}
    folders = sorted((root / "proc/driver/nvidia/gpus").glob("*"))
    for index, folder in enumerate(folders):
        lines = (folder / "information").read_text(errors="replace").splitlines()
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        found[str(index)] = found[fields.get("GPU UUID", "")] = fields.get("Device Minor", str(index))
    return found
