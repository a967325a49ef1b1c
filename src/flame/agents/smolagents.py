"""Sandboxes for smolagents: where a CodeAgent runs its code, and a tool. Needs the extra `smolagents`."""

# smolagents has no types.
# pyright: basic, reportMissingTypeStubs=false

from __future__ import annotations

import json
from io import BytesIO
from typing import TYPE_CHECKING, Any

from flame.agents import toolbox
from flame.agents.answers import LIMIT, cut
from flame.agents.toolbox import TIMEOUT, Toolbox, missing

try:
    from PIL import Image
    from smolagents import AgentError, AgentLogger, LogLevel, Tool
    from smolagents.local_python_executor import CodeOutput
    from smolagents.remote_executors import RemotePythonExecutor
except ImportError as error:
    raise missing("smolagents", error) from error

if TYPE_CHECKING:
    from flame.sandbox import Execution, Sandbox

_INSTALL = """
import subprocess, sys
from importlib.metadata import PackageNotFoundError, distribution
def _missing(package):
    try:
        return not distribution(package)
    except PackageNotFoundError:
        return True
_wanted = [package for package in {packages} if _missing(package)]
if _wanted:
    _pip = [sys.executable, "-m", "pip", "install", "--quiet", "--retries", "0", "--target", "packages"]
    _done = subprocess.run([*_pip, *_wanted], capture_output=True, text=True)
    if _done.returncode:
        print("can't install", *_wanted, _done.stderr)
    elif "packages" not in sys.path:
        sys.path.append("packages")
"""


class SandboxExecutor(RemotePythonExecutor):
    """Runs the code of a `CodeAgent(executor=...)` in a sandbox, whose variables last from step to step.

    Tools of the agent are sent there as source and run there. Values go by smolagents' safe serialization; nothing
    that comes out of the sandbox is unpickled. Packages that tools name and the sandbox lacks are installed there, if
    its network allows it. `timeout` is for each step in seconds, `limit` for its output in characters. The sandbox is
    closed by whoever made it.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        timeout: float = TIMEOUT,
        limit: int = LIMIT,
        logger: AgentLogger | None = None,
    ) -> None:
        super().__init__([], logger or AgentLogger(level=LogLevel.ERROR), allow_pickle=False)
        self.sandbox = sandbox
        self._timeout = timeout
        self._limit = limit

    def run_code_raise_errors(self, code: str) -> CodeOutput:
        """Raises AgentError with the traceback when the code does, and FlameError when the sandbox has ended."""
        execution = self.sandbox.run_code(code, timeout=self._timeout)
        logs = cut(execution.stdout + execution.stderr, self._limit)
        if execution.error is None:
            return CodeOutput(output=_value(execution), logs=logs, is_final_answer=False)
        if execution.error.name == self.FINAL_ANSWER_EXCEPTION:
            answer = self._deserialize_final_answer(execution.error.message, allow_pickle=False)
            return CodeOutput(output=answer, logs=logs, is_final_answer=True)
        reason = f"{execution.error.name}: {execution.error.message}"
        raise AgentError(f"{logs}\n{execution.error.traceback}\n{reason}".strip(), self.logger)

    def install_packages(self, additional_imports: list[str]) -> list[str]:
        """Into the sandbox's working folder. One that can't be installed is logged: the tool that needs it says so too,
        where it is imported at all."""
        if additional_imports:
            done = self.run_code_raise_errors(_INSTALL.format(packages=json.dumps(additional_imports)))
            if done.logs:
                self.logger.log(done.logs, level=LogLevel.ERROR)
        return additional_imports

    def cleanup(self) -> None:
        """Does nothing: the sandbox may be used further."""


class RunCodeTool(Tool):
    """Runs Python code in a sandbox, for a `ToolCallingAgent`. The result is text."""

    name = "run_code"
    description = toolbox.RUN_CODE
    inputs: dict[str, dict[str, str | type | bool]] = {"code": {"type": "string", "description": "Python code."}}  # noqa: RUF012
    output_type = "string"

    def __init__(self, sandbox: Sandbox, *, timeout: float = TIMEOUT, limit: int = LIMIT) -> None:
        super().__init__()
        self._box = Toolbox(sandbox, timeout=timeout, limit=limit)

    def forward(self, code: str) -> str:
        return self._box.run_code(code).text


def _value(execution: Execution) -> Any:
    """The last thing that it displayed: a picture as such, else its text."""
    if not execution.results:
        return None
    last = execution.results[-1]
    for kind in ("image/png", "image/jpeg"):
        data = last.formats.get(kind)
        if isinstance(data, bytes):
            return Image.open(BytesIO(data))
    return last.text
