"""The page in a real browser: upload, microphone, errors, downloads, narrow screens. By hand: -n0 -m slow."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from .conftest import ROOT
from .test_serve import free_port

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = {"desk": (1280, 900), "phone": (390, 844)}
INPUT, ANSWER, TOAST = "input[type=file]", "[data-testid=label-output-value]", "[data-testid=toast-body]"


@pytest.fixture(scope="module")
def speech(small) -> Path:
    return sorted((small.corpus("emodb") / "wav").glob("03*.wav"))[0]


@pytest.fixture(scope="module")
def browser(speech):
    """Chromium, whose microphone hears the recording over and over."""
    playwright = pytest.importorskip("playwright.sync_api", reason="a browser test: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("a browser test: install Chromium")
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    arguments.append(f"--use-file-for-fake-audio-capture={speech}")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(params=WIDTHS)
def page(browser, trained, request):
    """The page, as wide as the test says; whatever else the browser asks for anything fails the test."""
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    run = trained("--pooling=sum", yaml="cai_mtl")
    command = [sys.executable, "-m", "speechbrain_ser.cli", "serve", f"--model={run}", "--trust-run", f"--port={port}"]
    command += ["--device=cpu", "--max-mb=2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout.readline() == f"{address} (Ctrl-C ends it)\n"
        width, height = WIDTHS[request.param]
        context = browser.new_context(viewport={"width": width, "height": height}, permissions=["microphone"])
        tab, strangers = context.new_page(), []
        tab.on("request", lambda asked: strangers.append(asked.url))
        tab.on("pageerror", lambda error: strangers.append(str(error)))
        tab.goto(address)
        tab.wait_for_selector(INPUT, state="attached")
        yield tab
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert not [url for url in strangers if not url.startswith((address, f"blob:{address}", "data:"))]
        server.send_signal(signal.SIGINT)  # while the browser looks
        assert server.communicate(timeout=120)[0] == "ended; nothing was kept\n" and server.returncode == 0
        context.close()


def test_an_uploaded_recording(page, speech, trained):
    page.set_input_files(INPUT, speech)
    emotion = page.wait_for_selector(ANSWER).inner_text()
    predictions = pd.read_csv(trained("--pooling=sum", yaml="cai_mtl") / "predictions.csv", dtype=str).set_index("ID")
    assert emotion.strip() == predictions.loc[speech.stem, "predicted"] and speech.name in page.inner_text("body")
    page.wait_for_function("Array.from(document.images).some(image => image.naturalWidth > 1000)")
    for ending, beginning in (("json", b'{\n "recording"'), ("TextGrid", b"File type"), ("png", b"\x89PNG")):
        with page.expect_download() as download:
            page.get_by_role("button", name=ending, exact=True).click()
        assert download.value.suggested_filename == f"{speech.stem}.{ending}"
        assert Path(download.value.path()).read_bytes().startswith(beginning)
    page.wait_for_selector("[data-testid=waveform-Recording]")
    page.click("button[aria-label=Play]")  # it is heard although the server has deleted it
    page.wait_for_function("document.querySelector('#time').innerText != '0:00'")


def test_the_microphone(page):
    page.click("button[aria-label='Record audio']")
    page.click("button.record-button")
    page.wait_for_timeout(2500)
    page.click("button.stop-button")
    page.wait_for_selector(ANSWER)
    assert 1.5 < float(re.search(r"([\d.]+) s, heard as one utterance", page.inner_text("body"))[1]) < 10


def test_errors_and_what_comes_after_them(page, speech, tmp_path):
    (tmp_path / "text.wav").write_text("<img src=x onerror=alert(1)> is no recording")
    (tmp_path / "large.wav").write_bytes(bytes(3 << 20))
    for name, said in (("text.wav", "unreadable recording"), ("large.wav", "exceed the maximum allowed size")):
        page.set_input_files(INPUT, tmp_path / name)
        assert said in page.wait_for_selector(TOAST).inner_text()
        assert not page.query_selector(ANSWER) and not page.query_selector("img[src=x]")
        page.click("[data-testid=toast-close]")
        page.wait_for_selector(TOAST, state="detached")
        if clear := page.query_selector("button[aria-label=Clear]"):
            clear.click()
    page.set_input_files(INPUT, speech)
    page.wait_for_selector(ANSWER)
