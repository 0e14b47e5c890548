"""Runs nginx on loopback as a server that responds to every PATCH with a success."""

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CONFIGURATION: Final = """
daemon off; master_process off; pid nginx.pid; error_log stderr error;
events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 100000000; keepalive_timeout 1h;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  server {
    listen 127.0.0.1:%d backlog=2048;
    location ~ ^/v1/accounts/(?<id>.+)$ {
      default_type application/json;
      return 200 '{"object":"AccountPatched","account_id":"$id"}';
    }
  }
}
"""


@contextmanager
def nginx_server(core: int | None) -> Iterator[str]:
    """
    Run nginx in one process and yield its base URL. It only uses *core*, unless that is None.

    Raises:
        FileNotFoundError: nginx is not installed (`apt install nginx-light`).
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "nginx.conf")
        path.write_text(CONFIGURATION % port)
        with subprocess.Popen(["nginx", "-p", folder, "-c", path, "-e", "stderr"]) as process:
            try:
                if core is not None:
                    os.sched_setaffinity(process.pid, {core})
                _wait_until_open(port)
                yield f"http://127.0.0.1:{port}/v1"
            finally:
                process.terminate()


def _wait_until_open(port: int) -> None:
    for _ in range(100):  # 5 s
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError("nginx does not listen")
