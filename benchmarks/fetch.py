"""What fetching costs beside curl: the same files from the same loopback server, CPU time, wall time and peak memory.

    python benchmarks/fetch.py [--files 8] [--megabytes 128] [--repeats 5] [--save]

curl alone writes bytes; `curl, sha256sum` also knows their digests afterwards, as trajmill does. The network is no
limit here, so this is the most trajmill can do, and what of a core a real connection needs. Of several runs, in turn,
the one with the least CPU time counts.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import measuring

CONNECTIONS = 4
SERVER = """
import functools, http.server, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=sys.argv[1]))
print(server.server_port, flush=True)
server.serve_forever()
"""
FETCH = """
import sys
from pathlib import Path
from trajmill.fetcher import fetch
from trajmill.recipe import load
settings = ["fetch.alexandria.layout=old", "fetch.alexandria.sets=['pbe']", f"fetch.alexandria.url='{sys.argv[1]}'"]
fetch("alexandria", Path(sys.argv[2]), load(None, settings))
"""


def make_files(web: Path, n_files: int, megabytes: int) -> list[str]:
    """Write files that begin as bz2 does, and the page that lists them."""
    folder = web / "pbe" / "geo_opt_paths"
    folder.mkdir(parents=True)
    names = [f"alex_go_aaa_{i:03d}.json.bz2" for i in range(n_files)]
    for name in names:
        with (folder / name).open("wb") as file:
            file.write(b"BZh9")
            for _ in range(megabytes):
                file.write(os.urandom(1 << 20))
    size = (megabytes << 20) + 4
    lines = (f'<a href="{name}">{name}</a>   02-Jul-2025 14:05   {size}' for name in names)
    (folder / "index.html").write_text("<pre>" + "\n".join(lines) + "</pre>")
    return names


@contextmanager
def server(web: Path) -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(web)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/"
    finally:
        process.kill()
        process.wait()


def measure(command: list[str], cwd: Path) -> dict[str, float]:
    """Run a command; children of children count too."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, *(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmHWM")))
        except (OSError, TypeError):
            pass
        time.sleep(0.02)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        sys.exit(f"{command[0]} failed")
    cpu = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    return {"wall_s": round(time.perf_counter() - begin, 2), "cpu_s": round(cpu, 2), "peak_mb": round(peak / 1024)}


def main() -> None:
    measuring.tidy_when_ended()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="keep the results for the documentation")
    arguments = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        web, raw, plain = (Path(folder, name) for name in ("web", "raw", "curl"))
        names = make_files(web, arguments.files, arguments.megabytes)
        with server(web) as url:
            addresses = " ".join(f"-O {url}pbe/geo_opt_paths/{name}" for name in names)
            curl = f"curl -sfZ --no-progress-meter --parallel-max {CONNECTIONS} {addresses}"
            fetch = [sys.executable, "-c", FETCH, url, str(raw)]
            commands = {
                "trajmill": fetch,
                "trajmill, nothing new": fetch,
                "curl": ["sh", "-c", curl],
                "curl, sha256sum": ["sh", "-c", f"{curl} && sha256sum *"],
            }
            for _ in range(arguments.repeats):
                shutil.rmtree(raw, ignore_errors=True)
                for name, command in commands.items():
                    shutil.rmtree(plain, ignore_errors=True)
                    plain.mkdir()
                    result = measure(command, plain)
                    results[name] = min(result, results.get(name, result), key=lambda r: r["cpu_s"])
    gigabytes = arguments.files * arguments.megabytes * (1 << 20) / 1e9
    for name, result in results.items():
        print(f"{name:24} {result['wall_s']:7.2f} s, {result['cpu_s']:6.2f} CPU s, peak {result['peak_mb']:4.0f} MB")
    ratio = results["trajmill"]["cpu_s"] / results["curl, sha256sum"]["cpu_s"]
    print(f"{gigabytes:.2f} GB in {arguments.files} files; CPU {ratio:.2f} times that of curl and sha256sum")
    if arguments.save:
        results_and_size = {"gigabytes": round(gigabytes, 3), "files": arguments.files, "ways": results}
        measuring.save("fetch", results_and_size)


if __name__ == "__main__":
    main()
