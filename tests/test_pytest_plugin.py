"""The fixture as its users have it: in folders of their own, under each plugin that runs their tests."""

import asyncio
import gc
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from postpress_async import CustomProxy, ManagedProxy, RetryPolicy, errors
from postpress_async.sandbox import Fault, Sandbox
from postpress_async.sandbox.thread import SandboxThread

pytest_plugins = ["pytester"]

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
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
    """An empty folder with a bot in it; the plugins that are installed, and none of this run's settings."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makepyfile(bot=BOT)
    pytester.makeini(
        "[pytest]\naddopts = -p no:schemathesis\n"
        "filterwarnings =\n  error\n"
        "  ignore:The configuration option .asyncio_default:pytest.PytestDeprecationWarning\n"
    )
    return pytester


def test_a_bot_s_test_with_asyncio_in_auto_mode(folder: pytest.Pytester) -> None:
    """The mode of most projects."""
    folder.makepyfile(TEST)

    folder.runpytest_subprocess("--asyncio-mode=auto").assert_outcomes(passed=1)


def test_a_bot_s_test_with_asyncio_in_strict_mode(folder: pytest.Pytester) -> None:
    """The mode that is the default: it takes asynchronous fixtures only from its own decorator."""
    folder.makepyfile("import pytest\npytestmark = pytest.mark.asyncio\n" + TEST)

    folder.runpytest_subprocess("--asyncio-mode=strict").assert_outcomes(passed=1)


def test_a_bot_s_test_with_anyio_s_plugin(folder: pytest.Pytester) -> None:
    """Without pytest-asyncio, as FastAPI's documentation has it."""
    folder.makepyfile(
        "import pytest\npytestmark = pytest.mark.anyio\n"
        "@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n" + TEST
    )

    done = folder.runpytest_subprocess("-p", "no:asyncio", "-p", "anyio")
    done.assert_outcomes(passed=1)


def test_a_test_without_any_plugin(folder: pytest.Pytester) -> None:
    """A plain function that runs a loop, as scripts have it."""
    folder.makepyfile(
        "import asyncio\nfrom bot import new_proxy\n\n"
        "def test_a_bot(postpress_sandbox):\n"
        "    assert asyncio.run(new_proxy('acc_1', country='DE')) == 'done'\n"
        "    assert postpress_sandbox.proxy_of('acc_1') == {'country': 'DE'}\n"
    )

    done = folder.runpytest_subprocess("-p", "no:asyncio", "-p", "no:anyio")
    done.assert_outcomes(passed=1)


def test_the_readme_s_tests_pass(folder: pytest.Pytester) -> None:
    """What is pasted from there works."""
    section = README.split("### Testing your own code")[1].split("\n## ")[0]
    blocks = re.findall(r"^```py\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    folder.makepyfile(bot=blocks[0], test_bot=blocks[1], test_mocked=blocks[2])

    done = folder.runpytest_subprocess("--asyncio-mode=auto")
    done.assert_outcomes(passed=2)


def test_it_costs_nothing_where_no_test_asks_for_it(folder: pytest.Pytester) -> None:
    """pytest imports it at every start, in projects that test something else."""
    folder.makepyfile(
        "import sys\n\n"
        "def test_nothing_was_loaded():\n"
        "    assert 'postpress_async.pytest_plugin' in sys.modules\n"
        "    assert {'aiohttp', 'cattrs', 'tenacity', 'postpress_async.session'}.isdisjoint(sys.modules)\n"
    )

    done = folder.runpytest_subprocess("-p", "no:hypothesispytest")
    done.assert_outcomes(passed=1)


def test_the_marker_is_known_and_has_the_sandbox_s_arguments(folder: pytest.Pytester) -> None:
    """A mistake in it names itself; --strict-markers takes it."""
    folder.makepyfile(
        "import pytest\n\n"
        "@pytest.mark.postpress(profile='stormy')\n"
        "def test_a_profile_that_is_none(postpress_sandbox):\n"
        "    pass\n"
    )

    done = folder.runpytest_subprocess("--strict-markers")
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*no profile 'stormy': it is one of steady, flaky*"])


def test_a_marker_takes_its_arguments_by_name(folder: pytest.Pytester) -> None:
    """A profile that was given without its name was left out in silence, and the weather was fine."""
    folder.makepyfile(
        "import pytest\n\n"
        "@pytest.mark.postpress('flaky')\n"
        "def test_a_profile_without_its_name(postpress_sandbox):\n"
        "    pass\n\n"
        "@pytest.mark.postpress(profil='flaky')\n"
        "def test_a_name_that_is_none(postpress_sandbox):\n"
        "    pass\n"
    )

    done = folder.runpytest_subprocess()
    done.assert_outcomes(errors=2)
    done.stdout.fnmatch_lines(
        ["*@pytest.mark.postpress takes its arguments by name, such as profile='flaky'*"]
    )
    done.stdout.fnmatch_lines(["*@pytest.mark.postpress has no 'profil': it takes accounts, profile, *"])


def test_without_the_plugin_there_is_no_fixture(
    folder: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``-p no:postpress`` turns it off; the module's name turns it on where pytest loads none by itself."""
    folder.makepyfile("def test_a_sandbox(postpress_sandbox):\n    pass\n")

    folder.runpytest_subprocess("-p", "no:postpress").assert_outcomes(errors=1)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    folder.runpytest_subprocess("-p", "postpress_async.pytest_plugin").assert_outcomes(passed=1)


def test_the_environment_is_afterwards_what_it_was(
    folder: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the test itself set there; and a later test does not reach a sandbox that is gone."""
    folder.makepyfile(
        "import os\n\n"
        "def test_a_sandbox(postpress_sandbox, monkeypatch):\n"
        "    assert os.environ['POSTPRESS_API_KEY'] == postpress_sandbox.api_key\n"
        "    monkeypatch.setenv('POSTPRESS_API_KEY', 'another')\n\n"
        "def test_none():\n"
        "    assert os.environ['POSTPRESS_API_KEY'] == 'mine'\n"
        "    assert 'POSTPRESS_BASE_URL' not in os.environ\n"
    )
    monkeypatch.delenv("POSTPRESS_BASE_URL", raising=False)
    monkeypatch.setenv("POSTPRESS_API_KEY", "mine")

    folder.runpytest_subprocess().assert_outcomes(passed=2)


def test_a_failing_test_says_what_the_sandbox_was_asked(folder: pytest.Pytester) -> None:
    """pytest prints the fixtures of a test that failed: an address in memory tells nobody anything."""
    folder.makepyfile(
        "import asyncio\nfrom bot import new_proxy\n\n"
        "def test_a_bot(postpress_sandbox):\n"
        "    asyncio.run(new_proxy('acc_1', country='DE'))\n"
        "    assert postpress_sandbox.record.requests == 2\n\n"
        "def test_a_script(postpress_sandbox):\n"
        "    postpress_sandbox.script('acc_1', 'errors/prox_error')\n"
    )

    done = folder.runpytest_subprocess()
    done.assert_outcomes(failed=2)
    done.stdout.re_match_lines([r"postpress_sandbox = <SandboxThread http://127.0.0.1:\d+/v1, 1 request>"])
    done.stdout.re_match_lines([r".* where 1 = <Record requests=1, by_status=\{200: 1\}.*>.requests"])
    assert "concurrent" not in done.stdout.str(), "a script is read where it is given, not in the thread"


@pytest.mark.postpress(accounts=["acc_1"])
async def test_a_marker_s_arguments_reach_the_sandbox(postpress_sandbox: SandboxThread) -> None:
    """Only the accounts that it names exist."""
    async with postpress_sandbox.session() as session:
        await session.update_proxy("acc_1", US)
        with pytest.raises(errors.ResourceNotFoundError):
            await session.update_proxy("acc_2", US)


# --- The sandbox in a thread ----------------------------------------------------------------------


async def test_then_is_what_all_further_requests_get(postpress_sandbox: SandboxThread, policy) -> None:
    """An account that is dead stays dead, however often a bot asks; and a later word replaces it."""
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


async def test_a_script_that_is_none_scripts_nothing(postpress_sandbox: SandboxThread) -> None:
    """Neither half of it: the mistake is seen before the test goes on."""
    with pytest.raises(ValueError, match="not a type that the API lists"):
        postpress_sandbox.script("acc_1", 200, then="errors/no_such_thing")
    with pytest.raises(ValueError, match="404 alone says too little"):
        postpress_sandbox.script("acc_1", 404, then=Fault(status=418))

    async with postpress_sandbox.session() as session:
        await session.update_proxy("acc_1", US)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        pytest.param("errors/prox_error", "did you mean 'errors/proxy_error'", id="a slip"),
        pytest.param("proxy_error", "did you mean 'errors/proxy_error'", id="without its family"),
        pytest.param("dropped", "did you mean 'drop'", id="a word"),
        pytest.param("Something else", "not a type that the API lists", id="nothing like it"),
        pytest.param(503, "script a type, such as 'errors/no_client_session', or Fault", id="a status"),
        pytest.param(418, r"script Fault\(status=418\)", id="a status of no type"),
        pytest.param(["drop", 200], "an answer is .*, not a list", id="a list"),
        pytest.param(None, "an answer is .*, not a NoneType", id="None"),
        pytest.param(True, "an answer is .*, not a bool", id="True"),
        pytest.param(errors.ProxyError, "an answer is .*, not a type", id="a class"),
    ],
)
def test_a_wrong_answer_is_told_with_the_right_one(
    postpress_sandbox: SandboxThread, answer: Any, told: str
) -> None:
    """There are thirty-four types, and nobody knows them by heart."""
    with pytest.raises(ValueError, match=told):
        postpress_sandbox.script("acc_1", answer)


@pytest.mark.parametrize("account_id", ["acc 1", "acc/1", "", "acc_ä", "%41"])
def test_an_account_that_cannot_be_cannot_be_scripted(
    postpress_sandbox: SandboxThread, account_id: str
) -> None:
    """No request would ever be for it: the script would wait for nothing, and the test pass for nothing."""
    with pytest.raises(ValueError, match="an account's id is"):
        postpress_sandbox.script(account_id, "errors/proxy_error")


def test_weather_that_is_none_is_refused(postpress_sandbox: SandboxThread) -> None:
    """It was fine weather until now, and a test of bad weather passed."""
    with pytest.raises(ValueError, match="no outage '502': it is one of refused, 503, 503-html, 504"):
        postpress_sandbox.outage("502")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param({"accounts": "acc_1"}, "accounts is a list of ids, not text", id="accounts"),
        pytest.param({"dead_proxies": "h:1"}, "dead_proxies is a list of host:port, not text", id="dead"),
        pytest.param({"dead_proxies": ["http://h:1"]}, "'http://h:1' is not host:port", id="a dead URL"),
        pytest.param({"dead_proxies": ["h"]}, "'h' is not host:port", id="a dead host"),
        pytest.param({"latency": -1.0}, "latency is seconds from 0, not -1.0", id="latency"),
        pytest.param({"latency": "1"}, "latency is seconds from 0, not '1'", id="latency as text"),
        pytest.param({"profile": ["flaky"]}, r"no profile \['flaky'\]: it is one of steady", id="profile"),
    ],
)
def test_a_sandbox_that_would_not_do_what_was_meant_is_refused(arguments: Any, told: str) -> None:
    """Text is a collection of letters, too: no account would exist, and no proxy be dead."""
    with pytest.raises(ValueError, match=told):
        Sandbox(**arguments)


async def test_an_applied_proxy_is_seen_as_it_was_sent(postpress_sandbox: SandboxThread) -> None:
    """Password and all: that is what a test wants to know."""
    own = CustomProxy(host="proxy.example.com", port=8080, protocol="http", username="u", password="p")
    async with postpress_sandbox.session() as session:
        await session.update_proxy("acc_1", own)

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


async def test_an_outage_is_the_weather_until_it_recovers(postpress_sandbox: SandboxThread) -> None:
    """How a bot behaves when all is down is what is hardest to see elsewhere."""
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


def test_its_thread_ends_with_the_block() -> None:
    """A thousand tests must not leave a thousand threads, nor one that failed its own."""
    before = threading.active_count()
    with SandboxThread() as sandbox:
        during = threading.active_count()
    with pytest.raises(KeyError), SandboxThread():
        raise KeyError

    assert (during, threading.active_count()) == (before + 1, before)
    with pytest.raises(RuntimeError, match="does not run"):
        sandbox.script("acc_1", 200)
    with pytest.raises(RuntimeError, match="does not run"):
        SandboxThread().outage("503")


async def test_a_sandbox_and_its_thread_know_the_same_words() -> None:
    """From the fixture to a sandbox in the loop there is an `await` to write, and nothing to look up."""
    words = {name for name in dir(SandboxThread) if not name.startswith("_")}

    assert words == {name for name in dir(Sandbox) if not name.startswith("_")}

    once = RetryPolicy(attempts=1)
    async with Sandbox() as sandbox, sandbox.session(retry=once) as session:
        await sandbox.outage("503")
        with pytest.raises(errors.ServiceUnavailableError):
            await session.update_proxy("acc_1", US)
        await sandbox.recover()
        await session.update_proxy("acc_1", US)

        assert sandbox.sends("acc_1") == 2


async def test_its_own_thread_does_not_wait_for_itself(policy: RetryPolicy) -> None:
    """A predicate over proxies is asked in there, and may script; but nothing that has to be waited for."""
    told: list[str] = []

    def dies(proxy: Any) -> bool:
        sandbox.script("acc_2", "errors/no_channel")
        try:
            sandbox.outage("503")
        except RuntimeError as error:
            told.append(str(error))
        return False

    own = CustomProxy(host="proxy.example.com", port=8080)
    with SandboxThread(Sandbox(dead_proxies=dies)) as sandbox:
        async with sandbox.session(retry=policy) as session:
            await session.update_proxy("acc_1", own)
            with pytest.raises(errors.NoChannelError):
                await session.update_proxy("acc_2", US)

    assert told == ["the sandbox's own thread cannot wait for itself: say this from another one"]


def test_where_no_loop_can_be_made_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under pytest-socket, which forbids sockets: its word arrives, and no warning of ours beside it."""

    def forbidden() -> asyncio.AbstractEventLoop:
        raise OSError("no sockets here")

    monkeypatch.setattr("asyncio.events.new_event_loop", forbidden)
    with pytest.raises(OSError, match="no sockets here"), SandboxThread():
        pass
    gc.collect()  # a coroutine that nobody awaits warns, and a warning is an error here


def test_it_is_entered_once_and_left_as_often_as_one_likes() -> None:
    """A notebook has no block, and cells that are run again."""
    sandbox = SandboxThread()
    sandbox.__exit__(None, None, None)
    sandbox.__enter__()
    with pytest.raises(RuntimeError, match="entered before: make a new one"):
        sandbox.__enter__()
    assert sandbox.url in repr(sandbox)

    sandbox.__exit__(None, None, None)
    sandbox.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="entered before: make a new one"):
        sandbox.__enter__()


def test_what_keeps_it_from_listening_is_raised_where_it_is_entered() -> None:
    """And not lost in its thread."""
    with SandboxThread() as taken:
        port = int(taken.url.split(":")[2].split("/")[0])
        with pytest.raises(OSError, match=str(port)), SandboxThread(Sandbox(port=port)):
            pass
