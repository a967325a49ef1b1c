"""Stands in front of a program in a sandbox of gVisor. Runs alone, by its path, as `python -I -S`; only the standard
library, and little of it.

Arguments: the JSON of a Plan of gvisor_root.py, and the program with its arguments. The program's environment is this
one's, each name with PREFIX before it: nothing that its application says may change what runs outside of the sandbox.

All that a sandbox needs on this machine is in a mount that only this process and what it starts can see, so it is gone
when they are. They are gone when this process is: each dies with the one that started it.
"""

from __future__ import annotations

import json
import os
import stat
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from flame.shims.gvisor_processes import NO_PROGRAM, PREFIX, Ended, block_signals, children, complain, watch, widen
from flame.shims.gvisor_sandbox import Sandbox

TYPE_CHECKING = False  # like typing's, without its import
if TYPE_CHECKING:
    from typing import Any

_STDIN_IS_STDOUT = ("/bin/sh", "-c", 'exec "$0" "$@" <&1')


def main() -> int:
    """Run the program; gives the exit status, with 128 and its number for a signal. Raises OSError."""
    plan, arguments = json.loads(sys.argv[1]), sys.argv[2:]
    env = {name.removeprefix(PREFIX): value for name, value in os.environ.items() if name.startswith(PREFIX)}
    block_signals()
    widen((1, 2))
    sandbox = Sandbox(plan)
    pid, is_copy = begun(sandbox, plan, arguments, env)
    # Only a sandbox that was started by itself looks whether the process is there that has its files.
    parts = children(pid) if is_copy else ()
    status = watch(pid, sandbox.signalling(), sandbox.nothing, parts)
    why = sandbox.panic()
    if not why:
        return status
    complain(f"gVisor failed: {why}")
    return NO_PROGRAM


def begun(sandbox: Sandbox, plan: dict[str, Any], arguments: list[str], env: dict[str, str]) -> tuple[int, bool]:
    """Start the sandbox, as a copy of one that was saved if that can be; gives the number of its process, and whether
    it is a copy. Raises Ended and OSError."""
    copied = plan["copied"]
    if copied is not None and sandbox.has_shell:
        from flame.shims.gvisor_copies import Copies

        pid = Copies(sandbox, plan, arguments, env).begin()
        if pid:
            return pid, True
    if copied is not None:
        sandbox.furnish(copied["added"])
    # gVisor would make two sockets of one that it gets twice, and close it when a program closes one of the two.
    one_socket = is_one_socket() and sandbox.has_shell
    sandbox.configure([*(_STDIN_IS_STDOUT if one_socket else ()), *arguments], env, copied["door"] if copied else "")
    return sandbox.run([sandbox.nothing if one_socket else 0, 1]), False


def is_one_socket() -> bool:
    """Whether stdin and stdout are the same socket."""
    one, other = os.fstat(0), os.fstat(1)
    return stat.S_ISSOCK(one.st_mode) and os.path.samestat(one, other)


if __name__ == "__main__":
    try:
        status = main()
    except Ended as ended:
        status = ended.status
    except OSError as error:
        complain(f"can't make a sandbox of gVisor: {error.strerror or error}")
        status = NO_PROGRAM
    os._exit(status)
