"""The fixture `postpress_sandbox` works in users' projects, with each plugin for asynchronous tests."""

import asyncio
import gc
import threading
from typing import Any

import pytest

from postpress_async import CustomProxy, ManagedProxy, RetryPolicy, errors
from postpress_async.sandbox import Fault, Sandbox, SandboxThread
from tests.support.documents import README, TEXTS, blocks

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow

US = ManagedProxy(country="US")

BOT = """
from postpress_async import ManagedProxy, PostPressSession, errors

async def new_proxy(account_id, country):
    async with PostPressSession() as session:
        try:
            await session.update_proxy(account_id, ManagedProxy(country=country))
        except errors.DisconnectedAccountError:
            return "reconnect"
    return "done"
"""

TEST = """
from bot import new_proxy

async def test_a_bot(postpress_sandbox):
    postpress_sandbox.script("acc_1", "errors/proxy_error", then=200)
    assert await new_proxy("acc_1", country="US") == "done"
    assert postpress_sandbox.proxy_of("acc_1") == {"country": "US"}
"""


@pytest.fixture
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A user's project with a bot. All installed plugins are active, without this project's settings."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(bot=BOT)
    pytester.makeini(
        "[pytest]\naddopts = -p no:schemathesis\n"
        "filterwarnings =\n  error\n"
        "  ignore:The configuration option .asyncio_default:pytest.PytestDeprecationWarning\n"
    )
    return pytester


def test_fixture_works_with_pytest_asyncio_in_auto_mode(folder: pytest.Pytester) -> None:
    folder.makepyfile(TEST)

    folder.runpytest_subprocess("--asyncio-mode=auto").assert_outcomes(passed=1)


def test_fixture_works_with_pytest_asyncio_in_strict_mode(folder: pytest.Pytester) -> None:
    """In this mode, which is the default, an asynchronous fixture would need pytest-asyncio's decorator."""
    folder.makepyfile("import pytest\npytestmark = pytest.mark.asyncio\n" + TEST)

    folder.runpytest_subprocess("--asyncio-mode=strict").assert_outcomes(passed=1)


def test_fixture_works_with_anyio_s_plugin(folder: pytest.Pytester) -> None:
    """FastAPI's documentation uses anyio without pytest-asyncio."""
    folder.makepyfile(
        "import pytest\npytestmark = pytest.mark.anyio\n"
        "@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n" + TEST
    )

    result = folder.runpytest_subprocess("-p", "no:asyncio", "-p", "anyio")
    result.assert_outcomes(passed=1)


def test_fixture_works_without_a_plugin_for_asynchronous_tests(folder: pytest.Pytester) -> None:
    """A synchronous test can call asyncio.run itself."""
    folder.makepyfile(
        "import asyncio\nfrom bot import new_proxy\n\n"
        "def test_a_bot(postpress_sandbox):\n"
        "    assert asyncio.run(new_proxy('acc_1', country='DE')) == 'done'\n"
        "    assert postpress_sandbox.proxy_of('acc_1') == {'country': 'DE'}\n"
    )

    result = folder.runpytest_subprocess("-p", "no:asyncio", "-p", "no:anyio")
    result.assert_outcomes(passed=1)


def test_tests_in_the_documentation_pass(folder: pytest.Pytester) -> None:
    bot, test_bot, test_mocked = blocks(TEXTS["guides/testing.md"], "py")
    [test_readme] = blocks(README, "py")
    folder.makepyfile(bot=bot, test_bot=test_bot, test_mocked=test_mocked, test_readme=test_readme)

    result = folder.runpytest_subprocess("--asyncio-mode=auto")
    result.assert_outcomes(passed=3)


def test_the_plugin_imports_nothing_unless_the_fixture_is_used(folder: pytest.Pytester) -> None:
    """pytest imports the plugin at every start, even in projects that do not use it."""
    folder.makepyfile(
        "import sys\n\n"
        "def test_nothing_was_loaded():\n"
        "    assert 'postpress_async.pytest_plugin' in sys.modules\n"
        "    assert {'aiohttp', 'cattrs', 'tenacity', 'postpress_async.session'}.isdisjoint(sys.modules)\n"
    )

    result = folder.runpytest_subprocess("-p", "no:hypothesispytest")
    result.assert_outcomes(passed=1)


def test_strict_markers_accept_the_marker_and_its_arguments_are_validated(folder: pytest.Pytester) -> None:
    folder.makepyfile(
        "import pytest\n\n"
        "@pytest.mark.postpress(profile='unknown')\n"
        "def test_an_unknown_profile(postpress_sandbox):\n"
        "    pass\n"
    )

    result = folder.runpytest_subprocess("--strict-markers")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*profile must be one of steady, flaky, *, got 'unknown'*"])


def test_the_marker_accepts_only_known_keyword_arguments(folder: pytest.Pytester) -> None:
    """A positional or misspelt argument must not be ignored silently."""
    folder.makepyfile(
        "import pytest\n\n"
        "@pytest.mark.postpress('flaky')\n"
        "def test_a_positional_argument(postpress_sandbox):\n"
        "    pass\n\n"
        "@pytest.mark.postpress(profil='flaky')\n"
        "def test_a_misspelt_argument(postpress_sandbox):\n"
        "    pass\n"
    )

    result = folder.runpytest_subprocess()
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*accepts only keyword arguments such as profile='flaky', got 'flaky'*"])
    result.stdout.fnmatch_lines(["*must be among accounts, profile, *, got 'profil'*"])


def test_the_plugin_can_be_turned_off_and_on(
    folder: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``-p no:postpress`` turns it off. If pytest autoloads no plugins, the module's name turns it on."""
    folder.makepyfile("def test_a_sandbox(postpress_sandbox):\n    pass\n")

    folder.runpytest_subprocess("-p", "no:postpress").assert_outcomes(errors=1)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    folder.runpytest_subprocess("-p", "postpress_async.pytest_plugin").assert_outcomes(passed=1)


def test_fixture_restores_the_environment_after_the_test(
    folder: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise later tests would use the closed sandbox."""
    folder.makepyfile(
        "import os\n\n"
        "def test_a_sandbox(postpress_sandbox, monkeypatch):\n"
        "    assert os.environ['POSTPRESS_API_KEY'] == postpress_sandbox.api_key\n"
        "    monkeypatch.setenv('POSTPRESS_API_KEY', 'another')\n\n"
        "def test_without_a_sandbox():\n"
        "    assert os.environ['POSTPRESS_API_KEY'] == 'mine'\n"
        "    assert 'POSTPRESS_BASE_URL' not in os.environ\n"
    )
    monkeypatch.delenv("POSTPRESS_BASE_URL", raising=False)
    monkeypatch.setenv("POSTPRESS_API_KEY", "mine")

    folder.runpytest_subprocess().assert_outcomes(passed=2)


def test_report_of_a_failed_test_shows_the_sandbox_s_requests(folder: pytest.Pytester) -> None:
    """pytest prints the repr of the fixtures of a failed test."""
    folder.makepyfile(
        "import asyncio\nfrom bot import new_proxy\n\n"
        "def test_a_bot(postpress_sandbox):\n"
        "    asyncio.run(new_proxy('acc_1', country='DE'))\n"
        "    assert postpress_sandbox.record.requests == 2\n\n"
        "def test_a_script(postpress_sandbox):\n"
        "    postpress_sandbox.script('acc_1', 'errors/prox_error')\n"
    )

    result = folder.runpytest_subprocess()
    result.assert_outcomes(failed=2)
    result.stdout.re_match_lines([r"postpress_sandbox = <SandboxThread http://127.0.0.1:\d+/v1, 1 request>"])
    result.stdout.re_match_lines([r".* where 1 = <Recorder requests=1, by_status=\{200: 1\}.*>.requests"])
    assert "concurrent" not in result.stdout.str(), "a script must be parsed in the caller's thread"


@pytest.mark.postpress(accounts=["acc_1"])
async def test_a_marker_s_arguments_reach_the_sandbox(postpress_sandbox: SandboxThread) -> None:
    """Only the accounts of the marker exist."""
    async with postpress_sandbox.session() as session:
        await session.update_proxy("acc_1", US)
        with pytest.raises(errors.ResourceNotFoundError):
            await session.update_proxy("acc_2", US)


# --- The sandbox in a thread ----------------------------------------------------------------------


async def test_then_is_the_response_to_all_later_requests(postpress_sandbox: SandboxThread, policy) -> None:
    """Until another script for the account has a new `then`."""
    postpress_sandbox.script("acc_1", 200, then="errors/disconnected_account")
    async with postpress_sandbox.session(retry=policy) as session:
        await session.update_proxy("acc_1", US)
        for _ in range(3):
            with pytest.raises(errors.DisconnectedAccountError):
                await session.update_proxy("acc_1", US)
        postpress_sandbox.script("acc_1", "errors/proxy_error", then=200)
        for _ in range(3):
            await session.update_proxy("acc_1", US)

    assert postpress_sandbox.sends("acc_1") == 8
    assert postpress_sandbox.record.by_status == {200: 4, 401: 3, 502: 1}


async def test_script_that_is_partly_invalid_changes_nothing(postpress_sandbox: SandboxThread) -> None:
    with pytest.raises(ValueError, match="is not an error type of the API"):
        postpress_sandbox.script("acc_1", 200, then="errors/no_such_thing")
    with pytest.raises(ValueError, match="the status 404 is ambiguous"):
        postpress_sandbox.script("acc_1", 404, then=Fault(status=418))

    async with postpress_sandbox.session() as session:
        await session.update_proxy("acc_1", US)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        pytest.param("errors/prox_error", "did you mean 'errors/proxy_error'", id="a typing error"),
        pytest.param("proxy_error", "did you mean 'errors/proxy_error'", id="without errors/"),
        pytest.param("dropped", "did you mean 'drop'", id="a similar word"),
        pytest.param("Something else", "API; a custom type requires Fault", id="unlike any type"),
        pytest.param(503, "script a type such as 'errors/no_client_session' or Fault", id="a status"),
        pytest.param(418, r"script Fault\(status=418\)", id="a status without types"),
        pytest.param(999, "no error type has the status 999", id="not a status of an error"),
        pytest.param(["drop", 200], "responses must be .*, got a list", id="a list"),
        pytest.param(None, "responses must be .*, got a NoneType", id="None"),
        pytest.param(True, "responses must be .*, got a bool", id="True"),
        pytest.param(errors.ProxyError, "responses must be .*, got a type", id="a class"),
    ],
)
def test_error_of_an_invalid_scripted_response_suggests_a_valid_one(
    postpress_sandbox: SandboxThread, response: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        postpress_sandbox.script("acc_1", response)


@pytest.mark.parametrize("account_id", ["acc 1", "acc/1", "", "acc_ä", "%41"])
def test_a_malformed_account_id_cannot_be_scripted(postpress_sandbox: SandboxThread, account_id: str) -> None:
    """No request can have such an id, so the script would never be used."""
    with pytest.raises(ValueError, match="account_id must consist of"):
        postpress_sandbox.script(account_id, "errors/proxy_error")


def test_an_unknown_outage_is_rejected(postpress_sandbox: SandboxThread) -> None:
    """If it were ignored, a test of an outage would pass without an outage."""
    with pytest.raises(ValueError, match=r"kind must be one of refused, 503, .*, slow, got '502'"):
        postpress_sandbox.outage("502")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"accounts": "acc_1"}, "accounts must be a .*, got the string 'acc_1'", id="accounts"),
        pytest.param({"dead_proxies": "h:1"}, "dead_proxies must be .*, got a string", id="dead proxies"),
        pytest.param({"dead_proxies": ["http://u:hunter2@h:1"]}, "must be host:port, without", id="dead URL"),
        pytest.param({"dead_proxies": ["h"]}, "must be host:port, without scheme", id="dead host"),
        pytest.param({"latency": -1.0}, "latency must be 0 or more seconds, got -1.0", id="latency"),
        pytest.param({"latency": "1"}, "latency must be 0 or more seconds, got '1'", id="latency as text"),
        pytest.param({"profile": ["flaky"]}, r"one of steady, .*, got \['flaky'\]", id="profile"),
    ],
)
def test_an_invalid_argument_of_a_sandbox_is_rejected(arguments: Any, message: str) -> None:
    """A string would pass as a collection of characters, and a URL may contain a password."""
    with pytest.raises(ValueError, match=message) as caught:
        Sandbox(**arguments)

    assert "hunter2" not in str(caught.value)


async def test_proxy_of_returns_the_request_body_with_the_password(postpress_sandbox: SandboxThread) -> None:
    proxy = CustomProxy(host="proxy.example.com", port=8080, protocol="http", username="u", password="p")
    async with postpress_sandbox.session() as session:
        await session.update_proxy("acc_1", proxy)

    assert postpress_sandbox.proxy_of("acc_1") == {
        "proxy": {
            "host": "proxy.example.com",
            "port": 8080,
            "protocol": "http",
            "username": "u",
            "password": "p",
        }
    }
    assert postpress_sandbox.proxy_of("acc_2") is None


async def test_outage_lasts_until_another_outage_or_recover(postpress_sandbox: SandboxThread) -> None:
    once = RetryPolicy(attempts=1)
    async with postpress_sandbox.session(retry=once) as session:
        postpress_sandbox.outage("503")
        with pytest.raises(errors.ServiceUnavailableError):
            await session.update_proxy("acc_1", US)
        postpress_sandbox.outage("refused")
        with pytest.raises(errors.TransportError):
            await session.update_proxy("acc_1", US)
        postpress_sandbox.recover()
        await session.update_proxy("acc_1", US)


def test_thread_ends_with_the_block_even_if_the_block_raises() -> None:
    before = threading.active_count()
    with SandboxThread() as sandbox:
        during = threading.active_count()
    with pytest.raises(KeyError), SandboxThread():
        raise KeyError

    assert (during, threading.active_count()) == (before + 1, before)
    with pytest.raises(RuntimeError, match="is not running"):
        sandbox.script("acc_1", 200)
    with pytest.raises(RuntimeError, match="is not running"):
        SandboxThread().outage("503")


def test_sandbox_and_sandbox_thread_have_the_same_public_names() -> None:
    """A test can switch between them by adding or removing `await`."""
    names = {name for name in dir(SandboxThread) if not name.startswith("_")}

    assert names == {name for name in dir(Sandbox) if not name.startswith("_")}


async def test_outage_and_recover_of_a_sandbox_in_the_event_loop_are_awaited() -> None:
    once = RetryPolicy(attempts=1)
    async with Sandbox() as sandbox, sandbox.session(retry=once) as session:
        await sandbox.outage("503")
        with pytest.raises(errors.ServiceUnavailableError):
            await session.update_proxy("acc_1", US)
        await sandbox.recover()
        await session.update_proxy("acc_1", US)

        assert sandbox.sends("acc_1") == 2


async def test_predicate_of_dead_proxies_may_call_script_but_not_outage(policy: RetryPolicy) -> None:
    """The predicate runs in the sandbox's thread, and `outage` would wait for this thread."""
    messages: list[str] = []

    def is_dead(proxy: Any) -> bool:
        sandbox.script("acc_2", "errors/no_channel")
        try:
            sandbox.outage("503")
        except RuntimeError as error:
            messages.append(str(error))
        return False

    proxy = CustomProxy(host="proxy.example.com", port=8080)
    with SandboxThread(Sandbox(dead_proxies=is_dead)) as sandbox:
        async with sandbox.session(retry=policy) as session:
            await session.update_proxy("acc_1", proxy)
            with pytest.raises(errors.NoChannelError):
                await session.update_proxy("acc_2", US)

    assert messages == ["the sandbox's thread cannot wait for itself; call this from another thread"]


def test_error_while_creating_the_event_loop_is_raised_without_warnings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pytest-socket, for example, forbids sockets, and the user should see only its error."""

    def forbidden() -> asyncio.AbstractEventLoop:
        raise OSError("no sockets here")

    monkeypatch.setattr("asyncio.new_event_loop", forbidden)
    with pytest.raises(OSError, match="no sockets here"), SandboxThread():
        pass
    gc.collect()  # a coroutine that was never awaited would warn here, and warnings are errors


def test_sandbox_thread_starts_only_once_and_may_be_exited_repeatedly() -> None:
    """In a notebook, a cell may be run again, without a ``with`` block."""
    sandbox = SandboxThread()
    sandbox.__exit__(None, None, None)
    sandbox.__enter__()
    with pytest.raises(RuntimeError, match="started before; create a new one"):
        sandbox.__enter__()
    assert sandbox.url in repr(sandbox)

    sandbox.__exit__(None, None, None)
    sandbox.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="started before; create a new one"):
        sandbox.__enter__()


def test_port_in_use_raises_in_the_caller_s_thread() -> None:
    with SandboxThread() as other:
        port = int(other.url.split(":")[2].split("/")[0])
        with pytest.raises(OSError, match=str(port)), SandboxThread(Sandbox(port=port)):
            pass
