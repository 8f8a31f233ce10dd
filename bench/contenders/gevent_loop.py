"""What a gevent user writes today: ``recv`` and ``sendall``, a greenlet for each direction.

Every ratio of the bench is to this one.
"""

from bench.contenders import Contender, announce

READ_SIZE = 65536  # smaller ones make the loop slower, larger ones do not make it faster


def serve(backend_port: int) -> None:
    # Imported here, as in the other files: to find the contenders must load none of them.
    import gevent
    from gevent import socket
    from gevent.server import StreamServer

    def pump(source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(READ_SIZE):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)

    def handle(client: socket.socket, address: object) -> None:
        with socket.create_connection(("127.0.0.1", backend_port)) as backend:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            backend.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            up = gevent.spawn(pump, client, backend)
            pump(backend, client)
            up.get()

    server = StreamServer(("127.0.0.1", 0), handle, backlog=4096)
    server.start()
    announce(server.socket.getsockname()[1])
    server.serve_forever()


CONTENDERS = [Contender("gevent", "recv + sendall, two greenlets for each relay", serve)]
