"""The service behind `flmexec`: runs a script and gives back what it printed.

Input: JSON `{"language": "shell" or "python", "runtime": text or null, "code": text, "input": array of bytes or null}`;
output: JSON `{"data": array of bytes}`, what the script wrote to its standard output, whatever its exit status.

A request with `"answer": "full"` may also have `stdin` (base64, in place of `input`), `arguments`, `env`, `cwd` and
`timeout` (seconds), and is answered with `{"exit_code", "stdout", "stderr", "timed_out"}`, both outputs in base64.

Other languages are those of the variable FLAME_EXEC_INTERPRETERS: `node=/usr/bin/node;perl=perl -w`.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from flame.sandbox.inside.child import Outcome, run

SHELLS = ("sh", "bash", "zsh", "csh", "tcsh", "ksh", "fish")
INTERPRETERS = "FLAME_EXEC_INTERPRETERS"

_OWN_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_VERSION = re.compile(r"(?:python)?(3\.\d+)(?:\.\d+)?")
_INLINE_METADATA = re.compile(r"^# /// script\s*$", re.MULTILINE)  # of PEP 723: uv installs what it names
# Of the instance's environment, what scripts get. FLAME_INSTANCE_ID lets the node find what they leave behind.
_PASSED = re.compile(
    r"PYTHONPATH|FLAME_(HOME|PYTHON_VERSION|ENDPOINT|CACHE_ENDPOINT|CA_FILE|SESSION_ID|APPLICATION|INSTANCE_ID)"
    r"|UV_\w+|SSL_CERT_\w+|XDG_CACHE_HOME|PATH|HOME|USER|TMPDIR|TEMP|TMP|LANG|LC_\w+|TZ|\w+_proxy|\w+_PROXY"
    r"|CUDA_VISIBLE_DEVICES"
)
_NUMBER_CHARS = 5  # that one byte of output takes in the answer, at most: "255, "


class Request(msgspec.Struct, frozen=True):
    """One script to run. `data` is its standard input."""

    language: str
    runtime: str
    code: str
    data: bytes
    arguments: Sequence[str] = ()
    env: Mapping[str, str] = {}
    cwd: str = ""
    timeout: float | None = None
    full: bool = False


def run_script(data: bytes | None) -> bytes:
    """The answer to a task. Raises ValueError for a request that is none, or names no interpreter of this node."""
    request = parse(data)
    limit = int(os.environ.get("FLAME_MAX_PAYLOAD") or 64 * 1024**2) // _NUMBER_CHARS
    outcome = execute(request, os.environ, limit)
    if request.full:
        return _full_answer(outcome)
    if outcome.stderr:
        sys.stderr.write(outcome.stderr.decode(errors="replace"))
    return json.dumps({"data": list(outcome.stdout)}).encode()


def execute(request: Request, environ: Mapping[str, str], limit: int) -> Outcome:
    """Run the script. Raises ValueError, OSError, TooMuchOutputError."""
    with tempfile.TemporaryDirectory(prefix=f"{_file_name(request.language)}-", ignore_cleanup_errors=True) as folder:
        env = {name: value for name, value in environ.items() if _PASSED.fullmatch(name)}
        env.update(request.env)
        suffix = {"python": "py", "shell": "sh"}.get(request.language, _file_name(request.language))
        script = Path(folder) / f"main.{suffix}"
        script.write_text(request.code)
        argv = [*interpreter(request, environ), str(script), *request.arguments]
        cwd = request.cwd or folder
        if not Path(cwd).is_dir():
            raise ValueError(f"cwd {cwd!r} is no folder of this node")
        return run(argv, env=env, cwd=cwd, data=request.data, timeout=request.timeout, limit=limit)


# --- requests and answers ---------------------------------------------------------------------------------------------


def parse(data: bytes | None) -> Request:
    """The request in a task's input. Raises ValueError."""
    found: object = json.loads(data or b"null")
    if not isinstance(found, dict):
        raise ValueError("the input must be a JSON object with language and code")
    fields = cast("dict[str, Any]", found)
    language, code = fields.get("language"), fields.get("code")
    if not isinstance(language, str) or not isinstance(code, str):
        raise ValueError("language and code must be texts")
    runtime = fields.get("runtime")
    if runtime is not None and not isinstance(runtime, str):
        raise ValueError("runtime must be a text or null")
    data = _bytes(fields.get("input"))
    if fields.get("answer") != "full":
        return Request(language.lower(), runtime or "", code, data)
    if fields.get("stdin") is not None:
        data = base64.b64decode(str(fields["stdin"]), validate=True)
    timeout = fields.get("timeout")
    if timeout is not None and (not isinstance(timeout, int | float) or isinstance(timeout, bool) or timeout <= 0):
        raise ValueError(f"timeout must be a number of seconds above 0, not {timeout!r}")
    return Request(
        language.lower(),
        runtime or "",
        code,
        data,
        arguments=_texts(fields.get("arguments") or [], "arguments"),
        env=_environment(fields.get("env") or {}),
        cwd=_texts([fields.get("cwd") or ""], "cwd")[0],
        timeout=timeout,
        full=True,
    )


def _bytes(value: object) -> bytes:
    """An array of numbers from 0 to 255; null is nothing."""
    if value is None:
        return b""
    try:
        return bytes(cast("list[int]", value)) if isinstance(value, list) else bytes([256])
    except (TypeError, ValueError):
        raise ValueError("input must be null or an array of numbers from 0 to 255") from None


def _texts(value: object, what: str) -> list[str]:
    items = cast("list[object]", value) if isinstance(value, list) else [None]
    if not all(isinstance(item, str) and "\0" not in item for item in items):
        raise ValueError(f"{what} must be text")
    return cast("list[str]", items)


def _environment(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError("env must be an object of texts")
    names, values = list(cast("dict[str, object]", value)), list(cast("dict[str, object]", value).values())
    if any(not name or "=" in name for name in names):
        raise ValueError("env holds a name that no variable can have")
    return dict(zip(_texts(names, "env"), _texts(values, "env"), strict=True))


def _full_answer(outcome: Outcome) -> bytes:
    return json.dumps(
        {
            "exit_code": outcome.status,
            "stdout": base64.b64encode(outcome.stdout).decode(),
            "stderr": base64.b64encode(outcome.stderr).decode(),
            "timed_out": outcome.timed_out,
        }
    ).encode()


# --- interpreters -----------------------------------------------------------------------------------------------------


def interpreter(request: Request, environ: Mapping[str, str]) -> list[str]:
    """The command that runs the script, whose file goes behind it. Raises ValueError."""
    path = environ.get("PATH")
    if request.language == "shell":
        return [_shell(request.runtime, path)]
    if request.language == "python":
        return _python(request, environ)
    configured = configured_interpreters(environ)
    if request.language not in configured:
        known = ", ".join(["shell", "python", *configured])
        raise ValueError(f"unsupported language {request.language!r}; this application runs {known}")
    if request.runtime:
        raise ValueError(f"a runtime can be chosen for shell and python, not for {request.language}")
    command = configured[request.language]
    return [_find(command[0], path), *command[1:]]


def configured_interpreters(environ: Mapping[str, str]) -> dict[str, list[str]]:
    """Languages and their commands, from FLAME_EXEC_INTERPRETERS. Raises ValueError."""
    found: dict[str, list[str]] = {}
    for entry in filter(None, map(str.strip, environ.get(INTERPRETERS, "").split(";"))):
        language, _, command = entry.partition("=")
        words = shlex.split(command)
        if not language.strip() or not words:
            raise ValueError(f"{INTERPRETERS}: {entry!r} is not LANGUAGE=COMMAND")
        found[language.strip().lower()] = words
    return found


def _shell(runtime: str, path: str | None) -> str:
    if not runtime:
        return shutil.which("bash", path=path) or _find("sh", path)
    folder, _, name = runtime.rpartition("/")
    if name not in SHELLS or folder not in ("", "/bin", "/usr/bin"):
        raise ValueError(f"unsupported shell runtime {runtime!r}; choose one of {', '.join(SHELLS)}")
    return _find(runtime, path)


def _python(request: Request, environ: Mapping[str, str]) -> list[str]:
    text = request.runtime or environ.get("FLAME_PYTHON_VERSION") or _OWN_VERSION
    match = _VERSION.fullmatch(text)
    if match is None:
        raise ValueError(f"unsupported python runtime {text!r}; write it like 3.12")
    version, path = match[1], environ.get("PATH")
    wants_more = _INLINE_METADATA.search(request.code) is not None
    if version == _OWN_VERSION and not wants_more:
        return [sys.executable]
    uv = shutil.which("uv", path=path)
    if uv is not None:
        return [uv, "run", "--quiet", "--no-project", "--python", version]
    if wants_more:
        raise ValueError("the script names its dependencies, and this node has no uv to install them")
    return [_find(f"python{version}", path)]


def _find(program: str, path: str | None) -> str:
    found = shutil.which(program, path=path)
    if found is None:
        raise ValueError(f"this node has no {program}")
    return found


def _file_name(language: str) -> str:
    return re.sub(r"\W+", "", language)[:20] or "script"
