"""A service written with the foreign SDK. The input of a task says what it does."""

import os
import time

import flamepy


class Service(flamepy.FlameService):
    def on_session_enter(self, context):
        self.session = context
        self.entered = 1

    def on_task_invoke(self, context):
        verb, _, rest = (context.input or b"").partition(b":")
        if verb == b"echo":
            return rest
        if verb == b"common":
            return repr(self.session.common_data()).encode()
        if verb == b"context":
            application = self.session.application
            told = (context.task_id, context.session_id, self.session.session_id, application.name, application.command)
            return repr(told).encode()
        if verb == b"environ":
            return os.environ.get(rest.decode(), "<unset>").encode()
        if verb == b"input":
            return repr(context.input).encode()
        if verb == b"none":
            return None
        if verb == b"sleep":
            time.sleep(float(rest))
            return b"slept"
        if verb == b"fail":
            raise ValueError(rest.decode())
        return b""

    def on_session_leave(self):
        pass


if __name__ == "__main__":
    flamepy.run(Service())
