"""How an instance takes part in snapshots of its sandbox or virtual machine: it says when it is prepared for any
session, and goes on as one of many copies, which are told who they are.

Whoever started this process named a socket in FLAME_SNAPSHOT_FD. `prepared` and a line's end go out on it; what comes
back, once in each copy, is a line of JSON: `env`, the variables of this copy, and `entropy`, fresh random bytes in hex.
Then `resumed` and a line's end go out, for whoever wants to know.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

VARIABLE = "FLAME_SNAPSHOT_FD"


def wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a snapshot will be taken when this instance is prepared."""
    return bool(environ.get(VARIABLE))


def offer(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Let a snapshot be taken now, if somebody wants one. Returns in each copy, with its environment in `environ` and
    with random numbers that no other copy has. False when this is no copy."""
    descriptor = environ.pop(VARIABLE, "")
    if not descriptor:
        return False
    import contextlib
    import json
    import socket

    with socket.socket(fileno=int(descriptor)) as sock, sock.makefile("rb") as answers:
        sock.sendall(b"prepared\n")
        line = answers.readline()
        if not line:
            return False  # nobody took one
        with contextlib.suppress(OSError):
            sock.sendall(b"resumed\n")
    told = json.loads(line)
    environ.update(told["env"])
    reseed(bytes.fromhex(told["entropy"]))
    return True


def reseed(entropy: bytes) -> None:
    """Give the random generators of libraries that are loaded a new start; the system's own has had one."""
    loaded = sys.modules
    if "random" in loaded:
        loaded["random"].seed(entropy)
    if "numpy.random" in loaded:
        loaded["numpy.random"].seed(list(entropy))
    if "torch" in loaded:
        loaded["torch"].manual_seed(int.from_bytes(entropy[:8]))
    if "ssl" in loaded:
        loaded["ssl"].RAND_add(entropy, float(len(entropy)))
