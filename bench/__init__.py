"""Measures gsplice beside what else relays bytes; ``bench/README.rst`` states the method."""
