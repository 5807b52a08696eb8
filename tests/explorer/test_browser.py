"""The explorer as a person uses it, in a real browser."""

import io
import json
import os
import time

import ase.io
import numpy as np
import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from servers.chromium import MISSING, browsing
from servers.explorer import make_samples, serving
from trajmill.dataset import Dataset

pytestmark = pytest.mark.skipif(bool(MISSING) and not os.environ.get("CI"), reason=MISSING or "there is one")

WAIT = 20


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_samples(tmp_path_factory.mktemp("samples") / "store")


@pytest.fixture(scope="module")
def served(store, tmp_path_factory):
    assert not MISSING, MISSING
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with serving(store) as running:
            yield running


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def driver(served, downloads):
    with browsing(downloads=downloads) as opened:
        yield opened


@pytest.fixture(scope="module")
def trajectories(store):
    return {t.trajectory_id: t for t in Dataset(store).trajectories()}


class Page:
    """What a person sees and does."""

    def __init__(self, driver, served):
        self.driver, self.served = driver, served

    def open(self, path="/"):
        self.driver.get(self.served.base + path)
        return self

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector):
        return self.find(selector).text

    def until(self, condition, what):
        return WebDriverWait(self.driver, WAIT, 0.05).until(lambda _: condition(), f"never: {what}")

    def total(self, n):
        """Wait until so many trajectories are found."""
        says = f"of {n}" if n else "0 match"
        self.until(lambda: self.text("#status").endswith(says) and not self.busy, f"{n} trajectories")

    @property
    def busy(self):
        return self.find("#results").get_attribute("aria-busy") is not None

    @property
    def ids(self):
        return [cell.text for cell in self.all("#rows .id")]

    def element(self, symbol):
        return self.find(f'[data-symbol="{symbol}"]')

    def shown(self, frame):
        self.until(lambda: self.find("#structure").get_attribute("data-frame") == str(frame), f"frame {frame}")

    def readout(self, chart):
        return float(self.text(f'[data-chart="{chart}"] output').replace("\N{MINUS SIGN}", "-"))

    def complaints(self):
        """Errors of the browser: scripts that failed, what its policy refused, what was not there."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture
def page(driver, served):
    page = Page(driver, served)
    yield page
    assert page.complaints() == []


class TestLooking:
    def test_all_of_them_first(self, page):
        page.open().total(65)
        assert len(page.ids) == 50
        assert page.text("#counts").startswith("65 trajectories, ")
        assert page.element("Fe").text.split() == ["Fe", "2"]
        page.find("#next").click()
        page.until(lambda: page.text("#status") == "51\N{EN DASH}65 of 65", "the second page")
        assert not page.find("#next").is_enabled()

    def test_elements_in_and_out(self, page):
        page.open().total(65)
        page.element("O").click()
        page.total(34)
        page.element("Al").click()
        page.element("Al").click()
        page.total(4)
        assert page.element("O").get_attribute("aria-pressed") == "true"
        assert page.element("Al").get_attribute("aria-label") == "Aluminium, ruled out, 0 trajectories"
        assert page.text("#chosen") == "with O, without Al"
        assert {*page.ids} == {"mp-2-r2scan", "mp-3-pbe", "mp-4-pbesol", "oqmd-5-pbe"}
        page.find("#clear-elements").click()
        page.total(65)

    def test_without_a_mouse(self, page, driver):
        page.open().total(65)
        page.element("H").send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
        assert driver.switch_to.active_element.get_attribute("data-symbol") == "Na"
        driver.switch_to.active_element.send_keys(Keys.ENTER)
        page.total(1)
        driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
        assert driver.switch_to.active_element.get_attribute("data-symbol") == "Al"
        assert driver.execute_script("return document.querySelectorAll('.element[tabindex=\"0\"]').length") == 1
        driver.switch_to.active_element.send_keys(Keys.TAB)
        assert driver.switch_to.active_element.get_attribute("id") == "only"

    def test_all_filters_together(self, page):
        page.open().total(65)
        Select(page.find("#source")).select_by_value("alexandria")
        page.total(60)
        Select(page.find("#functional")).select_by_value("scan")
        page.total(30)
        Select(page.find("#system")).select_by_value("cubic")
        page.find("#max_sites").send_keys("4")
        page.total(0)
        assert page.find("#nothing").is_displayed()
        page.find('button[type="reset"]').click()
        page.total(65)

    def test_a_filter_and_what_is_wrong_with_it(self, page):
        page.open().total(65)
        box = page.find("#filter")
        box.send_keys('nsitez = 3 AND elements HAS "Fe"')
        page.until(lambda: "did you mean nsites?" in page.text("#filter-error"), "what is wrong")
        assert box.get_attribute("aria-invalid") is not None
        assert len(page.ids) == 50, "what was found before stays"
        page.complaints()  # the browser says that the server refused it
        box.clear()
        box.send_keys('nsites = 3 AND elements HAS "Fe"')
        page.total(2)
        assert page.text("#filter-error") == ""

    def test_sorted(self, page, trajectories):
        page.open("/?include=O").total(34)
        page.find('[data-sort="frames"] button').click()
        page.until(lambda: page.find('[data-sort="frames"]').get_attribute("aria-sort") == "ascending", "sorted")
        assert page.ids[0] == "mp-4-pbesol"
        page.find('[data-sort="frames"] button').click()
        page.until(lambda: page.find('[data-sort="frames"]').get_attribute("aria-sort") == "descending", "turned")
        lengths = [len(trajectories[i]) for i in page.ids]
        assert lengths == sorted(lengths, reverse=True)

    def test_there_and_back_again(self, page, driver):
        page.open("/?include=Fe&filter=nsites+%3D+3").total(2)
        page.find("#rows a").click()
        page.shown(0)
        page.find("#back-link").click()
        page.total(2)
        assert page.element("Fe").get_attribute("aria-pressed") == "true"
        assert page.find("#filter").get_attribute("value") == "nsites = 3"
        driver.back()
        page.shown(0)


def drawn(page):
    """Colors of the structure as it is on the screen."""
    from PIL import Image

    image = Image.open(io.BytesIO(page.find("#structure").screenshot_as_png)).convert("RGB")
    return {color: n for n, color in image.getcolors(1 << 24)}


class TestATrajectory:
    def test_its_numbers(self, page, trajectories):
        page.open("/trajectory?id=mp-1-pbe").shown(0)
        t = trajectories["mp-1-pbe"]
        assert page.text("h1") == "ClNa"
        assert page.readout("energy_per_atom") == pytest.approx(t.energy[0] / 2, abs=1e-5)
        assert page.readout("max_force") == pytest.approx(np.linalg.norm(t.forces[0], axis=1).max(), abs=1e-4)
        assert page.readout("pressure") == pytest.approx(-np.trace(t.stress[0]) / 3 * 160.2176621, abs=1e-3)
        assert page.readout("volume") == pytest.approx(abs(np.linalg.det(t.lattice[0])), abs=1e-3)
        facts = page.text("#facts")
        assert "P1 (1) → Fm-3m (225)" in facts
        assert "cut-off was inferred" in facts
        assert "BY-C" in facts
        assert len(page.all(".plot canvas")) == 4

    def test_it_is_drawn_and_moves(self, page):
        page.open("/trajectory?id=mp-2-r2scan").shown(0)
        page.until(lambda: len(drawn(page)) > 50, "shaded balls have many colors")
        first = drawn(page)
        assert first[(255, 255, 255)] > sum(first.values()) / 3
        page.find("#frame").send_keys(Keys.ARROW_RIGHT)
        page.shown(1)
        page.until(lambda: drawn(page) != first, "another picture")

    def test_it_plays_to_its_end(self, page, trajectories):
        page.open("/trajectory?id=oqmd-5-pbe").shown(0)
        t = trajectories["oqmd-5-pbe"]
        page.find("#play").click()
        assert page.text("#play") == "Pause"
        page.shown(3)
        page.until(lambda: page.text("#play") == "Play", "stopped")
        assert page.text("#where") == "step 6 · 4/4"
        assert page.find("#frame").get_attribute("value") == "3"
        assert page.readout("energy_per_atom") == pytest.approx(t.energy[3] / 2, abs=1e-5)
        assert page.text('[data-chart="pressure"] .missing') == "unknown: no stress"
        assert page.text('[data-chart="pressure"] output') == "\N{EN DASH}"

    def test_it_waits_when_told_to(self, page):
        page.open("/trajectory?id=agm000000003-scan").shown(0)
        page.find("#play").click()
        page.find("#play").click()
        assert page.text("#play") == "Play"
        frame = page.find("#structure").get_attribute("data-frame")
        time.sleep(0.8)
        assert page.find("#structure").get_attribute("data-frame") == frame

    def test_keys_move_it(self, page):
        page.open("/trajectory?id=mp-1-pbe").shown(0)
        body = page.find("body")
        body.send_keys(Keys.ARROW_RIGHT)
        page.shown(1)
        body.send_keys(Keys.ARROW_LEFT)
        page.shown(0)
        body.send_keys(Keys.SPACE)
        page.shown(2)

    def test_a_click_on_a_chart_chooses_a_frame(self, page, driver):
        page.open("/trajectory?id=mp-1-pbe").shown(0)
        over = page.find('[data-chart="volume"] .u-over')
        ActionChains(driver).move_to_element_with_offset(over, over.size["width"] // 2 - 3, 0).click().perform()
        page.shown(2)

    def test_forces_are_arrows(self, page):
        page.open("/trajectory?id=mp-1-pbe").shown(0)
        before = drawn(page)
        page.find("#forces").click()
        page.until(lambda: drawn(page) != before, "arrows")

    def test_one_that_is_not_there(self, page):
        page.open("/trajectory?id=nothing")
        page.until(lambda: page.text("#error") == "there is no such trajectory", "a word about it")
        page.complaints()  # the browser says that the server refused it

    def test_downloads(self, page, trajectories, downloads):
        page.open("/trajectory?id=mp-1-pbe").shown(0)
        page.find("#frame").send_keys(Keys.END)
        page.shown(2)
        for name in ("extxyz", "cif", "json"):
            page.find(f"#{name}").click()
        files = {name: downloads / f"mp-1-pbe{name}" for name in (".extxyz", "-2.cif", ".json")}
        page.until(lambda: all(file.exists() and file.stat().st_size for file in files.values()), "files")
        t = trajectories["mp-1-pbe"]
        frames = ase.io.read(files[".extxyz"], ":")
        np.testing.assert_allclose([f.get_potential_energy() for f in frames], t.energy)
        np.testing.assert_allclose(ase.io.read(files["-2.cif"]).get_volume(), abs(np.linalg.det(t.lattice[2])))
        np.testing.assert_array_equal(json.loads(files[".json"].read_text())["frames"]["forces"], t.forces)


class TestEverybody:
    @pytest.mark.parametrize("path", ["/", "/trajectory?id=mp-1-pbe"])
    def test_nothing_comes_from_elsewhere(self, page, driver, served, path):
        page.open(path)
        page.until(lambda: page.all("#rows tr, [data-frame]"), "content")
        names = driver.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
        assert names
        assert all(name.startswith(served.base) for name in names)

    @pytest.mark.parametrize("dark", [False, True])
    def test_on_a_phone(self, served, dark):
        with browsing(375, 812, dark=dark, still=True) as driver:
            page = Page(driver, served).open()
            page.total(65)
            fits = "return document.documentElement.scrollWidth <= innerWidth"
            assert driver.execute_script(fits)
            assert not page.find("#source").is_displayed(), "filters are folded"
            page.find("#fields summary").click()
            Select(page.find("#source")).select_by_value("oqmd")
            page.total(1)
            small = (
                "return [...document.querySelectorAll('button')].filter((b) => b.offsetParent && b.offsetHeight < 24)"
            )
            assert driver.execute_script(small) == []
            page.find("#rows a").click()
            page.shown(0)
            assert driver.execute_script(fits)
            color = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, color[4:-1].split(","))) < 200) == dark
            time.sleep(0.7)
            assert page.find("#structure").get_attribute("data-frame") == "0", "nothing plays by itself"
            assert page.complaints() == []

    def test_with_a_token(self, store, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with serving(store, token=True) as served, browsing() as driver:
            page = Page(driver, served)
            driver.get(served.url)
            page.total(65)
            assert "token" not in driver.current_url
            page.find("#rows a").click()
            page.shown(0)
            assert driver.execute_script("return document.cookie") == "", "no script can read it"
