"""``python -m gsplice demo``: what gsplice does for you, on your machine, in half a minute.

Between a client (this process) and a backend (another one) stand two forwarders, a process each:
the usual gevent code, and `gsplice.server.ForwardServer`. The same bytes go through both, first
to be checked at the far end, then against the clock.
"""
