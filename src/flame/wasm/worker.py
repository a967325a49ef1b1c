"""`python -m flame.wasm.worker COMPILED FUEL MEMORY NAME[=NAME...] ARGUMENT...`: a service whose handlers are those of
a component. It sees the named variables and the arguments, of which the first is its own name.

It is an instance like any other, so that a component which crashes, loops or takes memory harms nothing but this
process. An instance of the component that trapped, or was interrupted, is thrown away: the next task begins with a
fresh one, which enters the session first. If it can't enter, this process ends.
"""

from __future__ import annotations

import os
import sys

import wasmtime

from flame.service.api import FlameService, SessionContext, TaskContext, TaskFailure
from flame.service.runtime import run
from flame.wasm import values
from flame.wasm.engine import load, make_engine
from flame.wasm.guest import Guest, Room, Trapped
from flame.wasm.interruption import Interruption

_OWN = ("FLAME_SESSION_ID", "FLAME_EXECUTOR_ID", "FLAME_APPLICATION")  # what every component may know


class Worker(FlameService):
    """`compiled` is the file that flame.wasm.compiling wrote."""

    def __init__(self, compiled: str, arguments: list[str], variables: list[str], *, fuel: int, memory: int) -> None:
        """Raises WasmtimeError."""
        self._engine = make_engine(fuel=bool(fuel))
        self._component, self._linker = load(self._engine, compiled)
        self._interruption = Interruption(self._engine)
        self._arguments, self._variables = arguments, [*variables, *_OWN]
        self._fuel, self._memory = fuel, memory
        self._guest: Guest | None = None
        self._session_id = ""
        self._common_data: bytes | None = None

    def on_session_enter(self, context: SessionContext) -> None:
        self._session_id, self._common_data = context.session_id, context.common_data()
        self._guest = self._entered()

    def on_task_invoke(self, context: TaskContext) -> bytes | None:
        data = context.input
        guest, self._guest = self._guest, None  # not back before it has returned
        if guest is None:
            guest = self._again()
        self._interruption.begin()
        try:
            output = guest.invoke(context.task_id, self._session_id, data)
        except values.Failed as failure:
            self._guest = guest
            raise TaskFailure(str(failure)) from None
        except Trapped as trap:
            raise TaskFailure(trap.message, trap.backtrace) from None
        self._guest = guest
        return output

    def on_session_leave(self) -> None:
        if self._guest is not None:
            self._interruption.begin()
            self._guest.leave(self._session_id)

    def _entered(self) -> Guest:
        """A fresh instance in the session. Raises Trapped and values.Failed."""
        environment = {name: os.environ[name] for name in self._variables if name in os.environ}
        room = Room(self._arguments, environment, self._fuel, self._memory)
        self._interruption.begin()
        guest = Guest(self._engine, self._linker, self._component, room)
        guest.enter(self._session_id, self._common_data)
        return guest

    def _again(self) -> Guest:
        try:
            return self._entered()
        except (Trapped, values.Failed) as error:
            sys.exit(f"flame: after a trap, a fresh instance of the component could not enter the session: {error}")


def main() -> None:
    """Serve one session. Exits with a message when what was compiled can't be loaded."""
    _, compiled, fuel, memory, variables, *arguments = sys.argv
    try:
        worker = Worker(compiled, arguments, variables.split("="), fuel=int(fuel), memory=int(memory))
    except wasmtime.WasmtimeError as error:
        sys.exit(f"flame: can't load the compiled component: {error}")
    run(worker)


if __name__ == "__main__":
    main()
