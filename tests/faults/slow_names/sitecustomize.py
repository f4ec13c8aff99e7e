"""Name servers that do not answer: Python imports this module where its folder is on the path."""

import socket
import time
from typing import Any


def _slow(*_: Any, **__: Any) -> Any:
    time.sleep(600)


for _name in ("getfqdn", "gethostbyname", "gethostbyaddr", "gethostbyname_ex", "getnameinfo"):
    setattr(socket, _name, _slow)
