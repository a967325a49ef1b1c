"""A model that answers from a script, over the HTTP API of OpenAI: chat completions and responses.

    with ModelStub(lambda seen: Turn(calls=[("run_code", {"code": "6 * 7"})]), lambda seen: Turn(seen[-1])) as model:
        ...  # a client with the base URL model.url

Each entry of the script gets the results of tools that the request holds, in order, and makes one turn.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class Turn:
    """What the model says: text, calls of functions by name and arguments, or commands for its shell."""

    text: str = ""
    calls: Sequence[tuple[str, Mapping[str, object]]] = ()
    shell: Sequence[str] = ()
    number: int = 0  # of this turn, for ids that are never used twice


@dataclass
class ModelStub:
    """The server, as a context manager. `requests` are the bodies that it got."""

    script: Sequence[Callable[[list[str]], Turn]]
    requests: list[dict[str, Any]] = field(default_factory=list)

    def __init__(self, *script: Callable[[list[str]], Turn]) -> None:
        self.script = script
        self.requests = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                chat = self.path.endswith("/chat/completions")
                turn = stub.turn(body, chat=chat)
                if body.get("stream"):
                    assert chat
                    kind = "text/event-stream"
                    data = b"".join(b"data: " + json.dumps(part).encode() + b"\n\n" for part in _chunks(turn))
                    data += b"data: [DONE]\n\n"
                else:
                    kind = "application/json"
                    data = json.dumps(_completion(turn) if chat else _response(turn)).encode()
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def turn(self, body: dict[str, Any], *, chat: bool) -> Turn:
        self.requests.append(body)
        made = self.script[len(self.requests) - 1](_seen_in_chat(body) if chat else _seen_in_responses(body))
        return replace(made, number=len(self.requests))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _seen_in_chat(body: dict[str, Any]) -> list[str]:
    return [_text(message["content"]) for message in body["messages"] if message["role"] == "tool"]


def _seen_in_responses(body: dict[str, Any]) -> list[str]:
    items = body["input"] if isinstance(body["input"], list) else []
    return [_text(item["output"]) for item in items if str(item.get("type", "")).endswith("_call_output")]


def _text(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content)


def _calls(turn: Turn) -> Iterator[tuple[str, str, Mapping[str, object]]]:
    """Each with an id."""
    for number, (name, arguments) in enumerate(turn.calls):
        yield f"call_{turn.number}_{number}", name, arguments


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": turn.text or None}
    if turn.calls:
        message["tool_calls"] = [
            {"id": identity, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for identity, name, arguments in _calls(turn)
        ]
    return message


_USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


def _completion(turn: Turn) -> dict[str, Any]:
    reason = "tool_calls" if turn.calls else "stop"
    choice = {"index": 0, "message": _message(turn), "finish_reason": reason, "logprobs": None}
    about = {"id": "chat_1", "object": "chat.completion", "created": 1, "model": "stub"}
    return {**about, "choices": [choice], "usage": _USAGE}


def _chunks(turn: Turn) -> Iterator[dict[str, Any]]:
    message = _message(turn)
    calls = [{"index": number, **call} for number, call in enumerate(message.get("tool_calls", []))]
    delta = {**message, **({"tool_calls": calls} if calls else {})}
    about = {"id": "chat_1", "object": "chat.completion.chunk", "created": 1, "model": "stub"}
    yield {**about, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield {**about, "choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls" if calls else "stop"}]}


def _response(turn: Turn) -> dict[str, Any]:
    output: list[dict[str, Any]] = []
    if turn.text:
        content = [{"type": "output_text", "text": turn.text, "annotations": []}]
        about = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
        output.append({**about, "content": content})
    for identity, name, arguments in _calls(turn):
        about = {"type": "function_call", "id": f"fc_{identity}", "call_id": identity, "status": "completed"}
        output.append({**about, "name": name, "arguments": json.dumps(arguments)})
    if turn.shell:
        about = {"type": "shell_call", "id": "sh_1", "call_id": "call_sh", "status": "completed"}
        output.append(
            {**about, "action": {"commands": list(turn.shell), "timeout_ms": None, "max_output_length": None}}
        )
    usage = {
        "input_tokens": 1,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 1,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 2,
    }
    about = {"id": "resp_1", "object": "response", "created_at": 1, "model": "stub", "status": "completed"}
    return {**about, "output": output, "usage": usage, "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
