"""A service that is written with the service helper of the foreign client."""

import sys

from flamepy.service import FlameInstance

instance = FlameInstance()


@instance.entrypoint
def answer(request: dict[str, int]) -> object:
    kind = request.get("kind")
    if kind == "context":
        return instance.context()
    if kind == "count":
        context = instance.context()
        context["count"] += request["by"]
        instance.update_context(context)
        return context["count"]
    if kind == "nothing":
        return None
    if kind == "fail":
        raise ValueError("what happened")
    return request["a"] + request["b"]


coroutines = FlameInstance()


@coroutines.entrypoint
async def later(request: int) -> int:
    return request * 2


if __name__ == "__main__":
    (coroutines if "--coroutines" in sys.argv else instance).run()
