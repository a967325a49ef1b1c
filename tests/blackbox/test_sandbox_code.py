"""Code in sandboxes: the kernel, through the real daemons."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import flame
from flame.client.synchronous import Connection
from sandboxes import LEVELS, cluster_for_sandboxes, create


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    with cluster_for_sandboxes(tmp_path_factory.mktemp("code")) as cluster, flame.connect(cluster.endpoint) as made:
        yield made


@pytest.fixture(scope="module", params=LEVELS)
def sandbox(connection: Connection, request: pytest.FixtureRequest) -> Iterator[flame.Sandbox]:
    with create(connection, request.param, env={"GREETING": "hello"}) as made:
        yield made


STATE = """
import os, resource, signal, sys, threading
{
    "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(), "environ": dict(os.environ), "umask": os.umask(0o22),
    "files": len(os.listdir("/proc/self/fd")),
    "children": os.popen("ls /proc/self/fd | wc -l").read(),
    "streams": [
        (each.name, each.mode, each.encoding, each.errors, each.line_buffering, each is own)
        for each, own in ((sys.stdin, sys.__stdin__), (sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__))
    ],
    "unbuffered": [sys.stdout.write_through, sys.stderr.write_through],
    "signals": {str(each): str(signal.getsignal(each)).partition(" at ")[0] for each in signal.valid_signals()},
    "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
    "threads": [each.name for each in threading.enumerate()],
    "leader": [os.getsid(0) == os.getpid(), os.getpgrp() == os.getpid()],
    "main": sorted(sys.modules["__main__"].__dict__),
    "victim": open("/proc/self/oom_score_adj").read(),
    "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
    "strangers": sorted(name for name in sys.modules if name.startswith(("asyncio", "flame.service", "google"))),
    "terminal": os.isatty(0),
}"""


def state(made: flame.Sandbox) -> dict[str, Any]:
    found = made.run_code(STATE)
    assert found.error is None, found.error.traceback
    return dict(eval(found.text))


def test_a_kernel_that_was_ready_and_one_that_was_started_anew_are_alike(connection: Connection) -> None:
    for level in LEVELS:
        with create(connection, level, env={"GREETING": "hello", "TZ": "Asia/Tokyo"}) as made:
            ready = state(made)
            made.restart_kernel()
            assert ready == state(made)
            made.restart_kernel()
            assert ready == state(made)
            assert ready["environ"]["GREETING"] == "hello"
            assert (ready["files"], ready["strangers"]) == (5, [])


PROGRAM = "open('/proc/self/cmdline').read()"
# Ends the kernel that waits, which has the same program and parent.
END_THE_OTHER = """
import os, signal
def look(pid):
    with open(f"/proc/{pid}/stat") as stat, open(f"/proc/{pid}/cmdline") as line:
        return stat.read().rpartition(")")[2].split()[1], line.read()
own = os.getpid()
others = []
for pid in {int(name) for name in os.listdir("/proc") if name.isdigit()} - {own}:
    try:
        if look(pid) == look(own):
            others.append(pid)
            os.kill(pid, signal.SIGKILL)
    except OSError:
        pass
len(others)"""


def test_the_kernel_after_the_first_one_needs_no_interpreter_to_be_started_either(connection: Connection) -> None:
    for level in LEVELS:
        with create(connection, level) as made:
            first = made.run_code(PROGRAM).text
            lost = made.run_code("import os\nos._exit(1)").error
            assert lost is not None
            assert lost.name == "KernelDied"
            assert made.run_code(PROGRAM).text == first
            made.restart_kernel()
            assert made.run_code(PROGRAM).text != first


def test_code_that_ends_the_kernel_that_waits_for_its_turn_gets_another_one(connection: Connection) -> None:
    for level in LEVELS:
        with create(connection, level) as made:
            first = made.run_code(PROGRAM).text
            assert made.run_code(END_THE_OTHER).text == "1"
            made.restart_kernel()
            assert made.run_code(PROGRAM).text != first
            assert made.run_code("'others' in globals()").text == "False"


def test_variables_that_are_read_when_an_interpreter_starts_are_heeded(connection: Connection) -> None:
    with create(connection, env={"PYTHONWARNINGS": "error"}) as made:
        error = made.run_code("import warnings\nwarnings.warn('heard')").error
        assert error is not None
        assert error.name == "UserWarning"


def test_a_variable_for_the_time_zone_is_heeded(connection: Connection) -> None:
    with create(connection, env={"TZ": "UTC-9"}) as made:
        assert made.run_code("import time\ntime.localtime(0).tm_hour").text == "9"


def test_variables_last_and_the_last_expression_is_the_value(sandbox: flame.Sandbox) -> None:
    assert sandbox.run_code("numbers = [1, 2]").text == ""
    found = sandbox.run_code("print('printed')\nnumbers + [3]")
    assert (found.text, found.stdout, found.stderr, found.error) == ("[1, 2, 3]", "printed\n", "", None)
    assert [(result.text, dict(result.formats)) for result in found.results] == [("[1, 2, 3]", {})]


def test_what_it_prints_comes_while_it_runs(sandbox: flame.Sandbox) -> None:
    heard: list[str] = []

    def on_stdout(text: str) -> None:
        heard.append(text)
        if len(heard) == 1:  # the code waits for this file
            sandbox.files.write("go", b"")

    code = "import os, time\nprint('first')\nwhile not os.path.exists('go'): time.sleep(0.01)\nprint('second')"
    found = sandbox.run_code(code, on_stdout=on_stdout)
    assert "".join(heard) == found.stdout == "first\nsecond\n"
    assert len(heard) >= 2


def test_stderr_and_what_programs_and_c_code_print_are_told_as_well(sandbox: flame.Sandbox) -> None:
    errors: list[str] = []
    code = (
        "import os, sys, subprocess\nsys.stderr.write('err')\nos.write(1, b'raw ')\nsubprocess.run(['echo', 'child'])"
    )
    found = sandbox.run_code(code, on_stderr=errors.append)
    assert (found.stdout, found.stderr, "".join(errors)) == ("raw child\n", "err", "err")


def test_an_error_has_the_lines_of_the_user_and_no_others(sandbox: flame.Sandbox) -> None:
    error = sandbox.run_code("def divide(by):\n    return 1 / by\n\ndivide(0)").error
    assert error is not None
    assert (error.name, error.message) == ("ZeroDivisionError", "division by zero")
    assert "    return 1 / by" in error.traceback
    assert "kernel.py" not in error.traceback
    error = sandbox.run_code("def (").error
    assert error is not None
    assert error.name == "SyntaxError"
    assert "kernel.py" not in error.traceback


def test_output_before_an_error_is_told(sandbox: flame.Sandbox) -> None:
    found = sandbox.run_code("print('before')\nraise SystemExit(3)")
    assert found.stdout == "before\n"
    assert found.error is not None
    assert found.error.name == "SystemExit"
    assert not found.kernel_lost


def test_await_at_the_top(sandbox: flame.Sandbox) -> None:
    assert sandbox.run_code("import asyncio\nawait asyncio.sleep(0)\nlater = 5").error is None
    assert sandbox.run_code("await asyncio.gather(asyncio.sleep(0, later), asyncio.sleep(0, 6))").text == "[5, 6]"
    found = sandbox.run_code("await asyncio.sleep(60)", timeout=0.2)
    assert found.error is not None
    assert found.error.name == "TimeoutError"
    assert sandbox.run_code("later").text == "5"


def test_rich_results(sandbox: flame.Sandbox) -> None:
    code = """
class Rich:
    def __repr__(self): return "rich"
    def _repr_html_(self): return "<b>rich</b>"
    def _repr_png_(self): return b"\\x89PNG"
    def _repr_json_(self): return {"a": 1}
    def _repr_svg_(self): raise RuntimeError
    def _repr_latex_(self): return None
class Bundle:
    def __repr__(self): return "bundle"
    def _repr_mimebundle_(self): return {"text/plain": "bundle", "application/x-own": b"\\0"}, {"meta": 1}
display(Bundle())
Rich()"""
    shown: list[flame.sandbox.Result] = []
    found = sandbox.run_code(code, on_result=shown.append)
    bundle, rich = found.results
    assert (bundle.text, dict(bundle.formats)) == ("bundle", {"application/x-own": b"\0"})
    assert rich.text == found.text == "rich"
    assert dict(rich.formats) == {
        "text/html": "<b>rich</b>", "image/png": b"\x89PNG", "application/json": '{"a": 1}'
    }  # fmt: skip
    assert shown == found.results


def pictures(found: flame.sandbox.Execution) -> list[tuple[str, list[str]]]:
    """The beginning of what each result is in words, and its formats."""
    assert found.error is None, found.error.traceback
    for result in found.results:
        data = result.formats.get("image/png", b"\x89PNG")
        assert isinstance(data, bytes)
        assert data.startswith(b"\x89PNG")
    return [(result.text.partition(" ")[0], list(result.formats)) for result in found.results]


def test_figures_become_pictures(sandbox: flame.Sandbox) -> None:
    picture = ("<Figure", ["image/png"])
    begin = "import os\nimport matplotlib.pyplot as plt\nfigure, axes = plt.subplots()\n"
    found = sandbox.run_code(f"{begin}axes.plot([1, 2])\nos.environ['MPLBACKEND']")
    assert pictures(found) == [("'Agg'", []), picture]
    assert pictures(sandbox.run_code("plt.get_fignums()")) == [("[]", [])]
    # Of one that was closed there is a picture where it is the value; of one that is open there are not two.
    assert pictures(sandbox.run_code("figure")) == [picture]
    assert pictures(sandbox.run_code("display(figure)")) == [picture]
    assert pictures(sandbox.run_code("other, axes = plt.subplots()\nplt.figure()\nother")) == [picture, picture]
    assert pictures(sandbox.run_code("figure.savefig = None\nfigure")) == [("<Figure", [])]
    assert pictures(sandbox.run_code("type(figure)")) == [("<class", [])]


def test_a_repr_that_raises_is_no_error(sandbox: flame.Sandbox) -> None:
    found = sandbox.run_code("class Bad:\n    def __repr__(self): raise ValueError\nBad()")
    assert found.error is None
    assert "whose repr raised ValueError" in found.text


def test_when_the_time_is_over_the_variables_stay(sandbox: flame.Sandbox) -> None:
    found = sandbox.run_code("kept = 1\nprint('on')\nwhile True: pass", timeout=0.3)
    assert found.error is not None
    assert (found.error.name, found.stdout, found.kernel_lost) == ("TimeoutError", "on\n", False)
    assert "ran for more than 0.3 s and was interrupted" in found.error.message
    assert "while True: pass" in found.error.traceback
    assert sandbox.run_code("kept").text == "1"


def test_code_that_ignores_interrupts_loses_its_kernel(sandbox: flame.Sandbox) -> None:
    code = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    found = sandbox.run_code(code, timeout=0.3)
    assert found.error is not None
    assert (found.error.name, found.kernel_lost) == ("TimeoutError", True)
    assert "its variables are lost" in found.error.message
    assert sandbox.run_code("'code' in globals(), 1").text == "(False, 1)"


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import os; os._exit(3)", "exited with status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "memory ran out"),
        ("import os\nfor number in range(3, 50):\n    try: os.close(number)\n    except OSError: pass", "the kernel "),
    ],
)
def test_a_kernel_that_dies_is_told_apart_and_the_sandbox_lives_on(sandbox: flame.Sandbox, code: str, how: str) -> None:
    sandbox.run_code("before = 1")
    found = sandbox.run_code(f"print('last words')\n{code}")
    assert found.error is not None
    assert (found.error.name, found.kernel_lost) == ("KernelDied", True)
    assert how in found.error.message
    assert found.stdout == "last words\n"
    assert sandbox.run_code("'before' in globals()").text == "False"


@pytest.mark.parametrize(
    "said",
    [
        b"nonsense",
        b"[]",
        b'{"shown": 5}',
        b'{"done": true, "error": 5}',
        b'{"shown": {"formats": {"a": {"base64": "?"}}}}',
    ],
)
def test_code_that_speaks_in_the_place_of_its_kernel_loses_it(sandbox: flame.Sandbox, said: bytes) -> None:
    code = f"""
import os, stat, time
said = {said!r}
for number in range(3, 50):
    try:
        if stat.S_ISSOCK(os.fstat(number).st_mode): os.write(number, len(said).to_bytes(4, "little") + said)
    except OSError: pass
time.sleep(60)"""
    found = sandbox.run_code(code)
    assert found.error is not None
    assert found.error.name == "KernelDied"
    assert sandbox.run_code("1").text == "1"


def test_a_child_that_code_forks_does_not_answer_in_its_place(sandbox: flame.Sandbox) -> None:
    found = sandbox.run_code("import os\npid = os.fork()\n'parent' if pid else 'child'")
    assert found.text == "'parent'"
    assert sandbox.run_code("os.waitpid(pid, 0)[1]").text == "0"


def test_interrupt_and_restart(sandbox: flame.Sandbox) -> None:
    def interrupt(text: str) -> None:
        flame.Sandbox.open(sandbox.id, connection=sandbox._caller.session.connection).interrupt()

    found = sandbox.run_code("kept = 2\nprint('on')\nimport time\ntime.sleep(60)", on_stdout=interrupt)
    assert found.error is not None
    assert found.error.name == "KeyboardInterrupt"
    assert sandbox.run_code("kept").text == "2"
    sandbox.restart_kernel()
    assert sandbox.run_code("'kept' in globals()").text == "False"


def test_a_restart_ends_the_code_that_runs(sandbox: flame.Sandbox) -> None:
    found = sandbox.run_code(
        "print('on')\nimport time\ntime.sleep(60)", on_stdout=lambda text: sandbox.restart_kernel()
    )
    assert found.error is not None
    assert (found.error.name, found.kernel_lost) == ("KernelRestarted", True)


def test_variables_of_the_environment_for_all_and_for_one_run(sandbox: flame.Sandbox) -> None:
    code = "import os\nos.environ.get('GREETING'), os.environ.get('ONCE')"
    assert sandbox.run_code(code, env={"ONCE": "now"}).text == "('hello', 'now')"
    assert sandbox.run_code(code).text == "('hello', None)"


def test_the_credential_of_the_instance_is_nobody_elses(sandbox: flame.Sandbox) -> None:
    assert sandbox.run_code("import os\n[name for name in os.environ if 'TOKEN' in name]").text == "[]"


def test_more_output_than_is_kept_is_cut_and_counted(sandbox: flame.Sandbox) -> None:
    found = sandbox.run_code("for _ in range(9): print('x' * 2**20)")
    assert found.error is None
    assert len(found.stdout) + found.cut == 9 * (2**20 + 1)
    assert len(found.stdout) == 4 * 2**20


def test_several_clients_take_turns(sandbox: flame.Sandbox) -> None:
    connection = sandbox._caller.session.connection
    with flame.Sandbox.open(sandbox.id, connection=connection) as other:
        sandbox.run_code("turns = []")
        futures = [
            box._caller.session.submit(flame.sandbox.wire.encode_call(flame.sandbox.wire.RunCode(name, code)))
            for box, name, code in [(sandbox, "a", "turns.append(1)"), (other, "b", "turns.append(2)")]
        ]
        assert all(future.result(30) for future in futures)
        assert sorted(eval(other.run_code("turns").text)) == [1, 2]
    assert sandbox.run_code("1").text == "1"  # what was opened was only let go


def test_a_file_of_the_working_folder_can_be_imported_and_does_no_harm(sandbox: flame.Sandbox) -> None:
    sandbox.files.write("json.py", b"raise RuntimeError('not this one')")
    sandbox.files.write("own.py", b"value = 7")
    sandbox.restart_kernel()
    try:
        assert sandbox.run_code("import own\nown.value").text == "7"
    finally:
        sandbox.files.remove("json.py")


def test_nonsense_is_refused_before_it_is_sent(sandbox: flame.Sandbox) -> None:
    sandbox.run_code("kept = 1")
    for code, options, about in (
        ("1", {"timeout": 0}, "timeout"),
        ("1", {"timeout": "1"}, "timeout"),
        ("1", {"env": {"A=B": "c"}}, "env: no variable can be called 'A=B'"),
        ("1", {"env": {"A": "b\0c"}}, "env: the value of A"),
        ("1", {"env": {"A": 1}}, "env: the value of A"),
        (None, {}, "code: expected str, got None"),
        (b"1", {}, "code: expected str, got bytes"),
        ("'\ud800'", {}, "can't be sent"),
    ):
        with pytest.raises(flame.InvalidArgumentError, match=about):
            sandbox.run_code(code, **options)  # type: ignore[arg-type]
    assert sandbox.run_code("kept").text == "1"
    assert sandbox.run_code("").error is None
    assert sandbox.run_code("# nothing").text == ""


def test_what_is_too_much_or_no_text_is_told_as_far_as_it_can_be(sandbox: flame.Sandbox) -> None:
    sandbox.run_code("kept = 1")
    error = sandbox.run_code("raise ValueError('x' * 100_000_000)").error
    assert error is not None
    assert error.message.startswith("xxx")
    assert error.message.endswith("characters left out)")
    found = sandbox.run_code("class Wide:\n    def _repr_png_(self): return b'x' * 60_000_000\nWide()")
    assert [dict(result.formats) for result in found.results] == [{}]
    assert found.text.endswith("(image/png left out: 80000000 characters)")
    error = sandbox.run_code("raise ValueError('\\ud800')").error
    assert error is not None
    assert error.message == "?"
    odd = "class Odd:\n    def __repr__(self): return '\\ud800'\n    def _repr_json_(self):\n"
    odd += "        deep = []\n        for _ in range(100_000): deep = [deep]\n        return deep\nOdd()"
    found = sandbox.run_code(odd)
    assert (found.text, found.error, dict(found.results[0].formats)) == ("?", None, {})
    assert sandbox.run_code("kept").text == "1"


def test_code_that_removes_the_working_folder_goes_on_with_a_new_one(connection: Connection) -> None:
    for level in LEVELS:
        with create(connection, level) as made:
            assert made.run_code("import os, shutil\nshutil.rmtree(os.getcwd())").error is None
            assert made.run_command("echo here > a").exit_code == 0
            made.run_code("shutil.rmtree(os.environ['PWD'])")
            for _ in range(2):  # a kernel that waited, and an interpreter
                made.restart_kernel()
                assert made.run_code("1").text == "1"
            assert made.run_code("import os\nos.listdir()").text == "[]"
