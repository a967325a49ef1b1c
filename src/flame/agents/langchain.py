"""Sandboxes as tools of LangChain and LangGraph. Needs the extra `langchain`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from flame.agents import toolbox
from flame.agents.answers import LIMIT, Answer
from flame.agents.toolbox import TIMEOUT, AsyncToolbox, Toolbox, missing
from flame.sandbox import AsyncSandbox, Sandbox

try:
    from langchain_core.tools import BaseTool, StructuredTool

    from flame.agents.arguments import Code, Command, Content, Encoding, Path
except ImportError as error:
    raise missing("langchain", error) from error

Parts = tuple[str, Answer]


def sandbox_tools(sandbox: Sandbox | AsyncSandbox, *, timeout: float = TIMEOUT, limit: int = LIMIT) -> list[BaseTool]:
    """Tools to run code and commands and to use files in this sandbox, for `create_agent`, `bind_tools` and others.

    `timeout` is for each call in seconds, `limit` for the length of an answer in characters. The artifact of a tool's
    message is an `Answer`, with pictures, and with a file that is neither text nor a picture. The tools of an
    `AsyncSandbox` work in the loop that made it (`ainvoke`, `astream`), those of a `Sandbox` everywhere. The sandbox is
    closed by whoever made it.
    """
    if isinstance(sandbox, AsyncSandbox):
        coroutines = _coroutines(AsyncToolbox(sandbox, timeout=timeout, limit=limit))
        return [_tool(description, coroutine=each) for each, description in zip(coroutines, _ABOUT, strict=True)]
    functions = _functions(Toolbox(sandbox, timeout=timeout, limit=limit))
    return [_tool(description, func=each) for each, description in zip(functions, _ABOUT, strict=True)]


_ABOUT = (toolbox.RUN_CODE, toolbox.RUN_COMMAND, toolbox.READ_FILE, toolbox.WRITE_FILE, toolbox.LIST_FILES)


def _functions(box: Toolbox) -> Sequence[Callable[..., Parts]]:
    def run_code(code: Code) -> Parts:
        return _parts(box.run_code(code))

    def run_command(command: Command) -> Parts:
        return _parts(box.run_command(command))

    def read_file(path: Path) -> Parts:
        return _parts(box.read_file(path))

    def write_file(path: Path, content: Content, encoding: Encoding = "text") -> Parts:
        return _parts(box.write_file(path, content, encoding))

    def list_files(path: Path = ".") -> Parts:
        return _parts(box.list_files(path))

    return run_code, run_command, read_file, write_file, list_files


def _coroutines(box: AsyncToolbox) -> Sequence[Callable[..., Awaitable[Parts]]]:
    async def run_code(code: Code) -> Parts:
        return _parts(await box.run_code(code))

    async def run_command(command: Command) -> Parts:
        return _parts(await box.run_command(command))

    async def read_file(path: Path) -> Parts:
        return _parts(await box.read_file(path))

    async def write_file(path: Path, content: Content, encoding: Encoding = "text") -> Parts:
        return _parts(await box.write_file(path, content, encoding))

    async def list_files(path: Path = ".") -> Parts:
        return _parts(await box.list_files(path))

    return run_code, run_command, read_file, write_file, list_files


def _tool(description: str, **function: Any) -> BaseTool:
    return StructuredTool.from_function(**function, description=description, response_format="content_and_artifact")


def _parts(answer: Answer) -> Parts:
    return answer.text, answer
