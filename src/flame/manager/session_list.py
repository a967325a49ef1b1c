"""ListSession: filters and pages."""

from __future__ import annotations

import base64
import json

from flame.engine import Engine, views
from flame.engine.views import SessionView
from flame.manager import wire
from flame.model.errors import InvalidArgumentError
from flame.proto import frontend_pb2, types_pb2

_Key = tuple[int, int, str]


def list_sessions(engine: Engine, request: frontend_pb2.ListSessionRequest) -> types_pb2.SessionList:
    """The sessions that match, open ones first, then by age. Raises InvalidArgumentError for a bad page token."""
    after = _key_of_token(request.page_token) if request.page_token else None
    found: list[types_pb2.Session] = []
    last: _Key | None = None
    for view in views.sessions(engine):
        if not _matches(view, request) or (after is not None and _key(view) <= after):
            continue
        if request.page_size and len(found) == request.page_size:
            assert last is not None
            return types_pb2.SessionList(sessions=found, next_page_token=_token(last))
        found.append(wire.session_message(view, common_data=not request.without_common_data))
        last = _key(view)
    return types_pb2.SessionList(sessions=found)


def _matches(view: SessionView, request: frontend_pb2.ListSessionRequest) -> bool:
    if request.states and int(view.state) not in request.states:
        return False
    if request.application and view.spec.application != request.application:
        return False
    return all(view.spec.labels.get(name) == value for name, value in request.labels.items())


def _key(view: SessionView) -> _Key:
    return (int(view.state), view.created, view.id)


def _token(key: _Key) -> str:
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def _key_of_token(token: str) -> _Key:
    try:
        state, created, session_id = json.loads(base64.urlsafe_b64decode(token))
        return (int(state), int(created), str(session_id))
    except (ValueError, TypeError):
        raise InvalidArgumentError("the page token is none of ours", remedy="begin again without one") from None
