"""What models are told, and who may use a server: decisions without a sandbox."""

from __future__ import annotations

import pytest

from flame.agents import answers
from flame.agents.answers import Answer, Binary, Image
from flame.agents.door import Rules, rules
from flame.agents.toolbox import Encoding, decoded
from flame.model.errors import InvalidArgumentError, NotFoundError
from flame.sandbox import CodeError, CommandResult, Execution, Result

PNG = b"\x89PNG\r\n\x1a\n..."


def test_output_values_pictures_and_tracebacks_are_told() -> None:
    shown = [Result("<Figure>", {"image/png": PNG, "text/html": "<b>"}), Result("42")]
    execution = Execution("out\n", "careful\n", shown, CodeError("E", "no", "Traceback\nE: no\n"), "42")
    assert answers.of_execution(execution) == Answer(
        "out\n[stderr]\ncareful\n<Figure>\n42\nTraceback\nE: no", [Image("image/png", PNG)], failed=True
    )
    assert answers.of_execution(Execution("", "", [])) == Answer("[no output]")


def test_what_was_lost_is_told() -> None:
    lost = Execution("x", "", [], CodeError("KernelDied", "killed", ""), cut=7, kernel_lost=True)
    assert answers.of_execution(lost).text == (
        "x\nKernelDied: killed\n[7 characters of output were left out]\n[the interpreter ended: its variables are gone]"
    )
    many = answers.of_execution(Execution("", "", [Result("p", {"image/png": PNG})] * 10))
    assert (len(many.images), "[2 more pictures were left out]" in many.text) == (8, True)


def test_commands_are_told_with_their_exit_code() -> None:
    assert answers.of_command(CommandResult(3, b"a\n", b"b\n")) == Answer("a\n[stderr]\nb\n[exit code 3]")
    ended = answers.of_command(CommandResult(143, b"", b"", timed_out=True))
    assert ended == Answer("[its time was over, and it was ended]\n[exit code 143]", failed=True)


def test_files_are_text_or_pictures() -> None:
    assert answers.of_file("a.txt", "grün".encode()) == Answer("grün")
    assert answers.of_file("a.png", PNG).images == [Image("image/png", PNG)]
    assert answers.of_file("a.webp", b"RIFF\x04\0\0\0WEBP").images == [Image("image/webp", b"RIFF\x04\0\0\0WEBP")]
    assert answers.of_file("a.wav", b"RIFF\xff\0\0\0WAVE").images == []


def test_other_files_are_kept_up_to_a_size() -> None:
    assert answers.of_file("a.pdf", b"\xff\xfe\0") == Answer(
        "[a.pdf is no text: 3 bytes of application/pdf; look at it with code]",
        binary=Binary("a.pdf", "application/pdf", b"\xff\xfe\0"),
    )
    large = answers.of_file("a", b"\xff" * (answers.MAX_BINARY + 1))
    assert (large.failed, large.binary) == (True, None)
    assert large.text == (
        "a is no text: 1048577 bytes of application/octet-stream, over the limit of 1048576 bytes for such files; "
        "look at it with code, pack it, or split it"
    )


@pytest.mark.parametrize(
    ("content", "encoding"), [("//4", "base64"), ("a-b_", "base64"), ("ü", "base64"), ("\ud83d", "text")]
)
def test_what_can_not_be_written_is_said(content: str, encoding: Encoding) -> None:
    with pytest.raises(InvalidArgumentError, match=f"can't be written as {encoding}"):
        decoded(content, encoding)


def test_what_is_written_is_text_or_base64() -> None:
    assert decoded("grün", "text") == "grün".encode()
    assert decoded("//4A\n", "base64") == b"\xff\xfe\0"


def test_long_text_keeps_its_beginning_and_its_end() -> None:
    text = answers.cut("a" * 500 + "b" * 500, 90)
    assert text == f"{'a' * 60}\n[... 910 characters left out ...]\n{'b' * 30}"
    assert answers.cut("short", 90) == "short"


def test_errors_are_told_with_their_remedy() -> None:
    assert (
        answers.of_error(NotFoundError("there is no x", remedy="make it")).text == "error: there is no x\nhint: make it"
    )


def test_nobody_listens_beyond_loopback_for_everybody_by_accident() -> None:
    with pytest.raises(InvalidArgumentError, match="could run code") as refused:
        rules("0.0.0.0", token="", insecure=False, hosts=(), origins=())
    assert "FLAME_MCP_TOKEN" in refused.value.remedy
    assert rules("0.0.0.0", token="", insecure=True, hosts=(), origins=()).hosts is None
    assert rules("0.0.0.0", token="x", insecure=False, hosts=(), origins=()).hosts is None


LOCAL = rules("127.0.0.1", token="", insecure=False, hosts=(), origins=("https://good.example",))
GUARDED = Rules(frozenset({"tools.example"}), frozenset(), "secret")


@pytest.mark.parametrize(
    ("who", "headers", "status"),
    [
        (LOCAL, {"host": "localhost:8765"}, None),
        (LOCAL, {"host": "[::1]:8765"}, None),
        (LOCAL, {"host": "evil.example:8765"}, 421),
        (LOCAL, {"host": "127.0.0.1.evil.example"}, 421),
        (LOCAL, {"host": "127.0.0.1@evil.example"}, 421),
        (LOCAL, {}, 421),
        (LOCAL, {"host": "localhost", "origin": "http://evil.example"}, 403),
        (LOCAL, {"host": "localhost", "origin": "http://localhost:3000"}, 403),
        (LOCAL, {"host": "localhost", "origin": "null"}, 403),
        (LOCAL, {"host": "localhost", "origin": "https://good.example"}, None),
        (GUARDED, {"host": "tools.example", "authorization": "Bearer secret"}, None),
        (GUARDED, {"host": "tools.example", "authorization": "bearer  secret"}, None),
        (GUARDED, {"host": "tools.example", "authorization": "Basic secret"}, 401),
        (GUARDED, {"host": "tools.example", "authorization": "Bearer secret2"}, 401),
        (GUARDED, {"host": "tools.example", "authorization": "Bearer "}, 401),
        (GUARDED, {"host": "tools.example"}, 401),
    ],
)
def test_who_may_use_a_server_over_http(who: Rules, headers: dict[str, str], status: int | None) -> None:
    refusal = who.refusal(headers)
    assert (refusal and refusal[0]) == status
