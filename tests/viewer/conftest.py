"""A real Chromium, and the viewer serving two small runs to it."""

import contextlib
import shutil
import threading
import time
from types import SimpleNamespace

import pytest
from viewer_runs import GOOD, HOSTILE, hack, row, write_run

WAIT_S = 30  # for a machine that has much else to do
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--window-size=1400,900")  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield Page(driver)
    driver.quit()


class Page:
    """A few words over selenium."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, url):
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get(url)
        self.until(lambda: self.count("section.list li, .message.empty, .message.error") > 0)

    def open_at(self, url, css):
        """Open, and wait for `css`: the page follows an index that may not know a new file yet."""
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get(url)
        self.until(lambda: self.count(css) > 0, css)

    def all(self, css):
        return self.driver.find_elements("css selector", css)

    def count(self, css):
        return len(self.all(css))

    def text(self, css):
        return self.driver.execute_script("return document.querySelector(arguments[0])?.textContent ?? ''", css)

    def total(self):
        """Of how many rollouts the list is."""
        return self.text(".pager .range").rpartition(" of ")[2]

    def texts(self, css):
        return self.driver.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", css
        )

    def click(self, css):
        self.until(lambda: self.count(css))
        self.driver.execute_script("document.querySelector(arguments[0]).click()", css)

    def keys(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def hash(self):
        return self.driver.execute_script("return location.hash")

    def until(self, true, what=""):
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):  # an element may be replaced while it is looked at
                if true():
                    return
            time.sleep(0.05)
        raise AssertionError(f"not within {WAIT_S} s: {what}; the page says {self.text('#app')[:800]!r}")

    def complaints(self):
        return [e for e in self.driver.get_log("browser") if e["level"] == "SEVERE"]


def tokenizer_folder(path):
    """A model directory whose tokenizer has one token a byte."""
    from test_viewer_text import byte_tokenizer

    path.mkdir()
    made = byte_tokenizer()
    made.save(str(path / "tokenizer.json"))
    return made


def with_tokens(tokenizer, made):
    ids = [*tokenizer.encode(made["text"]).ids, 256]
    return made | {"token_ids": ids, "logprobs": [-0.001, -0.05, -0.4, -1.5, -3.0, -6.0][: len(ids)] + [-0.001] * (len(ids) - 6),
                   "prompt_ids": tokenizer.encode("PROBLEM: é " + HOSTILE).ids}  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Two runs of 130 rollouts over HTTP; `.root`, `.url`."""
    import uvicorn

    from common.ports import free_port
    from experiments.viewer.app import build_app
    from experiments.viewer.index import Indexer
    from experiments.viewer.serve import scanning

    root = tmp_path_factory.mktemp("runs")
    tokenizer = tokenizer_folder(root.parent / f"{root.name}-model")
    evil = hack(
        9,
        text=f"```python\n{HOSTILE}\n```\nevil_text",
        problem_id=HOSTILE,
        step=1,
        reason=HOSTILE,
        evidence={"test_function": f"def run_tests(): '{HOSTILE}'", HOSTILE: HOSTILE, "reasons": {HOSTILE: [HOSTILE]}},
    )
    rows = [
        with_tokens(tokenizer, row(i // 8, i % 8, text=f"{GOOD}\nnumber_{i} é🙂", advantage=i / 10)) for i in range(120)
    ]
    forged = hack(2, 0, step=1, label="Correct", published_correct=True)
    write_run(root, steps={0: rows, 1: [with_tokens(tokenizer, r) for r in (hack(1, step=1), forged, evil)]},
              model=str(root.parent / f"{root.name}-model"))  # fmt: skip
    write_run(root, "projected-s0", {0: [row(i, run="projected-s0") for i in range(7)]})
    indexer, port = Indexer(root), free_port()
    server = uvicorn.Server(uvicorn.Config(build_app(indexer), port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    with scanning(indexer, 0.2):
        thread.start()
        deadline = time.monotonic() + WAIT_S
        while not (server.started and indexer.progress.changed and not indexer.progress.scanning):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield SimpleNamespace(root=root, url=f"http://127.0.0.1:{port}/")
        server.should_exit = True
        thread.join(10)
    indexer.close()
