"""An agent that writes code, runs it in a sandbox and repairs it: `python coding_agent.py [TASK]`.

It talks to any endpoint that speaks OpenAI's chat completions: set OPENAI_BASE_URL, OPENAI_API_KEY and OPENAI_MODEL.
Without them a small model of its own answers, which knows one task and makes a mistake that it finds out about.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import urllib.request
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import flame
from flame.agents.toolbox import RUN_CODE, Toolbox

if TYPE_CHECKING:
    from collections.abc import Iterator

TASK = "Write median(numbers), and show with assertions that it is right for lists of odd and even length."
ROLE = (
    "You are a programmer. Run your code with run_code, with assertions that show that it is right. When it fails, "
    "repair it and run it again. When it passes, answer with the code alone."
)
TOOL = {
    "type": "function",
    "function": {
        "name": "run_code",
        "description": RUN_CODE,
        "parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
    },
}


class Model:
    """A model behind an HTTP endpoint."""

    def __init__(self, url: str, key: str, name: str) -> None:
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        self._name = name

    def say(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """Its next message."""
        body = json.dumps({"model": self._name, "messages": messages, "tools": [TOOL]}).encode()
        with urllib.request.urlopen(urllib.request.Request(self._url, body, self._headers), timeout=300) as answer:
            return json.load(answer)["choices"][0]["message"]


def solve(task: str, model: Model, sandbox: flame.Sandbox, turns: int) -> str:
    """What the model answers when it is done, after at most so many turns."""
    box = Toolbox(sandbox, timeout=60)
    messages: list[dict[str, Any]] = [{"role": "system", "content": ROLE}, {"role": "user", "content": task}]
    for _ in range(turns):
        message = model.say(messages)
        messages.append(message)
        if not message.get("tool_calls"):
            return message.get("content") or ""
        for call in message["tool_calls"]:
            try:
                code = str(json.loads(call["function"]["arguments"])["code"])
            except (ValueError, KeyError, TypeError):
                told = "error: the arguments must be a JSON object with the key code"
            else:
                print(f"--- runs\n{code.strip()}")
                answer = box.run_code(code)
                told = answer.text
                print(f"--- {'fails' if answer.failed else 'passes'}\n{told}")
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": told})
    sys.exit(f"no answer after {turns} turns")


# --- the model that answers when none is configured -------------------------------------------------------------------

CHECKS = """
assert median([3, 1, 2]) == 2
assert median([4, 1, 3, 2]) == 2.5
print("all is right")
"""
FIRST = """
def median(numbers):
    ordered = sorted(numbers)
    return ordered[len(ordered) // 2]
"""
SECOND = """
def median(numbers):
    ordered = sorted(numbers)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2
"""


def think(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The next message: looks at what its code gave, as any model does."""
    results = [message["content"] for message in messages if message["role"] == "tool"]
    if not results:
        return run(FIRST, 0)
    if "all is right" in results[-1]:
        return {"role": "assistant", "content": json.loads(last_call(messages))["code"].partition("assert")[0].strip()}
    if "AssertionError" in results[-1] and "median([4, 1, 3, 2])" in results[-1] and len(results) == 1:
        return run(SECOND, 1)
    return {"role": "assistant", "content": f"I can't repair this: {results[-1]}"}


def run(code: str, number: int) -> dict[str, Any]:
    function = {"name": "run_code", "arguments": json.dumps({"code": code + CHECKS})}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": f"call_{number}", "type": "function", "function": function}],
    }


def last_call(messages: list[dict[str, Any]]) -> str:
    return next(m["tool_calls"] for m in reversed(messages) if m.get("tool_calls"))[0]["function"]["arguments"]


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        data = json.dumps({"choices": [{"index": 0, "message": think(request["messages"])}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def local_model() -> Iterator[str]:
    """Its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default=TASK)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--isolation", default="process", help="process, gvisor or microvm")
    arguments = parser.parse_args()
    with flame.Sandbox.create(isolation=arguments.isolation) as sandbox:
        url = os.environ.get("OPENAI_BASE_URL")
        if url:
            model = Model(url, os.environ.get("OPENAI_API_KEY", ""), os.environ.get("OPENAI_MODEL", "gpt-4.1"))
            answer = solve(arguments.task, model, sandbox, arguments.turns)
        else:
            with local_model() as url:
                answer = solve(arguments.task, Model(url, "", "local"), sandbox, arguments.turns)
    print(f"--- answers\n{answer}")


if __name__ == "__main__":
    main()
