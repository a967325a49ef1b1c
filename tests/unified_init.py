"""Process 1 of the machine of unified.py: mounts control groups of version 2, has a network, runs what it is told to.

Started by boot.sh, as `python -I -S`; only the standard library. Each line on the port `flame.control` is JSON. From
outside: what to run (`argv`, `env`, the control group that it is put in, and whether to wait for its end). From here:
that the machine is up; of what was run the exit status and the output; of what is not waited for the pid.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

GROUPS = Path("/sys/fs/cgroup")
OUTPUT = "/tmp/output"
PREPARATIONS = """
mkdir -p /dev/pts /dev/shm
mount -t devpts -o ptmxmode=0666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
"""


def port(name: str) -> int:
    """The port of this name, opened; its name comes some time after the port."""
    while True:
        for each in Path("/sys/class/virtio-ports").iterdir():
            if (each / "name").exists() and (each / "name").read_text().strip() == name:
                return os.open(f"/dev/{each.name}", os.O_RDWR | os.O_CLOEXEC)
        time.sleep(0.005)


def run(*, argv: list[str], env: dict[str, str], group: str, wait: bool) -> dict[str, Any]:
    """Run a program in a control group, which is made if there is none. Processes that were left behind are taken leave
    of meanwhile, as process 1 has to."""
    (GROUPS / group[1:]).mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if not pid:
        become(argv, env, group, OUTPUT if wait else f"{OUTPUT}-{os.getpid()}")
    if not wait:
        return {"pid": pid, "output": f"{OUTPUT}-{pid}"}
    while True:
        ended, status = os.wait()
        if ended == pid:
            break
    return {"status": os.waitstatus_to_exitcode(status), "output": Path(OUTPUT).read_text()}


def become(argv: list[str], env: dict[str, str], group: str, output: str) -> None:
    try:
        (GROUPS / group[1:] / "cgroup.procs").write_text("0")
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        os.execve(argv[0], argv, env)
    except BaseException as error:
        os.write(2, f"can't start {argv}: {error!r}".encode())
    os._exit(127)


def main() -> None:
    for line in PREPARATIONS.strip().splitlines():
        subprocess.run(["/bin/busybox", *line.split()], check=True)
    (GROUPS / "cgroup.subtree_control").write_text("+cpu +memory +pids")  # as systemd does for those who delegate
    with os.fdopen(port("flame.control"), "r+b", 0) as control:
        said: dict[str, Any] = {"up": True}
        while True:
            control.write(json.dumps(said).encode() + b"\n")
            line = control.readline()
            said = run(**json.loads(line))


if __name__ == "__main__":
    main()
