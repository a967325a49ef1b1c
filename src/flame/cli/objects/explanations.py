"""Why something waits, on the screen."""

from __future__ import annotations

import time
from collections.abc import Sequence

from flame.cli.objects.events import event_document, event_lines
from flame.cli.output import Document, page, table
from flame.cli.times import local_time, span, utc_time
from flame.proto import frontend_pb2 as fe

NODE_RULE = "node"  # of reasons that say what keeps an executor from one node
STORY_SHOWN = 20  # events, the last ones


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
        lines += ["", "On the nodes:", *(f" {line}" for line in _nodes(nodes, {reason.since for reason in rules}))]
    if answer.story:
        lines += ["", "What happened:"]
        if len(answer.story) > STORY_SHOWN:
            lines.append(f"  ... {len(answer.story) - STORY_SHOWN} earlier events; -o json shows them")
        lines += [f"  {line}" for line in event_lines(answer.story[-STORY_SHOWN:]).split("\n")]
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


def _nodes(reasons: Sequence[fe.Reason], known: set[int]) -> list[str]:
    """A table of what each node says. What is the same for all of them is said once, or was said above (`known`)."""
    titles = ["Node", "Why not"]
    rows = [[reason.object, reason.message] for reason in reasons]
    if not {reason.since for reason in reasons} <= {0, *known}:
        titles.append("Since")
        rows = [[*row, _since(reason) or "-"] for row, reason in zip(rows, reasons, strict=True)]
    remedies = {reason.remedy for reason in reasons}
    if len(remedies) > 1:
        titles.append("What helps")
        rows = [[*row, reason.remedy or "-"] for row, reason in zip(rows, reasons, strict=True)]
        return table(titles, rows)
    return [*table(titles, rows), *(f" what helps: {remedy}" for remedy in remedies if remedy)]
