"""What the services of the suite for shims do: `act` on a task's input, `begin` as their first argument says.

Each shim has a service of its own in the suite's subclass, which hands inputs to `act` in whatever way it speaks. Only
the standard library, so that it can be imported by any program.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

FOREVER_S = 3600.0
LAST_WORDS = "last words"


def act(data: bytes) -> bytes:
    """Do what the first word says with the rest; gives the output.

    `echo TEXT`, `size N` (so many bytes), `env NAME`, `child NAME` (leaves a process with that argument behind),
    `log N` (lines on stderr), `fail TEXT` (raises ValueError), `exit STATUS`, `hang`.
    """
    word, _, rest = data.partition(b" ")
    text = rest.decode(errors="replace")
    if word == b"echo":
        return rest
    if word == b"size":
        return bytes(int(text))
    if word == b"env":
        return os.environ.get(text, "").encode()
    if word == b"child":
        subprocess.Popen(["sh", "-c", f"sleep {FOREVER_S}; :", text], start_new_session=True, stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        return rest
    if word == b"log":
        for number in range(int(text)):
            sys.stderr.write(f"line {number}\n")
        return b"logged"
    if word == b"exit":
        die(int(text))
    if word == b"hang":
        time.sleep(FOREVER_S)
    raise ValueError(text)


def begin(arguments: list[str]) -> bool:
    """Call it first. `die` and `sleep` as first argument do just that; true for `nonsense`, which the service talks
    instead of what it should."""
    conduct = arguments[1] if arguments[1:] else "serve"
    if conduct == "die":
        die(5)
    if conduct == "sleep":
        time.sleep(FOREVER_S)
    return conduct == "nonsense"


def die(status: int) -> None:
    """End at once, with words on stderr."""
    os.write(2, f"{LAST_WORDS}\n".encode())
    os._exit(status)
