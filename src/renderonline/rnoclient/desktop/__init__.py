"""The desktop program: the web page in a window of its own (extra `desktop`: PySide6 with WebEngine, keyring)."""
