"""`serving up`: everything on, in the foreground, until Ctrl-C; then everything off again."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import secrets
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import psutil
from rich.console import Console
from rich.status import Status

from serving.models import catalogue
from serving.settings import Settings

APPLICATION = "serving"
STOP_SECONDS = 5.0
READY_SECONDS = 1800.0  # a large model may load for a long time


class Stopped(Exception):
    """A signal asked us to end."""


class StartFailed(RuntimeError):
    """The server did not come up; `str()` says why."""


def up(settings: Settings) -> None:
    """Start, say where, wait for a signal, stop. Raises `StartFailed`."""
    console = Console(stderr=True, highlight=False)
    with _signals() as asked_to_stop, contextlib.ExitStack() as on:
        try:
            _check_port(settings)
            step = on.enter_context(_steps(console))
            step("preparing the model")
            for model in settings.models:
                catalogue.directory_of(model, weights=True)
            step("starting Ray")
            on.enter_context(_ray(settings))
            step("starting the front and the engines")
            on.enter_context(_application(settings))
            step("loading the model into the engines")
            _wait_until_ready(settings, asked_to_stop)
            step(None)
            _say_where(console, settings)
            asked_to_stop.wait()
        except Stopped:
            pass
        step("stopping")


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """Until the server is up a signal breaks off what is being done; later it sets the event."""
    asked = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        first = not asked.is_set()
        asked.set()
        if first:
            raise Stopped

    old = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _steps(console: Console) -> Iterator[Callable[[str | None], None]]:
    """What is being done, and how long so far: a live line on a terminal, plain lines elsewhere."""
    started = time.monotonic()  # of the step that is being done
    status: Status | None = None
    lock = threading.Lock()
    current: str | None = None

    def show() -> None:
        while True:
            time.sleep(0.5)
            with lock:
                if current is None or status is None:
                    continue
                status.update(f"{current} [dim]{time.monotonic() - started:.0f} s[/dim]")

    def step(text: str | None) -> None:
        nonlocal status, current, started
        with lock:
            if current is not None:
                console.print(f"  [green]✓[/green] {current} [dim]({time.monotonic() - started:.1f} s)[/dim]")
            current, started = text, time.monotonic()
            if text is None:
                if status is not None:
                    status.stop()
                    status = None
            elif console.is_terminal:
                status = status or console.status(text)
                status.start()
            else:
                console.print(f"  {text} …")

    threading.Thread(target=show, daemon=True).start()
    try:
        yield step
    finally:
        with lock:
            if status is not None:
                status.stop()
            current = None


@contextlib.contextmanager
def _ray(settings: Settings) -> Iterator[None]:
    _raise_file_limit()
    os.environ.update(environment(settings))
    import ray

    own = settings.ray.address is None
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(
        address=settings.ray.address,
        num_cpus=_cpus(settings) if own else None,
        include_dashboard=False if own else None,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=False,
    )
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own there, which ends without stopping anything
    try:
        yield
    finally:
        with _uninterrupted():
            started = psutil.Process().children(recursive=True)
            ray.shutdown()
            _outlive(started)


def _outlive(processes: list[psutil.Process]) -> None:
    """Return when these have ended: first of themselves, then by force (HAProxy outlives Ray's own stop)."""
    _, left = psutil.wait_procs(processes, timeout=STOP_SECONDS)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=STOP_SECONDS)


def environment(settings: Settings) -> dict[str, str]:
    """What Ray Serve reads from the environment, in the driver and in every process that it starts.

    The reasons and the measurements are in docs/decisions/0002.
    """
    variables = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.deployment.middlewares",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_enable_metrics_collection": "0",
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.5",
    }
    if settings.http.behind_haproxy:
        variables |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_MAXCONN": str(_haproxy_connections()),
            "RAY_SERVE_HAPROXY_TCP_NODELAY": "1",
            # An event is a few microseconds of work: on few cores more threads only wake each other.
            "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, max(1, (os.cpu_count() or 1) // 4))),
        }
    else:
        variables |= {
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(settings.http.port),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(settings.http.port + 1),
        }
    return variables


def _haproxy_connections() -> int:
    """As many as HAProxy can hold with the files it may open: it needs two and a half for each."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 65_536 if most == resource.RLIM_INFINITY else min(65_536, max(256, (most - 256) * 2 // 5))


def _raise_file_limit() -> None:
    """Every connection is a file; the default of 1,024 is a limit for shells."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _cpus(settings: Settings) -> int:
    """A machine offers Ray its cores, or as many as the settings ask for: reservations order, they do not bind."""
    wanted = 0.0
    for model in settings.models:
        engine = settings.engine_of(model)
        workers = engine.tensor_parallel_size * engine.pipeline_parallel_size
        wanted += engine.replicas * engine.cpus * (workers + 1)
    return max(os.cpu_count() or 1, int(wanted + 1))


@contextlib.contextmanager
def _application(settings: Settings) -> Iterator[None]:
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.config import HTTPOptions, ProxyLocation

    from serving.deployment import application

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # after the import, which sets it
    # With one front the Python proxy, which Serve insists on, is parked where nobody looks.
    port = settings.http.port if settings.http.behind_haproxy else _free_port()
    secret = settings.ray.secret.encode() if settings.ray.secret else secrets.token_bytes(32)
    try:
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(
                host=settings.http.host, port=port, keep_alive_timeout_s=int(settings.http.keep_alive_seconds)
            ),
        )
        serve.run_many(
            [serve.RunTarget(application(settings, APPLICATION, secret), name=APPLICATION, route_prefix="/")],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
    except RayError as error:
        raise StartFailed(f"Ray Serve: {error}") from error
    try:
        yield
    finally:
        with _uninterrupted(), contextlib.suppress(Exception):  # Ray itself may be gone
            serve.delete(APPLICATION)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Second thoughts do not leave processes behind: signals wait until the cleaning up is done."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _check_port(settings: Settings) -> None:
    """Before minutes of loading: is the clients' port free?"""
    host, port = settings.http.host, settings.http.port
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartFailed(f"http.port: cannot listen on {host}:{port}: {error.strerror}") from error


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_until_ready(settings: Settings, asked_to_stop: threading.Event) -> None:
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if _is_ready(settings):
            return
        application = serve.status().applications.get(APPLICATION)
        if application is not None and application.status == ApplicationStatus.DEPLOY_FAILED:
            raise StartFailed(_reasons(application))
        asked_to_stop.wait(0.2)
    raise StartFailed(f"not ready after {READY_SECONDS:.0f} seconds")


def _reasons(application: Any) -> str:
    messages = [application.message, *(d.message for d in application.deployments.values() if d.message)]
    return "\n".join(dict.fromkeys(filter(None, messages)))


def _is_ready(settings: Settings) -> bool:
    try:
        with urllib.request.urlopen(f"{address(settings)}/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def address(settings: Settings) -> str:
    host = "127.0.0.1" if settings.http.host in ("0.0.0.0", "::") else settings.http.host
    return f"http://{host}:{settings.http.port}"


def _say_where(console: Console, settings: Settings) -> None:
    name = catalogue.name_of(settings.models[0])
    console.print(f"\n[bold]Ready[/bold] at {address(settings)}, admin from port {settings.admin.port} on. Try:\n")
    sys.stderr.flush()
    print(  # noqa: T201 - the line to copy goes to standard output
        f"curl {address(settings)}/v1/chat/completions -H 'content-type: application/json' -d "
        f'\'{{"model": "{name}", "max_tokens": 64, '
        f'"messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}\'',
        flush=True,
    )
    console.print("\nCtrl-C stops everything.")
