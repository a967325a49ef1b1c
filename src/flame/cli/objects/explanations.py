"""Why something waits, on the screen."""

from __future__ import annotations

import time
from collections.abc import Sequence

from flame.cli.objects.events import event_document, event_lines
from flame.cli.output import Document, page, table
from flame.cli.times import local_time, span, utc_time
from flame.proto import frontend_pb2 as fe

NODE_RULE = "node"  # of reasons that say what keeps an executor from one node


def explanation_lines(answer: fe.Explanation) -> list[str]:
    """The summary, the rules that say no, what each node says, what happened."""
    lines = [answer.summary]
    rules = [reason for reason in answer.reasons if reason.rule != NODE_RULE]
    nodes = [reason for reason in answer.reasons if reason.rule == NODE_RULE]
    if rules:
        lines += ["", "Why:"]
        for reason in rules:
            lines.append(f"  {reason.message}")
            lines += [f"    {line}" for line in page(_about(reason))]
    if nodes:
        lines += ["", "On the nodes:"]
        rows = [[reason.object, reason.message, _since(reason), reason.remedy] for reason in nodes]
        lines += [f" {line}" for line in _filled_table(("Node", "Why not", "Since", "What helps"), rows)]
    if answer.story:
        lines += ["", "What happened:", *(f"  {line}" for line in event_lines(answer.story).split("\n"))]
    return lines


def explanation_document(answer: fe.Explanation) -> Document:
    """For programs."""
    return {
        "summary": answer.summary,
        "reasons": [
            {
                "rule": reason.rule,
                "object": reason.object,
                "message": reason.message,
                "remedy": reason.remedy,
                "since": utc_time(reason.since),
            }
            for reason in answer.reasons
        ],
        "story": [event_document(event) for event in answer.story],
    }


def _about(reason: fe.Reason) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("rule", f"{reason.rule}, of {reason.object}" if reason.object else reason.rule)]
    if reason.since:
        rows.append(("since", f"{local_time(reason.since)} ({_since(reason)})"))
    if reason.remedy:
        rows.append(("what helps", reason.remedy))
    return rows


def _since(reason: fe.Reason) -> str:
    return span(time.time() - reason.since / 1000) if reason.since else ""


def _filled_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table without the columns that are empty in every row."""
    kept = [index for index in range(len(titles)) if any(row[index] for row in rows)]
    return table([titles[index] for index in kept], [[row[index] or "-" for index in kept] for row in rows])
