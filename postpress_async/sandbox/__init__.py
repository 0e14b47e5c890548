"""The sandbox: a local fake of the API, for tests and first trials without an API key or an account."""

from postpress_async.sandbox._faults import Fault, Profile
from postpress_async.sandbox._record import Record
from postpress_async.sandbox._sandbox import Sandbox, own_accounts
from postpress_async.sandbox._server import Server
from postpress_async.sandbox._thread import SandboxThread

__all__ = ["Fault", "Profile", "Record", "Sandbox", "SandboxThread", "Server", "own_accounts"]
