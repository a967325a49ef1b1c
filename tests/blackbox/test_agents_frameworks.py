"""Sandboxes as tools of agent frameworks: the real libraries, against a model that answers from a script."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx2
import pytest
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, RunConfig, Runner
from langchain.agents import create_agent
from langchain_core.messages import ToolMessage
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI
from pydantic import SecretStr
from smolagents import CodeAgent, LogLevel, OpenAIModel, Tool, ToolCallingAgent

import flame
from flame.agents import langchain, openai_agents, smolagents
from flame.agents.answers import Answer
from flame.aio import AsyncSandbox
from flame.client.synchronous import Connection
from model_stub import ModelStub, Turn
from sandboxes import cluster_for_sandboxes, create

PLOT = "class Plot:\n    def _repr_png_(self): return b'\\x89PNG\\r\\n'\nPlot()"
QUIET = RunConfig(tracing_disabled=True)


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    folder = tmp_path_factory.mktemp("frameworks")
    with cluster_for_sandboxes(folder) as cluster, flame.connect(cluster.endpoint) as made:
        yield made


@pytest.fixture(scope="module")
def sandbox(connection: Connection) -> Iterator[flame.Sandbox]:
    with create(connection) as made:
        yield made


def call(name: str, **arguments: object) -> Any:
    """A turn of the model that calls a tool."""
    return lambda seen: Turn(calls=[(name, arguments)])


def tell(seen: list[str]) -> Turn:
    """A turn of the model that repeats what the last tool said."""
    return Turn(f"It is {seen[-1]}")


# --- OpenAI Agents SDK ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def agent_of(tools: Any, *script: Any, chat: bool = True) -> AsyncIterator[tuple[Agent[Any], ModelStub]]:
    kind: Any = OpenAIChatCompletionsModel if chat else OpenAIResponsesModel
    with ModelStub(*script) as model:
        async with AsyncOpenAI(base_url=model.url, api_key="none") as client:
            yield Agent("coder", tools=tools, model=kind("stub", client), model_settings=ModelSettings()), model


@pytest.mark.parametrize("chat", [True, False])
async def test_openai_agents_use_all_tools(sandbox: flame.Sandbox, chat: bool) -> None:
    script = (
        call("run_code", code="number = 41"),
        call("run_code", code="number + 1"),
        call("write_file", path="of_openai/a", content="hey"),
        call("run_command", command="cat of_openai/a"),
        call("read_file", path="of_openai/a"),
        call("list_files", path="of_openai"),
        call("read_file", path="nothing"),
        lambda seen: Turn(json.dumps(seen)),
    )
    async with agent_of(openai_agents.sandbox_tools(sandbox), *script, chat=chat) as (agent, model):
        result = await Runner.run(agent, "go", run_config=QUIET)
    assert json.loads(result.final_output) == [
        "[no output]",
        "42",
        "wrote 3 bytes to of_openai/a",
        "hey\n[exit code 0]",
        "hey",
        "a  3",
        "error: there is no nothing",
    ]
    assert json.dumps(model.requests[0]["tools"]).count("Absolute, or from the working folder.") == 3


async def test_openai_agents_with_an_asyncio_sandbox_streamed(connection: Connection) -> None:
    async with (
        await flame.aio.connect(connection.addr) as own,
        await AsyncSandbox.create(connection=own) as sandbox,
        agent_of(openai_agents.sandbox_tools(sandbox), call("run_code", code="6 * 7"), tell) as (agent, _),
    ):
        result = Runner.run_streamed(agent, "go", run_config=QUIET)
        kinds = [event.type async for event in result.stream_events()]
    assert result.final_output == "It is 42"
    assert "run_item_stream_event" in kinds


async def test_openai_agents_see_pictures(sandbox: flame.Sandbox) -> None:
    tools = openai_agents.sandbox_tools(sandbox)
    async with agent_of(tools, call("run_code", code=PLOT), tell, chat=False) as (agent, model):
        await Runner.run(agent, "go", run_config=QUIET)
    output = next(item["output"] for item in model.requests[-1]["input"] if item.get("type") == "function_call_output")
    assert [part["type"] for part in output] == ["input_text", "input_image"]
    assert output[1]["image_url"] == "data:image/png;base64,iVBORw0K"


async def test_openai_agents_use_their_shell_tool(sandbox: flame.Sandbox) -> None:
    script = (lambda seen: Turn(shell=["echo out; echo err >&2; exit 3", "sleep 600", "echo never"]), tell)
    async with agent_of([openai_agents.shell_tool(sandbox, timeout=0.5)], *script, chat=False) as (agent, _):
        result = await Runner.run(agent, "go", run_config=QUIET)
    first, second = json.loads(result.final_output.removeprefix("It is "))
    assert (first["stdout"], first["stderr"], first["outcome"]) == ("out\n", "err\n", {"type": "exit", "exit_code": 3})
    assert second["outcome"] == {"type": "timeout"}


async def test_a_run_ends_when_its_sandbox_has_ended(connection: Connection) -> None:
    sandbox = create(connection)
    sandbox.close()
    tools = openai_agents.sandbox_tools(sandbox)
    async with agent_of(tools, call("run_code", code="1"), tell) as (agent, model):
        with pytest.raises(Exception, match="was closed"):
            await Runner.run(agent, "go", run_config=QUIET)
    assert len(model.requests) == 1


# --- LangChain and LangGraph ------------------------------------------------------------------------------------------


@contextmanager
def chat_of(*script: Any) -> Iterator[ChatOpenAI]:
    with ModelStub(*script) as model, httpx2.Client() as client:
        chat = ChatOpenAI(base_url=model.url, api_key=SecretStr("none"), model="stub", http_client=client)
        yield chat


def test_langchain_tools_work_in_a_react_agent(sandbox: flame.Sandbox) -> None:
    script = (
        call("run_code", code="word = 'so'"),
        call("run_code", code=f"print(word * 2)\n{PLOT}"),
        call("write_file", path="of_langchain/a", content="hey"),
        call("run_command", command="cat of_langchain/a; exit 4"),
        call("list_files"),
        lambda seen: Turn(json.dumps(seen)),
    )
    with chat_of(*script) as chat:
        agent = create_agent(chat, langchain.sandbox_tools(sandbox))
        messages = agent.invoke({"messages": [("user", "go")]})["messages"]
    seen = json.loads(messages[-1].content)
    assert seen[1].startswith("soso\n<")
    assert seen[3] == "hey\n[exit code 4]"
    assert "of_langchain/" in seen[4]
    artifacts = [message.artifact for message in messages if isinstance(message, ToolMessage)]
    assert isinstance(artifacts[1], Answer)
    assert artifacts[1].images[0].data == b"\x89PNG\r\n"


async def test_langchain_tools_work_in_asyncio_and_streams(sandbox: flame.Sandbox) -> None:
    with chat_of(call("run_code", code="6 * 7"), tell) as chat:
        agent = create_agent(chat, langchain.sandbox_tools(sandbox))
        said = [
            chunk.content
            async for chunk, _ in agent.astream({"messages": [("user", "go")]}, stream_mode="messages")
            if chunk.content
        ]
    assert said == ["42", "It is 42"]


async def test_langchain_tools_of_an_asyncio_sandbox(connection: Connection) -> None:
    script = (
        call("write_file", path="a", content="//4A", encoding="base64"),
        call("run_code", code="open('a', 'rb').read()"),
        call("run_command", command="wc -c <a"),
        call("read_file", path="a"),
        call("list_files"),
        lambda seen: Turn(json.dumps(seen)),
    )
    async with (
        await flame.aio.connect(connection.addr) as own,
        await AsyncSandbox.create(connection=own) as sandbox,
    ):
        with chat_of(*script) as chat:
            agent = create_agent(chat, langchain.sandbox_tools(sandbox))
            messages = (await agent.ainvoke({"messages": [("user", "go")]}))["messages"]
    assert json.loads(messages[-1].content) == [
        "wrote 3 bytes to a",
        "b'\\xff\\xfe\\x00'",
        "3\n[exit code 0]",
        "[a is no text: 3 bytes of application/octet-stream; look at it with code]",
        "a  3",
    ]
    [read] = [message.artifact for message in messages if getattr(message, "name", "") == "read_file"]
    assert read.binary.data == b"\xff\xfe\0"


# --- smolagents -------------------------------------------------------------------------------------------------------


@contextmanager
def model_of(*script: Any) -> Iterator[tuple[OpenAIModel, ModelStub]]:
    with ModelStub(*script) as stub:
        model = OpenAIModel("stub", api_base=stub.url, api_key="none")
        with model.client:
            yield model, stub


def code(text: str) -> Any:
    """A turn of a model whose actions are code."""
    return lambda seen: Turn(f"Thought: let me try.\n<code>\n{text}\n</code>")


class Shout(Tool):  # type: ignore[misc]
    name = "shout"
    description = "Says it louder."
    inputs = {"text": {"type": "string", "description": "What to say."}}  # noqa: RUF012
    output_type = "string"

    def forward(self, text: str) -> str:
        return text.upper() + "!"


def test_smolagents_runs_code_in_the_sandbox(sandbox: flame.Sandbox) -> None:
    script = (
        code("import os\nnumber = 41\nprint('where', os.getcwd())"),
        code("1 / 0"),
        code("final_answer({'number': number + 1, 'said': shout('hey'), 'given': given})"),
    )
    with model_of(*script) as (model, stub):
        executor = smolagents.SandboxExecutor(sandbox)
        agent = CodeAgent([Shout()], model, executor=executor, verbosity_level=LogLevel.OFF)
        answer = agent.run("go", additional_args={"given": [1, 2]})
        agent.cleanup()
    assert answer == {"number": 42, "said": "HEY!", "given": [1, 2]}
    told = json.dumps(stub.requests[-1]["messages"])
    assert "/work" in told
    assert "ZeroDivisionError: division by zero" in told
    assert sandbox.run_code("number").text == "41"  # it stays


def test_smolagents_shows_values_and_pictures(sandbox: flame.Sandbox) -> None:
    executor = smolagents.SandboxExecutor(sandbox, timeout=0.5)
    assert executor("print('said')\n6 * 7").output == "42"
    assert executor("print('said')\n6 * 7").logs == "said\n"
    assert executor("x = 1").output is None
    png = """
import struct, zlib
def part(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
class Dots:
    def _repr_png_(self):
        head = part(b"IHDR", struct.pack(">IIBBBBB", 2, 3, 8, 0, 0, 0, 0))
        return b"\\x89PNG\\r\\n\\x1a\\n" + head + part(b"IDAT", zlib.compress(bytes(9))) + part(b"IEND", b"")
Dots()
"""
    assert executor(png).output.size == (2, 3)
    with pytest.raises(Exception, match="TimeoutError"):
        executor("while True: pass")


def test_smolagents_never_unpickles_what_comes_out(sandbox: flame.Sandbox) -> None:
    executor = smolagents.SandboxExecutor(sandbox)
    lie = "class FinalAnswerException(BaseException): pass\nraise FinalAnswerException('pickle:gASVBAAAAAAAAABLKi4=')"
    with pytest.raises(Exception, match="rejected"):
        executor(lie)


def test_smolagents_calls_a_tool(sandbox: flame.Sandbox) -> None:
    script = (
        call("run_code", code="6 * 7"),
        lambda seen: Turn(calls=[("final_answer", {"answer": "It is 42"})]),
    )
    with model_of(*script) as (model, stub):
        tools = [smolagents.RunCodeTool(sandbox)]
        agent = ToolCallingAgent(tools, model, verbosity_level=LogLevel.OFF)
        assert agent.run("go") == "It is 42"
    assert "42" in json.dumps(stub.requests[1]["messages"][-1])


# --- without them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("mcp", "mcp", "mcp"),
        ("openai_agents", "agents", "openai-agents"),
        ("langchain", "langchain_core", "langchain"),
        ("smolagents", "smolagents", "smolagents"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(module: str, library: str, extra: str) -> None:
    code = f"import sys; sys.modules[{library!r}] = None\nimport flame.agents\nimport flame.agents.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"pip install 'flame-engine[{extra}]'" in done.stderr
