"""The services of the suite for shims, one for each way to talk with an instance."""

from __future__ import annotations

HEAD = """
import os, sys, json, base64
from flame.testing.conduct import act, begin
nonsense = begin(sys.argv)
"""

LINK = """
import flame, socket, time
if nonsense:
    if "FLAME_INSTANCE_LINK" in os.environ:
        link = socket.socket(socket.AF_UNIX)
        link.connect(os.environ["FLAME_INSTANCE_LINK"])
        link.sendall(b"nonsense" * 100)
    os.write(1, b"nonsense" * 100)
    time.sleep(3600)
class Service(flame.FlameService):
    def on_task_invoke(self, context):
        return act(context.input)
flame.run(Service())
"""

GRPC = 'del os.environ["FLAME_INSTANCE_LINK"]\n' + LINK

LINES = """
if nonsense:
    print("nonsense", flush=True)
for line in sys.stdin:
    task = json.loads(line)
    data = base64.b64decode(task["input"]) if task.get("encoding") else task["input"].encode()
    answer = {"task_id": task["task_id"]}
    try:
        answer |= {"output": base64.b64encode(act(data)).decode(), "encoding": "base64"}
    except ValueError as error:
        answer |= {"error": str(error)}
    print(json.dumps(answer), flush=True)
"""

ONCE = """
data = sys.stdin.buffer.read()
try:
    sys.stdout.buffer.write(b"nonsense" if nonsense else act(data))
except ValueError as error:
    sys.exit(str(error))
"""

REST = """
import socket, socketserver
from http.server import BaseHTTPRequestHandler, HTTPServer
class Service(BaseHTTPRequestHandler):
    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/invoke":
            return self.answer(404)
        try:
            self.answer(200, act(data))
        except ValueError as error:
            self.answer(422, str(error).encode())
    def do_GET(self):
        if nonsense:
            self.wfile.write(b"nonsense" * 100)
        else:
            self.answer(404)
    def answer(self, status, body=b""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
"""
ON_A_PORT = REST + 'HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Service).serve_forever()\n'
ON_A_SOCKET = (
    REST
    + """
class Server(socketserver.UnixStreamServer):
    def get_request(self):
        request, _ = super().get_request()
        return request, ("here", 0)
Server(os.environ["FLAME_REST_SOCKET"], Service).serve_forever()
"""
)
