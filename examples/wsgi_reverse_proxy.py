"""A reverse proxy as a WSGI application: bodies are spliced both ways, Upgrades are relayed.

    python examples/wsgi_reverse_proxy.py 127.0.0.1:8080 127.0.0.1:9000

Or: BACKEND=127.0.0.1:9000 gunicorn -k gevent --chdir examples wsgi_reverse_proxy:application
"""

from gevent import monkey

monkey.patch_all()

import http.client
import os
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from contextlib import closing, suppress
from urllib.parse import quote

from gevent.pywsgi import WSGIServer

import gsplice

gsplice.patch_all()

HOP_BY_HOP = {"connection", "expect", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"}
HOP_BY_HOP |= {"transfer-encoding", "proxy-authenticate", "proxy-authorization"}  # RFC 9110, 7.6.1


def end_to_end(headers):
    named = ",".join(value for name, value in headers if name.lower() == "connection")
    dropped = HOP_BY_HOP | {word.strip().lower() for word in named.split(",")}
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def request_headers(environ):
    keys = [key for key in environ if key.startswith(("HTTP_", "CONTENT_")) and environ[key]]
    pairs = [(key.removeprefix("HTTP_").replace("_", "-").title(), environ[key]) for key in keys]
    headers = dict(end_to_end(pairs))
    came_by = f"{headers.get('X-Forwarded-For', '')}, {environ.get('REMOTE_ADDR', 'unknown')}"
    headers["X-Forwarded-For"] = came_by.removeprefix(", ")
    if upgrade := environ.get("HTTP_UPGRADE"):
        return headers | {"Connection": "Upgrade", "Upgrade": upgrade}
    return headers | {"Connection": "close"}


def application(environ, start_response):
    path = quote(environ["PATH_INFO"].encode("latin-1"), safe="/!$&'()*+,;=:@~")
    url = "?".join(filter(None, (path, environ.get("QUERY_STRING"))))
    has_body = environ.get("CONTENT_LENGTH") or "HTTP_TRANSFER_ENCODING" in environ
    body = environ["wsgi.input"] if has_body else None
    backend = http.client.HTTPConnection(os.environ["BACKEND"], timeout=60)
    try:
        backend.request(environ["REQUEST_METHOD"], url, body, request_headers(environ))
        response = backend.getresponse()
    except (OSError, http.client.HTTPException) as error:
        backend.close()
        start_response("502 Bad Gateway", [])
        return [f"the backend: {error}\n".encode()]
    if response.status in (204, 304):
        del response.headers["Content-Length"]  # pywsgi takes it for a body's, and there is none
    status, headers = f"{response.status} {response.reason}", response.getheaders()
    if response.status == 101:
        start_response(status, headers)(b"")
        client = environ.get("gunicorn.socket", environ["wsgi.input"])
        with closing(backend), response, suppress(OSError):
            gsplice.relay(getattr(client, "rfile", client), response.fp)
        return []
    start_response(status, end_to_end(headers))
    return environ["wsgi.file_wrapper"](response, 65536)


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("server", type=WSGIServer, metavar="LISTEN", help="HOST:PORT to listen on")
    parser.add_argument("backend", metavar="BACKEND", help="HOST:PORT of the server behind it")
    server, os.environ["BACKEND"] = vars(parser.parse_args()).values()
    server.application = application
    server.start()
    print(f"listening on {server.server_host}:{server.server_port}", flush=True)
    server.serve_forever()
