"""``python -m bench web``: HTTP servers side by side, gsplice's takeovers among them."""
