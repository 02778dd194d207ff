"""A receiver as a web app in Python would have it: it judges each delivery with PyPI's `standardwebhooks`.

The first line of stdout is its port; then one line of JSON for each request, written before the answer. The secret comes
in REEVE_PEER_SECRET. It ends with its stdin, so it outlives no test.
"""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

webhook = Webhook(os.environ["REEVE_PEER_SECRET"])
stdout_lock = threading.Lock()


def say(line: str) -> None:
    with stdout_lock:
        print(line, flush=True)


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        # Anything but a refusal is a fault of the verifier or of the header's form: no line is said, and the test ends.
        try:
            webhook.verify(body, dict(self.headers))
            genuine = True
        except WebhookVerificationError:
            genuine = False
        say(json.dumps({"id": self.headers["webhook-id"], "genuine": genuine}))
        self.send_response(204 if genuine else 401)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
threading.Thread(target=server.serve_forever, daemon=True).start()
say(str(server.server_port))
sys.stdin.read()
