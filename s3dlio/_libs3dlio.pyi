# The compiled module: cffi's view of the headers' marked parts.
from typing import Any

ffi: Any
lib: Any
