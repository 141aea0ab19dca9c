"""What a person sees while the gateway starts: no minute of silence, and one screen at the end."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console as Rich
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from gateway.engines.fleet import Fleet
from gateway.engines.served import ServedModel
from gateway.settings import Settings

# How often a line comes when the output is no terminal (a log, a container).
LINE_EVERY_S = 10.0
TICK_S = 0.5

Progress = Callable[[str, float], None]


class Console:
    """Writes to stderr: stdout belongs to commands whose output is piped."""

    def __init__(self) -> None:
        self._rich = Rich(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self._rich.print(f"[bold]gateway[/]: {escape(text)}")

    def fail(self, text: str) -> None:
        self._rich.print(f"[bold red]gateway[/]: {escape(text)}")

    @contextlib.contextmanager
    def building(self, profile: str) -> Iterator[Progress]:
        """Progress of a model that is being built; silent when there is nothing to build."""
        with self.working(f"building the model of profile {profile}") as progress:
            yield progress

    @contextlib.contextmanager
    def working(self, title: str) -> Iterator[Progress]:
        """Progress of long work: a bar on a terminal, a line now and then elsewhere."""
        if self._rich.is_terminal:
            with self._bar(title) as progress:
                yield progress
            return
        with self._ticking() as show:
            yield lambda phase, fraction: show(f"{title}: {phase} ({fraction:.0%})")

    @contextlib.contextmanager
    def _bar(self, title: str) -> Iterator[Progress]:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Bars(*columns, console=self._rich, transient=True) as bars:
            task = bars.add_task(escape(title), total=1.0, visible=False)

            def progress(phase: str, fraction: float) -> None:
                text = f"{escape(title)}: {escape(phase)}"
                bars.update(task, description=text, completed=fraction, visible=True)

            yield progress

    @contextlib.contextmanager
    def starting(self) -> Iterator[Callable[[ServedModel], None]]:
        """Progress of engines that load."""
        with self._ticking() as show:

            def tell(model: ServedModel) -> None:
                usual = f"usually {model.start_s:.0f} s"
                show(f"starting the engine of {model.name} (profile {model.profile.name}, {usual})")

            yield tell

    @contextlib.contextmanager
    def _ticking(self) -> Iterator[Callable[[str], None]]:
        """Shows the text it is given, with the seconds since, until the block ends."""
        ticker = _Ticker(self._rich)
        thread = threading.Thread(target=ticker.run, daemon=True)
        thread.start()
        try:
            yield ticker.show
        finally:
            ticker.done.set()
            thread.join()

    def ready(self, settings: Settings, fleet: Fleet, port: int, admin_port: int) -> None:
        """Where it listens, which models, and what to try."""
        host = settings.host if ":" not in settings.host else f"[{settings.host}]"
        url = f"{'https' if settings.tls_cert else 'http'}://{host}:{port}"
        default = next(iter(fleet.models))
        closed = settings.api_key or settings.keys_file or settings.jwt_issuer
        variable = "GATEWAY_API_KEY" if settings.api_key else "KEY"
        auth = f"-H 'Authorization: Bearer '${variable} " if closed else ""
        key = f"os.environ['{variable}']" if closed else "'none'"
        lines = [
            f"[bold green]ready[/]: {url} ({'open it and ask; ' if settings.page else ''}docs: {url}/docs)",
            f"models: {', '.join(fleet.models)}",
            f"metrics: http://{settings.admin_host}:{admin_port}/metrics",
            "try:",
            f"  curl {auth}{url}/thinking -H 'content-type: application/json' \\",
            """    -d '{"question": "What is RSA?", "thinking_depth": 1, "max_tokens": 200}'""",
            f"""  python -c "import os, openai; c = openai.OpenAI(base_url='{url}/v1', api_key={key}); \\""",
            f"    print(c.chat.completions.create(model='{default}', "
            """messages=[{'role': 'user', 'content': 'Hi'}], max_tokens=64).choices[0].message.content)\"""",
            "stop: Ctrl-C",
        ]
        for line in lines:
            self._rich.print(line)


class _Ticker:
    """A spinner on a terminal, a line now and then elsewhere."""

    def __init__(self, rich: Rich) -> None:
        self.rich = rich
        self.done = threading.Event()
        self.text = ""
        self.since = time.monotonic()
        self.said = ("", 0.0)

    def show(self, text: str) -> None:
        if text.split("(")[0] != self.text.split("(")[0]:
            self.since = time.monotonic()
        self.text = text

    def run(self) -> None:
        if self.rich.is_terminal:
            self._spin()
        else:
            while not self.done.wait(TICK_S):
                self._line()

    def _spin(self) -> None:
        with self.rich.status("") as status:
            while not self.done.wait(TICK_S):
                if self.text:
                    status.update(f"{escape(self.text)}: {time.monotonic() - self.since:.0f} s")

    def _line(self) -> None:
        text, at = self.said
        phase = self.text.split("(")[0]
        if self.text and (phase != text or time.monotonic() - at > LINE_EVERY_S):
            self.said = (phase, time.monotonic())
            elapsed = time.monotonic() - self.since
            self.rich.print(f"gateway: {escape(self.text)}: {elapsed:.0f} s")
