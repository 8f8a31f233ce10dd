"""The HTTP proxy that everybody writes on http.server, unchanged; its bodies are spliced.

    python examples/http_proxy.py 127.0.0.1:8080
    curl -x http://127.0.0.1:8080 http://example.org/

All that gsplice adds is the import and the call below it. (It is as simple as such proxies are: it
forwards GET alone. wsgi_reverse_proxy.py does it properly.)
"""

from gevent import monkey

monkey.patch_all()

import gsplice

gsplice.patch_all()

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from shutil import copyfileobj
from urllib.error import HTTPError
from urllib.request import urlopen


class Proxy(BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            response = urlopen(self.path)
        except HTTPError as error:  # a response as well
            response = error
        except OSError as error:
            self.send_error(502, str(error))
            return
        with response:
            self.send_response(response.status)
            for name in ("Content-Type", "Content-Length"):
                if name in response.headers:
                    self.send_header(name, response.headers[name])
            self.end_headers()
            copyfileobj(response, self.wfile)

    def log_message(self, *args):
        pass


def address(text):
    host, port = text.rsplit(":", 1)
    return host.strip("[]"), int(port)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("listen", type=address, metavar="LISTEN", help="HOST:PORT to listen on")
    server = ThreadingHTTPServer(parser.parse_args().listen, Proxy)
    print(f"listening on {server.server_address[0]}:{server.server_port}", file=sys.stderr)
    server.serve_forever()
