"""Running code in the kernel of a sandbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flame.client.values import short_name
from flame.sandbox import wire
from flame.sandbox.arguments import check_env, check_timeout
from flame.sandbox.steps import Steps, Tell, ask, hand_over
from flame.sandbox.values import CodeError, Execution, Result

OnText = Callable[[str], object]
OnResult = Callable[[Result], object]


def run(
    code: str,
    timeout: float | None,
    on_stdout: OnText | None,
    on_stderr: OnText | None,
    on_result: OnResult | None,
    env: Mapping[str, str] | None,
) -> Steps[Execution]:
    """Run it to its end, handing over what it gives meanwhile."""
    check_timeout(timeout)
    eager = bool(on_stdout or on_stderr or on_result)
    name = short_name("run")
    request = wire.RunCode(name, code, timeout, check_env(env), eager)
    seen: list[wire.Piece] = []
    shown: list[Result] = []
    try:
        progress = yield from ask(request, wire.Progress)
        while True:
            for piece in progress.pieces:
                if piece.stdout:
                    yield from hand_over(on_stdout, piece.stdout)
                if piece.stderr:
                    yield from hand_over(on_stderr, piece.stderr)
                if piece.shown is not None:
                    shown.append(Result(piece.shown.text, {**piece.shown.texts, **piece.shown.data}))
                    yield from hand_over(on_result, shown[-1])
            seen += progress.pieces
            if progress.ended is not None:
                return _execution(seen, shown, progress.ended)
            progress = yield from ask(wire.FollowCode(name, len(seen), eager), wire.Progress)
    except GeneratorExit:
        raise
    except Exception:
        raise
    except BaseException:  # whoever waits for it gives up
        yield Tell(wire.Interrupt(name))
        raise


def _execution(pieces: list[wire.Piece], results: list[Result], ended: wire.Ended) -> Execution:
    error = ended.error
    values = [piece.shown.text for piece in pieces if piece.shown is not None and piece.shown.value]
    return Execution(
        "".join(piece.stdout for piece in pieces),
        "".join(piece.stderr for piece in pieces),
        results,
        None if error is None else CodeError(error.name, error.message, error.traceback),
        values[-1] if values else "",
        ended.cut,
        ended.restarted,
    )
