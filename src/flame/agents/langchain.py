"""Sandboxes as tools of LangChain and LangGraph. Needs the extra `langchain`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from flame.agents import toolbox
from flame.agents.answers import LIMIT, Answer
from flame.agents.toolbox import TIMEOUT, Encoding, Toolbox, missing

try:
    from langchain_core.tools import BaseTool, StructuredTool
    from pydantic import Field
except ImportError as error:
    raise missing("langchain", error) from error

if TYPE_CHECKING:
    from flame.sandbox import Sandbox

Code = Annotated[str, Field(description="Python code.")]
Command = Annotated[str, Field(description="One line for the shell.")]
Path = Annotated[str, Field(description="Absolute, or from the working folder.")]


def sandbox_tools(sandbox: Sandbox, *, timeout: float = TIMEOUT, limit: int = LIMIT) -> list[BaseTool]:
    """Tools to run code and commands and to use files in this sandbox, for `create_agent`, `bind_tools` and others.

    `timeout` is for each call in seconds, `limit` for the length of an answer in characters. The artifact of a tool's
    message is an `Answer`, with pictures, and with a file that is neither text nor a picture. The sandbox is closed by
    whoever made it.
    """
    box = Toolbox(sandbox, timeout=timeout, limit=limit)

    def run_code(code: Code) -> tuple[str, Answer]:
        return _parts(box.run_code(code))

    def run_command(command: Command) -> tuple[str, Answer]:
        return _parts(box.run_command(command))

    def read_file(path: Path) -> tuple[str, Answer]:
        return _parts(box.read_file(path))

    def write_file(path: Path, content: str, encoding: Encoding = "text") -> tuple[str, Answer]:
        return _parts(box.write_file(path, content, encoding))

    def list_files(path: Path = ".") -> tuple[str, Answer]:
        return _parts(box.list_files(path))

    return [
        _tool(run_code, toolbox.RUN_CODE),
        _tool(run_command, toolbox.RUN_COMMAND),
        _tool(read_file, toolbox.READ_FILE),
        _tool(write_file, toolbox.WRITE_FILE),
        _tool(list_files, toolbox.LIST_FILES),
    ]


def _tool(function: Callable[..., Any], description: str) -> BaseTool:
    return StructuredTool.from_function(function, description=description, response_format="content_and_artifact")


def _parts(answer: Answer) -> tuple[str, Answer]:
    return answer.text, answer
