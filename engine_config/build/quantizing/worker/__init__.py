"""Runs in the quantising tools' environment, not in the gateway's: see docs/adr/0008.

It is started as `python -m worker` with this folder's parent on the path, so it imports itself
relatively, and besides the tools nothing but the standard library.
"""
