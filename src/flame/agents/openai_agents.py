"""Sandboxes as tools of the OpenAI Agents SDK. Needs the extra `openai-agents`."""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from flame.agents import answers, toolbox
from flame.agents.answers import LIMIT, Answer
from flame.agents.toolbox import TIMEOUT, AsyncToolbox, called, missing

try:
    from agents import (
        FunctionTool,
        ShellCallOutcome,
        ShellCommandOutput,
        ShellCommandRequest,
        ShellResult,
        ShellTool,
        Tool,
        ToolOutputImage,
        ToolOutputText,
        function_tool,
    )

    from flame.agents.arguments import Code, Command, Content, Encoding, Path
except ImportError as error:
    raise missing("openai-agents", error) from error

if TYPE_CHECKING:
    from flame.sandbox import AsyncSandbox, CommandResult, Sandbox

Output = str | list[ToolOutputText | ToolOutputImage]


def sandbox_tools(sandbox: Sandbox | AsyncSandbox, *, timeout: float = TIMEOUT, limit: int = LIMIT) -> list[Tool]:
    """Function tools to run code and commands and to use files in this sandbox, for `Agent(tools=...)`.

    `timeout` is for each call in seconds, `limit` for the length of an answer in characters. A `Sandbox` is called in
    threads, an `AsyncSandbox` in the loop that made it. The sandbox is closed by whoever made it; when it ends before,
    the run ends with the error.
    """
    box = AsyncToolbox(sandbox, timeout=timeout, limit=limit)

    async def run_code(code: Code) -> Output:
        return _output(await box.run_code(code))

    async def run_command(command: Command) -> Output:
        return _output(await box.run_command(command))

    async def read_file(path: Path) -> Output:
        return _output(await box.read_file(path))

    async def write_file(path: Path, content: Content, encoding: Encoding = "text") -> Output:
        return _output(await box.write_file(path, content, encoding))

    async def list_files(path: Path = ".") -> Output:
        return _output(await box.list_files(path))

    return [
        _tool(run_code, toolbox.RUN_CODE),
        _tool(run_command, toolbox.RUN_COMMAND),
        _tool(read_file, toolbox.READ_FILE),
        _tool(write_file, toolbox.WRITE_FILE),
        _tool(list_files, toolbox.LIST_FILES),
    ]


def shell_tool(sandbox: Sandbox | AsyncSandbox, *, timeout: float = TIMEOUT, limit: int = LIMIT) -> ShellTool:
    """The SDK's own shell tool, whose commands run in this sandbox; for models that know it (Responses API).

    The model may ask for less time and less output than `timeout` and `limit` allow.
    """

    async def execute(request: ShellCommandRequest) -> ShellResult:
        action = request.data.action
        seconds = min(timeout, action.timeout_ms / 1000) if action.timeout_ms else timeout
        size = min(limit, action.max_output_length) if action.max_output_length else limit
        outputs: list[ShellCommandOutput] = []
        for command in action.commands:
            result = await called(sandbox.run_command, command, timeout=seconds)
            outputs.append(_shell_output(command, result, size))
            if result.timed_out:
                break
        return ShellResult(outputs, max_output_length=action.max_output_length)

    return ShellTool(executor=execute)


def _shell_output(command: str, result: CommandResult, size: int) -> ShellCommandOutput:
    outcome = (
        ShellCallOutcome(type="timeout")
        if result.timed_out
        else ShellCallOutcome(type="exit", exit_code=result.exit_code)
    )
    stdout, stderr = (answers.cut(data.decode(errors="replace"), size) for data in (result.stdout, result.stderr))
    return ShellCommandOutput(stdout=stdout, stderr=stderr, outcome=outcome, command=command)


def _tool(function: Callable[..., Awaitable[Any]], description: str) -> FunctionTool:
    return function_tool(function, description_override=description, failure_error_function=None)


def _output(answer: Answer) -> Output:
    if not answer.images:
        return answer.text
    return [
        ToolOutputText(text=answer.text),
        *(
            ToolOutputImage(image_url=f"data:{image.kind};base64,{base64.b64encode(image.data).decode()}")
            for image in answer.images
        ),
    ]
