"""The service behind flmexec: requests, interpreters, and the programs that it runs."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from blackbox.trouble import alive, until
from flame.sandbox.inside.child import TooMuchOutputError, run
from flame.sandbox.inside.entering import ExecService
from flame.sandbox.inside.scripts import Request, configured_interpreters, interpreter, parse
from flame.service import TaskContext

ENVIRON = {"PATH": os.environ["PATH"], "HOME": "/tmp"}
SHELL = ["/bin/sh", "-c"]


def ask(**request: Any) -> dict[str, Any]:
    answer = json.loads(ExecService().on_task_invoke(TaskContext("1", "s", json.dumps(request).encode())))
    assert isinstance(answer, dict)
    return answer


def full(code: str, language: str = "shell", **more: Any) -> tuple[int, str, str]:
    answer = ask(language=language, code=code, answer="full", **more)
    return answer["exit_code"], *(base64.b64decode(answer[name]).decode() for name in ("stdout", "stderr"))


def sh(
    script: str, data: bytes = b"", timeout: float | None = 30, limit: int = 10**6
) -> tuple[int, bytes, bytes, bool]:
    return run([*SHELL, script], env=ENVIRON, cwd="/", data=data, timeout=timeout, limit=limit)


# --- as other clients ask ---------------------------------------------------------------------------------------------


def test_the_output_is_an_array_of_bytes() -> None:
    assert ask(language="shell", code="printf hi") == {"data": [104, 105]}
    assert ask(language="Python", code="print(6 * 7)", runtime=None, input=None, more="ignored") == {
        "data": [52, 50, 10]
    }


def test_a_failing_script_is_an_answer_and_its_stderr_goes_to_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    assert ask(language="shell", code="echo no >&2; printf a; exit 3") == {"data": [97]}
    assert capfd.readouterr().err == "no\n"


def test_the_input_is_bytes_and_none_is_an_empty_one() -> None:
    assert ask(language="shell", code="cat", input=[104, 0, 255]) == {"data": [104, 0, 255]}
    assert ask(language="shell", code="cat; printf end", input=None) == {"data": list(b"end")}


# --- as ours ask ------------------------------------------------------------------------------------------------------


def test_a_full_answer_tells_status_and_both_outputs_apart() -> None:
    assert full("echo out; echo err >&2; exit 7") == (7, "out\n", "err\n")
    assert full("cat; cat <&0", stdin=base64.b64encode(b"in\n").decode()) == (0, "in\n", "")


def test_arguments_environment_and_folder(tmp_path: Path) -> None:
    code = "import os, sys; print(sys.argv[1:], os.environ['A'], os.getcwd())"
    expected = f"['x y', '-z'] 1 {tmp_path}\n"
    assert full(code, "python", arguments=["x y", "-z"], env={"A": "1"}, cwd=str(tmp_path)) == (0, expected, "")


def test_each_script_has_a_folder_of_its_own_that_goes_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, _ = full("touch made; pwd; ls")
    folder, *files = out.split()
    assert (code, files) == (0, ["made", "main.sh"])
    assert folder.startswith(f"{tmp_path}/shell-")
    assert not Path(folder).exists()


def test_scripts_do_not_see_the_credentials_of_the_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAME_INSTANCE_TOKEN", "secret")
    monkeypatch.setenv("FLAME_ENDPOINT", "http://cluster:1")
    _, out, _ = full("env")
    assert "secret" not in out
    assert "FLAME_ENDPOINT=http://cluster:1\n" in out


def test_time_that_is_over_is_told() -> None:
    answer = ask(language="shell", code="echo begun; sleep 60", answer="full", timeout=0.3)
    assert (answer["exit_code"], answer["timed_out"], base64.b64decode(answer["stdout"])) == (124, True, b"begun\n")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (b"", "must be a JSON object"),
        (b"[]", "must be a JSON object"),
        (b"{", "Expecting"),
        (b'{"language": "shell"}', "language and code must be texts"),
        (b'{"language": 3, "code": ""}', "language and code must be texts"),
        (b'{"language": "shell", "code": "", "runtime": 3}', "runtime must be"),
        (b'{"language": "shell", "code": "", "input": "text"}', "input must be null or an array"),
        (b'{"language": "shell", "code": "", "input": [256]}', "input must be null or an array"),
        (b'{"language": "shell", "code": "", "answer": "full", "timeout": 0}', "timeout must be"),
        (b'{"language": "shell", "code": "", "answer": "full", "env": ["A"]}', "env must be"),
        (b'{"language": "shell", "code": "", "answer": "full", "env": {"A=": "1"}}', "env holds a name"),
        (b'{"language": "shell", "code": "", "answer": "full", "arguments": "x"}', "arguments must be text"),
        (b'{"language": "shell", "code": "", "answer": "full", "stdin": "!"}', "base64"),
    ],
)
def test_nonsense_is_refused(request_: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(request_)


# --- interpreters -----------------------------------------------------------------------------------------------------


def chosen(language: str, runtime: str = "", code: str = "", **environ: str) -> Sequence[str]:
    request = Request(language=language, runtime=runtime, code=code, data=b"")
    return interpreter(request, {"PATH": os.environ["PATH"], **environ})


def test_the_shell_is_bash_unless_another_is_asked_for() -> None:
    assert chosen("shell") == [shutil.which("bash")]
    assert chosen("shell", "sh") == [shutil.which("sh")]
    assert chosen("shell", "/bin/sh") == ["/bin/sh"]


def test_python_is_our_own_unless_the_script_needs_more(tmp_path: Path) -> None:
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    uv = tmp_path / "uv"
    uv.write_text("")
    uv.chmod(0o755)
    metadata = "# /// script\n# dependencies = []\n# ///\n"
    assert chosen("python", PATH=str(tmp_path)) == [sys.executable]
    assert chosen("python", f"python{own}") == [sys.executable]
    assert chosen("python", FLAME_PYTHON_VERSION=own) == [sys.executable]
    assert chosen("python", "3.9", PATH=str(tmp_path)) == [
        *(str(uv), "run", "--quiet", "--no-project", "--python", "3.9")
    ]
    assert chosen("python", code=metadata, PATH=str(tmp_path))[:2] == [str(uv), "run"]
    with pytest.raises(ValueError, match="has no uv"):
        chosen("python", code=metadata, PATH="/nowhere")
    with pytest.raises(ValueError, match=r"this node has no python3\.2"):
        chosen("python", "3.2", PATH="/nowhere")


def test_other_languages_are_configured() -> None:
    setting = "Upper = tr a-z A-Z ; node=node --no-warnings;"
    assert configured_interpreters({"FLAME_EXEC_INTERPRETERS": setting}) == {
        "upper": ["tr", "a-z", "A-Z"],
        "node": ["node", "--no-warnings"],
    }
    assert chosen("upper", FLAME_EXEC_INTERPRETERS=setting) == [shutil.which("tr"), "a-z", "A-Z"]
    with pytest.raises(ValueError, match="unsupported language 'perl'; this application runs shell, python, upper"):
        chosen("perl", FLAME_EXEC_INTERPRETERS=setting)
    with pytest.raises(ValueError, match="is not LANGUAGE=COMMAND"):
        configured_interpreters({"FLAME_EXEC_INTERPRETERS": "node"})


@pytest.mark.parametrize(("language", "runtime"), [("shell", "/tmp/bash"), ("shell", "python"), ("python", "2.7")])
def test_runtimes_are_not_any_program(language: str, runtime: str) -> None:
    with pytest.raises(ValueError, match=f"unsupported {language} runtime"):
        chosen(language, runtime)


# --- children ---------------------------------------------------------------------------------------------------------


def test_what_a_child_leaves_behind_holds_nobody_up_and_ends_with_it() -> None:
    status, out, _, timed_out = sh("sleep 600 & echo $!")
    assert (status, timed_out) == (0, False)
    until(lambda: not alive(int(out)), "the end of what it left")


def test_a_killed_child_has_the_status_that_shells_give_it() -> None:
    assert sh("kill -TERM $$")[0] == 128 + 15


def test_large_input_that_is_not_read_and_large_output_in_both_streams() -> None:
    assert sh("exit 4", data=bytes(10**7))[0] == 4
    script = "head -c 300000 /dev/zero; head -c 300000 /dev/zero >&2"
    status, out, err, _ = sh(script)
    assert (status, len(out), len(err)) == (0, 300_000, 300_000)


def test_closed_outputs_do_not_end_a_child_before_its_time() -> None:
    assert sh("exec >&- 2>&-; sleep 0.2; exit 5")[0] == 5


def test_endless_output_is_ended() -> None:
    with pytest.raises(TooMuchOutputError, match="more than 1,000 bytes"):
        sh("yes", limit=1000)


def test_a_program_that_is_none_says_so(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        run([str(tmp_path / "no")], env={}, cwd="/", data=b"", timeout=None, limit=10)
