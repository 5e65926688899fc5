"""Starts the page: on a free port, on this machine alone unless another address is given, telling nobody."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ralu_cache.generate import Request

if TYPE_CHECKING:
    from gradio import Blocks

PORTS = 100  # tried from the wanted one on


def serve(request: Request, host: str, port: int, results: Sequence[Path], share: bool, browser: bool) -> None:
    """Loads the model, starts the page and stays until interrupted.

    request: the model and where it runs. Raises ImportError that names the extra without Gradio, and OSError if no
    port is free.
    """
    page, address = launch(request, host, port, results, share, browser)
    print(f"{address}  (Ctrl+C ends it)", flush=True)
    page.block_thread()


def launch(
    request: Request, host: str, port: int, results: Sequence[Path], share: bool = False, browser: bool = False
) -> tuple[Blocks, str]:
    """The running page, and its address."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    try:
        from gradio.themes import Default
    except ImportError as error:
        raise ImportError("the app needs Gradio: pip install 'ralu-cache[app]'") from error
    from ralu_cache.app.page import build
    from ralu_cache.app.results import find_results
    from ralu_cache.app.visits import Studios

    free = free_port(host, port)
    if free != port:
        print(f"port {port} is taken; using the next free one, {free}", flush=True)
    studios = Studios(request)
    if refused := studios[request.model].refused:
        print(f"{request.model} is served without {', '.join(refused)}; the page says why", flush=True)
    page = build(studios, find_results(results))
    page.queue(max_size=64, default_concurrency_limit=4)
    fonts = ("system-ui", "sans-serif")  # of the visitor's own system: others would be asked for on the web
    _, local, shared = page.launch(
        server_name=host, server_port=free, share=share, inbrowser=browser, prevent_thread_lock=True, quiet=True,
        ssr_mode=False, pwa=False, footer_links=[], enable_monitoring=False,
        theme=Default(primary_hue="blue", neutral_hue="slate", font=fonts, font_mono=("ui-monospace", "monospace")),
        css_paths=Path(__file__).with_name("page.css"),
        allowed_paths=[str(folder.resolve()) for folder in results],
    )  # fmt: skip
    return page, shared or local


def free_port(host: str, port: int) -> int:
    """The first free one from `port` on. Raises OSError if none of the next hundred is."""
    for candidate in range(port, min(port + PORTS, 65536)):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((host, candidate))
            except OSError:
                continue
            return candidate
    raise OSError(f"no free port at {host} from {port} to {port + PORTS - 1}; choose another with --port")
