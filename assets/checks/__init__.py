"""Claims about the assets that can be false, one module per artifact.

What automation makes carries its checks in its own step (`SPECS` and functions of an artifact), so that they
run whenever it does; the checks of what people materialise stand on their own.
"""
