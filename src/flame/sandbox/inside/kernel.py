"""The kernel of a sandbox: a process that runs code, one piece after another, in one namespace.

It is started with a socket to the service, and speaks JSON over it: a number of bytes (u32, little endian), then as
many bytes. What code prints goes to stdout and stderr, as from any program. It trusts the service, not the reverse.
"""

from __future__ import annotations

import ast
import builtins
import json
import linecache
import os
import signal
import sys
import time
import traceback
from types import CodeType, ModuleType
from typing import Any

from flame.sandbox.inside import display

_CELL = "<run {}>"
_CHUNK = 64 * 1024


class GoneError(Exception):
    """The service has closed the socket."""


class Channel:
    """The kernel's end of the socket."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._owner = os.getpid()
        self._received = bytearray()

    def receive(self) -> dict[str, Any]:
        """The next request. Raises GoneError."""
        size = int.from_bytes(self._take(4), "little")
        return json.loads(self._take(size))

    def send(self, message: dict[str, Any]) -> None:
        """A child that code has forked says nothing."""
        if os.getpid() != self._owner:
            return
        text = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")
        data = memoryview(len(text).to_bytes(4, "little") + text)
        while data:
            data = data[os.write(self._descriptor, data) :]

    def _take(self, size: int) -> bytes:
        while len(self._received) < size:
            piece = os.read(self._descriptor, max(size - len(self._received), _CHUNK))
            if not piece:
                raise GoneError
            self._received += piece
        data = bytes(self._received[:size])
        del self._received[:size]
        return data


class Kernel:
    """The namespace and what runs in it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._runs = 0
        self._loop: Any = None  # for code with await at its top, made when there is some
        self._interruptible = False
        self.module = ModuleType("__main__", "What was run in this sandbox.")
        self.module.__dict__.update(__builtins__=builtins, display=self._display)
        sys.modules["__main__"] = self.module
        signal.signal(signal.SIGINT, self._on_interrupt)

    def serve(self) -> None:
        """Answer requests until the service is gone."""
        own = os.getpid()
        while True:
            request = self._channel.receive()
            what = request["do"]
            if what == "take":
                _take(request["env"])
                self._runs = 0
                continue
            if what == "run":
                answer = self._run(request["code"], request["env"])
            elif what == "save":
                answer = self._save(request["path"])
            else:
                answer = self._load(request["path"])
            if os.getpid() != own:
                os._exit(0)  # a child that code has forked and that came to its end
            self._channel.send(answer)

    # --- running ---------------------------------------------------------------------------------------------------

    def _run(self, code: str, env: dict[str, str]) -> dict[str, Any]:
        before = {name: os.environ.get(name) for name in env}
        os.environ.update(env)
        try:
            return self._guarded(code)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def _guarded(self, code: str) -> dict[str, Any]:
        """Run it and say how it ended; an interrupt may come at any moment of it."""
        self._interruptible = True
        try:
            try:
                value = self._execute(code)
                for figure in display.figures(told=value):
                    self._show(figure)
            finally:
                self._interruptible = False
                _flush()
        except BaseException as error:
            return {"done": True, "error": _described(error)}
        return {"done": True}

    def _execute(self, code: str) -> object:
        """The value of its last expression, which is shown."""
        self._runs += 1
        name = _CELL.format(self._runs)
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        tree = ast.parse(code, name)
        last: ast.Expression | None = None
        if tree.body and isinstance(tree.body[-1], ast.Expr):
            last = ast.Expression(tree.body[-1].value)
            del tree.body[-1]
        if tree.body:
            self._evaluate(_compiled(tree, name, "exec"))
        value = None if last is None else self._evaluate(_compiled(last, name, "eval"))
        if value is not None:
            self.module.__dict__["_"] = value
            self._show({**display.shown(value), "value": True})
        return value

    def _evaluate(self, code: CodeType) -> Any:
        if not code.co_flags & 0x80:  # no await at its top
            return eval(code, self.module.__dict__)
        import asyncio

        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(eval(code, self.module.__dict__))
        try:
            return self._loop.run_until_complete(task)
        except BaseException:
            if not task.done():  # interrupted
                task.cancel()
                self._loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            raise

    def _display(self, *values: object) -> None:
        """Show these values as results of the run."""
        for value in values:
            self._show(display.shown(value))

    def _show(self, shown: dict[str, Any]) -> None:
        _flush()
        self._channel.send({"shown": shown})

    def _on_interrupt(self, signum: int, frame: object) -> None:
        if self._interruptible:
            raise KeyboardInterrupt

    # --- variables ---------------------------------------------------------------------------------------------------

    def _save(self, path: str) -> dict[str, Any]:
        from flame.sandbox.inside import variables

        try:
            return {"done": True, "skipped": variables.save(self.module, path, leave_out=(self._display,))}
        except Exception as error:  # the disk is full, for one
            return {"done": True, "error": _described(error)}

    def _load(self, path: str) -> dict[str, Any]:
        from flame.sandbox.inside import variables

        try:
            variables.load(self.module, path)
        except Exception as error:
            return {"done": True, "error": _described(error)}
        return {"done": True}


def _take(changed: dict[str, str | None]) -> None:
    """Have these variables, or no more, and chance of one's own: this may be a copy of a process that waited for a
    session."""
    for name, value in changed.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if "TZ" in changed:
        time.tzset()
    if "random" in sys.modules:
        sys.modules["random"].seed()


def _compiled(tree: ast.Module | ast.Expression, name: str, mode: str) -> CodeType:
    return compile(tree, name, mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, ValueError, OSError):
            pass  # the code has put something else in its place, or closed it


def _described(error: BaseException) -> dict[str, str]:
    """The error in words, its traceback from the user's first line on."""
    try:
        message = str(error)
    except Exception:
        message = f"(str() of this {type(error).__name__} raised)"
    frames = error.__traceback__
    while frames is not None and not frames.tb_frame.f_code.co_filename.startswith("<run "):
        frames = frames.tb_next
    try:
        lines = traceback.TracebackException(type(error), error, frames)
        if isinstance(error, KeyboardInterrupt) and lines.stack and lines.stack[-1].filename == __file__:
            lines.stack.pop()  # the signal's handler
        text = "".join(lines.format())
    except Exception:
        text = f"{type(error).__name__}: {message}\n"
    return {"name": type(error).__name__, "message": display.cut(message), "traceback": display.cut(text)}


def main(descriptor: int) -> None:
    """Serve the service behind this socket."""
    os.set_inheritable(descriptor, False)  # not for programs that code starts
    sys.argv = [""]
    sys.path.insert(0, "")
    try:
        Kernel(Channel(descriptor)).serve()
    except (GoneError, OSError):
        pass
    os._exit(0)  # no thread that code has left keeps it
