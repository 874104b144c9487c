"""Run a page as its reader would: files are written, commands entered, Python typed in, in order.

``python tests/page_run.py PAGE`` does it in a network of its own, so that the page's ports are
free. It runs as the first process of namespaces that `test_docs` makes; when it ends, all that it
started ends.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import fcntl
import importlib
import inspect
import io
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blocks import ROOT, Block, blocks

from spop.testing.haproxy import find_haproxy, version

SERVERS = re.compile(
    r"(python -m spop\.compat|spop serve(?!.*(--help|--check-config))|haproxy (?!.*-c\b).*-f|"
    r"python -m http\.server|uvicorn|flask .*run|make run|python serve\w*\.py|prometheus|tshark -i) ?"
)
"""Commands that run until they are stopped. They run beside the page."""
INSTALLS = re.compile(r"^\$ .*(pip|make) install", re.MULTILINE)
CHECKOUT = ("Makefile", "setup.py", "pyproject.toml", "README.md", "LICENSE")
"""What an installation needs besides the sources."""
INSTALLING = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as the value of build_isolation.
    "PIP_NO_INDEX": "1",
    "PYTHONPATH": sysconfig.get_path("purelib"),
    "SPOP": "",  # A project of `spop new` would build this checkout, beside other tests.
    "SPOP_PURE": "1",
}
"""A page's network reaches no index: what an installation would get from there is found in the
environment of the tests, and no module is compiled."""
SYSTEM_FOLDERS = ("/opt", "/etc/systemd/system")
"""Where pages install a service: they get empty ones of their own."""
STATE = ".state_of_the_shell"
WAIT = 180.0
"""Seconds that a command or the start of a server may take."""
AGAIN = 5.0
"""Seconds for which a command is entered again while servers run: what one of them tells of the
others, as HAProxy of an agent, or a capture of a frame, it may tell a moment later."""
FRAGMENT = """
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend of_the_test
    bind 127.0.0.1:1
    {}
"""
AGENTS = """
backend agents
    server agent 127.0.0.1:9000 check
backend web
    server web 127.0.0.1:8000
"""
PRINTED = re.compile(r"^ *print\(.*\)  # (.*)$", re.MULTILINE)
"""What a line is said to print."""
SPOE_AGENT = """[of_the_test]
spoe-agent of_the_test
    messages {}
    timeout processing 1s
    use-backend agents
"""
SPOE = re.compile(r"^ *spoe-(agent|message|group) ", re.MULTILINE)
SECTION = re.compile(r"^(global|defaults|backend)\b", re.MULTILINE)
FRONTEND = re.compile(r"^(frontend|listen)\b", re.MULTILINE)


class Failed(Exception):
    """A block did not do what its page says."""


class Page:
    """What a page has made so far: its folder, its names in Python, its servers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / STATE
        """What a command leaves for the next one: the environment and the folder."""
        self.state.touch()
        self.names: dict[str, Any] = {"__name__": "page"}
        self.servers: list[subprocess.Popen[str]] = []
        self.loop = asyncio.new_event_loop()  # Its signals and sockets end with the process.
        sys.path.insert(0, str(folder))

    def run(self, block: Block) -> None:
        if block.program and shutil.which(block.program) is None:
            print(f"{block.program} is not installed")
        elif block.title:
            self.write(block)
        elif block.language == "python":
            self.type_in(block)
        elif block.language in ("console", "bash"):
            for command, output in commands(block):
                self.enter(command, output, "figures vary" in block.note)
        elif block.language == "haproxy":
            self.check_haproxy(block)
        elif block.language == "toml":
            tomllib.loads(block.text)
        else:
            raise Failed(f"a block of {block.language} without a title: nothing runs it")

    def write(self, block: Block) -> None:
        path = self.folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        if path.suffix == ".py" and "serve" not in path.stem and "test" not in path.stem:
            module = ".".join(Path(block.title).with_suffix("").parts)
            sys.modules.pop(module, None)
            importlib.invalidate_caches()
            importlib.import_module(module)

    def type_in(self, block: Block) -> None:
        """As in ``python -m asyncio``, so a page may have an ``await``."""
        lines = "\n" * block.line + block.text
        code = compile(lines, "page", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        with contextlib.redirect_stdout(io.StringIO()) as output:
            if code.co_flags & inspect.CO_COROUTINE:
                self.loop.run_until_complete(eval(code, self.names))
            else:
                exec(code, self.names)
        for line in PRINTED.findall(block.text):
            if not shown(line, output.getvalue()):
                raise Failed(f"prints no {line!r}, but\n{output.getvalue()}")

    def enter(self, command: str, expected: list[str], vary: bool) -> None:
        if SERVERS.match(command):
            self.serve(command)
            return
        deadline = time.monotonic() + (AGAIN if self.servers else 0.0)
        output = ""
        while True:
            done = self.finish(command)
            output += done.stdout
            missing = [line for line in expected if not shown(line, output, vary)]
            if not missing or time.monotonic() > deadline:
                break
            time.sleep(0.1)
        if missing:
            raise Failed(f"$ {command}\nshows no {missing[0]!r}, but\n{output}")
        if done.returncode and not expected:
            raise Failed(f"$ {command}\nhas status {done.returncode}:\n{done.stdout}")

    def finish(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in the environment and folder that the last one has left."""
        keep = f"{{ export -p; printf 'cd %q\\n' \"$PWD\"; }} >{self.state}"
        return subprocess.run(
            ["bash", "-c", f". {self.state}\n{command}\nstatus=$?\n{keep}\nexit $status"],
            cwd=self.folder, timeout=WAIT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def serve(self, command: str) -> None:
        """Start a server. If its address is in use, the page's earlier servers are stopped."""
        said = self.start(command)
        if said and "in use" in said:
            for server in self.servers:
                server.terminate()
                server.wait(WAIT)
            self.servers.clear()
            said = self.start(command)
        if said is not None:
            raise Failed(f"$ {command}\ndoes not listen:\n{said}")

    def start(self, command: str) -> str | None:
        """Start a server, and return None once it listens, or what it said instead."""
        listening = listeners()
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(
                ["bash", "-c", f". {self.state}\nexec {command}"], cwd=self.folder, text=True,
                stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            deadline = time.monotonic() + WAIT
            while process.poll() is None and time.monotonic() < deadline:
                if listeners() - listening or b"Capture started" in os.pread(log.fileno(), 1000, 0):
                    self.servers.append(process)
                    return None
                time.sleep(0.02)
            log.seek(0)
            return log.read()

    def check_haproxy(self, block: Block) -> None:
        """A whole file, or sections or rules out of one."""
        needed = re.match(r"haproxy ([\d.]+)", block.note)
        binary = haproxy_since(tuple(map(int, needed[1].split(".")))) if needed else "haproxy"
        if binary is None:
            return
        if SPOE.search(block.text):
            command, whole = "spop validate", spoe_file(block.text)
        else:
            command, whole = f"{binary} -c -f", haproxy_file(block.text)
        (self.folder / "checked.cfg").write_text(whole)
        words = [*command.split(), "checked.cfg"]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise Failed(f"{command} refuses\n{whole}\n{done.stdout}")


def haproxy_since(needed: tuple[int, ...]) -> str | None:
    """A HAProxy of this version or a later one: the installed one, or one that the tests have."""
    others = os.environ.get("SPOP_TEST_HAPROXY", "").split(os.pathsep)
    found = [each for each in (find_haproxy(), *others) if each]
    return next((each for each in found if version(each)[:2] >= needed), None)


def haproxy_file(text: str) -> str:
    if FRONTEND.search(text):
        return text
    if SECTION.search(text):
        return FRAGMENT.format("") + text
    return FRAGMENT.format(text.replace("\n", "\n    ")) + AGENTS


def spoe_file(text: str) -> str:
    if "spoe-agent " in text:
        return text
    names = " ".join(re.findall(r"^spoe-message (\S+)", text, re.MULTILINE))
    return SPOE_AGENT.format(names) + text


def commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """The commands behind ``$``, each with the lines that it shows; of a script, itself."""
    if block.language == "bash":
        yield block.text, []
        return
    command, output = "", list[str]()
    for line in block.text.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, output
            command, output = line[2:], []
        elif command.endswith("\\"):
            command += "\n" + line
        elif line.strip() not in ("", "…"):
            output.append(line)
    if command:
        yield command, output


def shown(line: str, output: str, vary: bool = False) -> bool:
    """Whether a line is in an output. `…` is any text, and numbers differ where they `vary`."""
    pattern = re.escape(" ".join(line.split())).replace("…", ".*").replace("\\ ", " *")
    if vary:
        pattern = re.sub(r"\d+(?:(?:,|\\\.)\d+)*", r"[\\d.,]+", pattern).replace("µs", "[µm]?s")
    return any(re.fullmatch(pattern, " ".join(each.split())) for each in output.splitlines())


def listeners() -> set[str]:
    """The inodes of the sockets of this network that listen."""
    found = set()
    for name in ("tcp", "tcp6"):
        rows = [row.split() for row in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
        found |= {row[9] for row in rows if row[3] == "0A"}
    rows = [row.split() for row in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return found | {row[6] for row in rows if row[3] == "00010000"}


def bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        up = struct.pack("16sH14x", b"lo", 0x1 | 0x40)
        fcntl.ioctl(sock, 0x8914, up)  # SIOCSIFFLAGS


def lay_out(folder: Path, page: Path) -> None:
    """What a reader has before the page begins: one who installs has a checkout."""
    for name in ("examples", "contrib"):
        shutil.copytree(ROOT / name, folder / name)
    if INSTALLS.search(page.read_text()):
        built = shutil.ignore_patterns("*.so", "*.c", "__pycache__")
        shutil.copytree(ROOT / "spop", folder / "spop", ignore=built)
        for name in CHECKOUT:
            shutil.copy(ROOT / name, folder)
        os.environ |= INSTALLING
        for each in filter(os.path.isdir, SYSTEM_FOLDERS):
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", each], check=True)
        os.environ["SYSTEMD_OFFLINE"] = "1"  # There is none among the processes of the page.


def environment() -> None:
    os.environ.pop("SPOP_PURE", None)
    programs = Path(sys.executable).parent
    os.environ["PATH"] = f"{programs}:{os.environ['PATH']}:/usr/sbin"
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True


def main(page: Path) -> int:
    bring_up_loopback()
    environment()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        lay_out(Path(folder), page)
        there = Page(Path(folder))
        for block in blocks(page):
            if block.example or not block.language or block.language == "text":
                continue
            try:
                there.run(block)
            except BaseException as error:
                said = error if isinstance(error, Failed) else traceback.format_exc()
                print(f"{page}:{block.line}: {said}")
                return 1
    return 0


if __name__ == "__main__":
    status = main(Path(sys.argv[1]).resolve())
    sys.stdout.flush()
    os._exit(status)  # Whatever threads a block has left.
