"""The server answers with the dataset's numbers, and to nobody whom it should not."""

import asyncio
import io
import json
import re
import signal
import subprocess
import sys
import urllib.request
from urllib.parse import urlencode

import ase.io
import numpy as np
import pytest
from pymatgen.core import Structure

import trajmill.explorer.server as server
from servers.explorer import make_samples, serving
from trajmill.dataset import Dataset
from trajmill.explorer import ExploreError
from trajmill.explorer.app import ASSETS, PAGES, STATIC
from trajmill.explorer.guard import HEADERS, Guard, is_loopback


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_samples(tmp_path_factory.mktemp("samples") / "store")


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def served(store, _cache):
    with serving(store) as running:
        yield running


@pytest.fixture(scope="module")
def secret(store, _cache):
    with serving(store, token=True) as running:
        yield running


@pytest.fixture(scope="module")
def trajectories(store):
    return {t.trajectory_id: t for t in Dataset(store).trajectories()}


def asked(served, path, **parameters):
    answer = served.ask(f"{path}?{urlencode(parameters)}")
    return answer.status, json.loads(answer.content)


class TestAnswers:
    def test_pages_and_all_that_they_need(self, served):
        for path in PAGES:
            answer = served.ask(path)
            assert answer.status == 200
            for name in re.findall(r'(?:src|href)="(/[^"]*)"', answer.content.decode()):
                assert served.ask(name).status == 200, name

    def test_dataset(self, served, trajectories, store):
        status, found = asked(served, "/api/dataset")
        assert status == 200
        assert found["trajectories"] == len(trajectories)
        assert found["frames"] == sum(map(len, trajectories.values()))
        assert found["name"] == str(store)

    @pytest.mark.parametrize("name", ["mp-1-pbe", "mp-2-r2scan", "mp-4-pbesol", "oqmd-5-pbe", "agm000000003-scan"])
    def test_a_trajectory_has_the_numbers_of_the_dataset(self, served, trajectories, name):
        status, found = asked(served, "/api/trajectory", id=name)
        t, frames = trajectories[name], found["frames"]
        assert status == 200
        assert found["symbols"] == t.symbols
        assert (found["functional"], found["license"], found["notes"]) == (t.functional, t.license, list(t.notes))
        for key in ("relaxation_step", "energy", "positions", "forces", "lattice", "space_group"):
            np.testing.assert_array_equal(frames[key], getattr(t, key))
        np.testing.assert_allclose(frames["energy_per_atom"], t.energy / t.n_atoms)
        np.testing.assert_allclose(frames["max_force"], np.linalg.norm(t.forces, axis=2).max(axis=1))
        np.testing.assert_allclose(frames["volume"], np.abs(np.linalg.det(t.lattice)))
        pressure = -np.trace(t.stress, axis1=1, axis2=2) / 3 * 160.2176621
        np.testing.assert_allclose(np.array(frames["pressure"], float), pressure, rtol=1e-8)

    def test_what_is_unknown_is_null(self, served):
        text = served.ask("/api/trajectory?id=oqmd-5-pbe").content
        assert b"NaN" not in text
        assert json.loads(text)["frames"]["pressure"] == [None] * 4

    def test_wrong_parameters_say_which(self, served):
        status, found = asked(served, "/api/trajectories", filter="nsitez < 3")
        assert (status, found["parameter"]) == (400, "filter")
        assert "did you mean nsites?" in found["error"]

    @pytest.mark.parametrize("path", ["/api/trajectory", "/download"])
    @pytest.mark.parametrize("name", ["", "mp-1", "../mp-1-pbe", "' OR 1=1 --", "%", "x" * 5000, "mp-1-pbe\0"])
    def test_what_is_not_there(self, served, path, name):
        assert asked(served, path, id=name, format="json") == (404, {"error": "there is no such trajectory"})

    def test_a_browser_that_has_an_asset_is_told_so(self, served):
        first = served.ask("/static/home.js")
        again = served.ask("/static/home.js", **{"If-None-Match": first.headers["etag"]})
        assert (again.status, again.content) == (304, b"")


class TestDownloads:
    def test_extxyz(self, served, trajectories):
        answer = served.ask("/download?id=mp-1-pbe&format=extxyz")
        assert answer.headers["content-disposition"] == 'attachment; filename="mp-1-pbe.extxyz"'
        frames = ase.io.read(io.StringIO(answer.content.decode()), ":", format="extxyz")
        t = trajectories["mp-1-pbe"]
        np.testing.assert_allclose([f.get_potential_energy() for f in frames], t.energy)
        np.testing.assert_allclose([f.get_forces() for f in frames], t.forces, atol=1e-8)
        np.testing.assert_allclose([f.get_stress(voigt=False) for f in frames], t.stress, atol=1e-8)

    @pytest.mark.parametrize("frame", [0, 2])
    def test_cif_of_a_frame(self, served, trajectories, frame):
        answer = served.ask(f"/download?id=oqmd-5-pbe&format=cif&frame={frame}")
        step = [0, 2, 5, 6][frame]
        assert answer.headers["content-disposition"] == f'attachment; filename="oqmd-5-pbe-{step}.cif"'
        found = Structure.from_str(answer.content.decode(), fmt="cif")
        expected = trajectories["oqmd-5-pbe"]
        assert [site.specie.symbol for site in found] == expected.symbols
        assert found.volume == pytest.approx(abs(np.linalg.det(expected.lattice[frame])))
        fractions = expected.positions[frame] @ np.linalg.inv(expected.lattice[frame])
        np.testing.assert_allclose((found.frac_coords - fractions + 0.5) % 1, 0.5, atol=1e-5)

    def test_json_is_what_the_page_shows(self, served):
        answer = served.ask("/download?id=mp-2-r2scan&format=json")
        assert json.loads(answer.content) == asked(served, "/api/trajectory", id="mp-2-r2scan")[1]

    @pytest.mark.parametrize(
        ("parameters", "said"),
        [("format=exe", "format is one of"), ("", "format is one of"), ("format=cif&frame=3", "from 0 to 2"),
         ("format=cif&frame=-1", "from 0 to 2"), ("format=cif&frame=1e9", "from 0 to 2")],
    )  # fmt: skip
    def test_what_makes_no_sense(self, served, parameters, said):
        answer = served.ask(f"/download?id=mp-1-pbe&{parameters}")
        assert answer.status == 400
        assert said in json.loads(answer.content)["error"]


INSIDE = "make_app"  # a word of app.py, which lies beside the folder that is served


class TestSafety:
    @pytest.mark.parametrize(
        "path",
        [
            "/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static/vendor/../../app.py",
            "/static//etc/passwd", "/static/vendor/..%5c..%5capp.py", "/../app.py", "/static/", "/static",
            "/static/style.css%00.js", "/static/index.html/../../app.py", "//etc/passwd", "/etc/passwd",
            "/download?id=../../etc/passwd&format=json", "/api/trajectory?id=/etc/passwd",
        ],
    )  # fmt: skip
    def test_no_path_leads_to_other_files(self, served, path):
        answer = served.ask(path)
        assert answer.status in (400, 404)
        assert INSIDE not in answer.content.decode()
        assert "root:" not in answer.content.decode()

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"])
    def test_only_get(self, served, method):
        answer = served.ask("/api/dataset", method)
        assert answer.status == 405
        assert answer.headers["allow"] == "GET"

    @pytest.mark.parametrize(
        "parameters",
        [
            {"source": "x' OR 1=1 --"}, {"source": "mp'; DROP TABLE trajectories; --"}, {"functional": '" OR "1"="1'},
            {"filter": 'source = "x\' OR 1=1 --"'}, {"filter": 'immutable_id CONTAINS "\'; DROP TABLE spans; --"'},
        ],
    )  # fmt: skip
    def test_sql_is_only_text(self, served, parameters):
        assert asked(served, "/api/trajectories", **parameters)[1]["total"] == 0
        assert asked(served, "/api/trajectories")[1]["total"] == 65

    @pytest.mark.parametrize(
        "parameters",
        [
            {"sort": "number; DROP TABLE trajectories"}, {"page": "0; DROP TABLE trajectories"}, {"include": "Fe')--"},
            {"filter": "1=1; DROP TABLE trajectories"}, {"filter": "nsites < 3 UNION SELECT 1"}, {"sql": "SELECT 1"},
            {"filter": "read_csv('/etc/passwd') IS KNOWN"}, {"filter": 'elements LENGTH 1); DROP TABLE spans; --"'},
        ],
    )  # fmt: skip
    def test_and_nothing_else_is_taken(self, served, parameters):
        assert asked(served, "/api/trajectories", **parameters)[0] == 400
        assert asked(served, "/api/trajectories")[1]["total"] == 65

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("localhost:{}", 200), ("127.0.0.1:{}", 200), ("[::1]:{}", 200), ("localhost", 200), ("LOCALHOST:1", 200),
            ("evil.example:{}", 421), ("127.0.0.1.evil.example:{}", 421), ("localhost.evil.example", 421), ("", 421),
            ("192.168.0.7:{}", 421), ("evil.example@localhost", 421), ("[::1].evil.example", 421),
        ],
    )  # fmt: skip
    def test_a_name_that_was_made_to_lead_here_is_refused(self, served, host, status):
        assert served.ask("/api/dataset", Host=host.format(served.explorer.port)).status == status

    @pytest.mark.parametrize(
        "path", ["/", "/nothing", "/api/trajectories?filter=x", "/download?id=mp-1-pbe&format=cif"]
    )
    def test_every_answer_keeps_other_pages_out(self, served, path):
        for answer in (served.ask(path), served.ask(path, "POST"), served.ask(path, Host="evil.example")):
            assert HEADERS.items() <= answer.headers.items()
            assert "access-control-allow-origin" not in answer.headers
            assert "server" not in answer.headers

    def test_scripts_and_styles_come_from_here_only(self):
        policy = HEADERS["content-security-policy"]
        assert "unsafe" not in policy
        assert "http" not in policy
        for file in STATIC.glob("*.*"):
            assert not re.search(
                r"(?:https?:)?//[a-z]", file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
            )
            if file.suffix == ".html":
                assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", file.read_text("utf-8"))

    def test_the_list_of_assets_is_the_folder(self):
        there = {str(file.relative_to(STATIC)) for file in STATIC.rglob("*") if file.is_file()}
        assert there == {*ASSETS, *PAGES.values()}
        licences = (STATIC / "vendor/LICENSES").read_text("utf-8")
        assert all(file.name in licences for file in (STATIC / "vendor").glob("*.*"))

    def test_a_download_is_named_without_surprises(self):
        from trajmill.explorer.reading import file_name

        assert file_name('../a "b"\r\nSet-Cookie: x/ü', "cif", 3) == "_a_b_Set-Cookie_x_-3.cif"


class TestToken:
    def test_without_it_nothing_is_said(self, secret, store):
        for path in ("/", "/api/dataset", "/static/home.js", "/download?id=mp-1-pbe&format=json", "/nothing"):
            for answer in (secret.ask(path), secret.ask(path + ("&" if "?" in path else "?") + "token=wrong")):
                assert answer.status == 401
                assert str(store).encode() not in answer.content
                assert b"mp-1" not in answer.content

    def test_once_in_the_address_then_in_a_cookie(self, secret):
        token = secret.url.partition("token=")[2]
        assert len(token) >= 32
        answer = secret.ask(f"/?token={token}")
        assert (answer.status, answer.headers["location"]) == (303, "/")
        assert answer.headers["set-cookie"].endswith("; Path=/; HttpOnly; SameSite=Strict")
        cookie = answer.headers["set-cookie"].partition(";")[0]
        assert secret.ask("/api/dataset", Cookie=f"other=1; {cookie}").status == 200
        for wrong in (cookie[:-1], cookie + "x", "trajmill-1=" + token, cookie.partition("=")[0] + "="):
            assert secret.ask("/api/dataset", Cookie=wrong).status == 401

    def test_what_else_was_asked_for_stays(self, secret):
        token = secret.url.partition("token=")[2]
        answer = secret.ask(f"/trajectory?id=mp-1-pbe&token={token}")
        assert answer.headers["location"] == "/trajectory?id=mp-1-pbe"
        elsewhere = secret.ask(f"//evil.example/?token={token}")
        assert elsewhere.headers.get("location", "/").startswith("/")
        assert "evil" not in elsewhere.headers["location"]

    def test_it_is_another_each_time(self, store):
        tokens = set()
        for _ in range(2):
            with serving(store, token=True) as running:
                tokens.add(running.url)
        assert len({url.partition("token=")[2] for url in tokens}) == 2

    @pytest.mark.parametrize(
        ("host", "alone"),
        [("127.0.0.1", True), ("127.0.0.7", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
         ("::", False), ("192.168.1.5", False), ("localhost.evil.example", False), ("", False)],
    )  # fmt: skip
    def test_other_machines_need_one(self, host, alone):
        assert is_loopback(host) == alone

    @pytest.mark.parametrize(
        ("bound", "host", "passes"),
        [
            ("0.0.0.0", "192.168.1.5:80", True), ("0.0.0.0", "evil.example", False), ("::", "[fe80::1]:80", True),
            ("192.168.1.5", "192.168.1.5", True), ("192.168.1.5", "192.168.1.6", False), ("desk", "DESK:80", True),
        ],
    )  # fmt: skip
    def test_names_of_a_server_that_others_can_reach(self, bound, host, passes):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        said = []

        async def send(message):
            said.append(message)

        scope = {"type": "http", "method": "GET", "headers": [(b"host", host.encode())], "server": ("", 80)}
        scope |= {"path": "/", "query_string": b""}
        asyncio.run(Guard(app, bound)(scope, None, send))
        assert (said[0]["status"] == 200) == passes


class TestTheCommand:
    def started(self, store, *options):
        command = [sys.executable, "-m", "trajmill.cli", "explore", str(store), "--port", "0", "--no-open", *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @pytest.mark.parametrize("options", [(), ("--token",)])
    def test_it_prints_where_and_stops_with_ctrl_c(self, store, options):
        with self.started(store, *options) as process:
            try:
                url = process.stdout.readline().strip()
                assert process.stdout.readline() == "Ctrl-C stops it\n"
                assert ("token=" in url) == bool(options)
                opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
                with opener.open(url, timeout=20) as answer:
                    assert b"trajmill explorer" in answer.read()
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=30)
            finally:
                process.kill()
        assert process.returncode == 0
        assert (out, err) == ("", "")

    def test_a_port_that_is_taken(self, store, served):
        with pytest.raises(ExploreError, match=r"cannot be served at .*; --port 0 takes a free one"):
            server.Explorer(str(store), port=served.explorer.port)

    def test_no_dataset(self, tmp_path):
        with self.started(tmp_path / "nowhere") as process:
            _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        assert err.count("\n") == 1

    @pytest.mark.parametrize(
        ("environment", "tty", "opened"),
        [({"DISPLAY": ":0"}, True, True), ({}, True, False), ({"DISPLAY": ":0"}, False, False),
         ({"DISPLAY": ":0", "SSH_CONNECTION": "a"}, True, False), ({"WAYLAND_DISPLAY": "w"}, True, True)],
    )  # fmt: skip
    def test_a_browser_opens_where_somebody_sees_it(self, monkeypatch, environment, tty, opened):
        for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "platform", "linux")
        monkeypatch.setattr(sys.stdout, "isatty", lambda: tty, raising=False)
        urls = []

        class Now:
            def __init__(self, target, args, daemon):
                self.start = lambda: target(*args)

        monkeypatch.setattr(server.threading, "Thread", Now)
        monkeypatch.setattr(server.webbrowser, "open", urls.append)
        server.open_browser("http://x/")
        assert urls == (["http://x/"] if opened else [])
