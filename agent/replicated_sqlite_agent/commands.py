"""What the two commands share: running a typer application with one-line errors, and asking an agent for its status."""

from __future__ import annotations

import http.client
import json
import sys
import urllib.error
import urllib.request
from typing import Any, NoReturn

import typer

from replicated_sqlite_agent.errors import AgentError

_ASK_TIMEOUT_S = 10.0


def run_application(application: typer.Typer, name: str) -> NoReturn:
    """Run a command line to its end and exit: each error is its sentences on stderr, and the error's exit code.

    A command returns its exit code; None is 0. Mistakes of usage exit with 2, an interrupt with 1.
    """
    try:
        code = application(prog_name=name, standalone_mode=False)
    except AgentError as error:
        for line in str(error).splitlines():
            print(f"{name}: {line}", file=sys.stderr)
        code = error.exit_code
    except typer.Abort:
        code = 1
    except typer.TyperException as error:
        message = " ".join(getattr(error, "format_message", error.__str__)().split()).rstrip(".")
        print(f"{name}: {message}; '{name} --help' tells the usage", file=sys.stderr)
        code = getattr(error, "exit_code", 2)
    sys.exit(code or 0)


def fetch_status(url: str) -> dict[str, Any]:
    """The status document of the agent whose HTTP address is `url`: http://127.0.0.1:8081, or 127.0.0.1:8081.

    Raises AgentError if none answers there, or something else does.
    """
    target = ("" if url.startswith(("http://", "https://")) else "http://") + url.rstrip("/") + "/v1/status"
    # An agent is asked directly: a proxy of the environment does not know loopback addresses or pods.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(target, timeout=_ASK_TIMEOUT_S) as answer:
            status = json.load(answer)
    except urllib.error.HTTPError as error:
        raise AgentError(f"{target} answers {error.code} {error.reason}; is that the address of an agent?") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)  # of a URLError the OSError inside
        reason = getattr(reason, "strerror", None) or reason
        raise AgentError(f"no agent answers at {target} ({reason}); is it running, and is that its address?") from error
    except ValueError as error:
        raise AgentError(f"{target} does not answer with a status; is that the address of an agent?") from error
    if not isinstance(status, dict):
        raise AgentError(f"{target} does not answer with a status; is that the address of an agent?")
    return status
