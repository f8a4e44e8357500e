"""The page in a real browser: upload, recording, errors, sizes, downloads, narrow screens. By hand: -n0 -m slow."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from .conftest import ROOT
from .test_serve import free_port

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FAKE_MICROPHONE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
WIDTHS = {"desk": (1280, 900), "phone": (390, 844)}
ANSWER, FAILURE, TOAST = ".ser .emotion", ".ser .error", "[data-testid=toast-body]"
INPUT = "input[type=file]"


@pytest.fixture
def run_folder(trained) -> Path:
    return trained("--pooling=sum", yaml="cai_mtl")


@pytest.fixture(scope="module")
def speech(small) -> Path:
    return sorted((small.corpus("emodb") / "wav").glob("03*.wav"))[0]


@pytest.fixture(scope="module")
def servers():
    """Those that run, by address."""
    started = {}
    yield started
    for process in started.values():
        process.kill()


@pytest.fixture
def address(run_folder, servers) -> str:
    """Of the page of a trained model, in a process that all tests share."""
    if not servers:
        port = free_port()
        command = [sys.executable, "-m", "speechbrain_ser.cli", "serve", f"--model={run_folder}", f"--port={port}"]
        command += ["--device=cpu", "--max-mb=2", "--max-seconds=60"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        servers[f"http://127.0.0.1:{port}/"] = process
        assert process.stdout.readline() == f"http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"
    return next(iter(servers))


@pytest.fixture(scope="module")
def browser(speech):
    """Chromium, whose microphone hears the recording over and over."""
    playwright = pytest.importorskip("playwright.sync_api", reason="a browser test: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("a browser test: install Chromium")
    arguments = ["--no-sandbox", *FAKE_MICROPHONE, f"--use-file-for-fake-audio-capture={speech}"]
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, address, request):
    """The page, as wide as the test says; whatever else the browser asks for anything fails the test."""
    width, height = WIDTHS[getattr(request, "param", "desk")]
    context = browser.new_context(viewport={"width": width, "height": height}, permissions=["microphone"])
    tab = context.new_page()
    strangers, broken = [], []
    tab.on("request", lambda asked: strangers.append(asked.url) if not is_ours(asked.url, address) else None)
    tab.on("pageerror", lambda error: broken.append(error))
    tab.goto(address)
    tab.wait_for_selector(INPUT, state="attached")
    yield tab
    context.close()
    assert not strangers and not broken


def is_ours(url: str, address: str) -> bool:
    return url.startswith((address, f"blob:{address}", "data:"))


def shoot(page, name: str) -> None:
    """A picture to look at, where SHOTS says so."""
    if folder := os.environ.get("SHOTS"):
        page.wait_for_timeout(1000)
        page.screenshot(path=Path(folder, f"{name}.png"), full_page=True)


def assert_fits(page) -> None:
    """Nothing is wider than the screen."""
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


@pytest.mark.parametrize("page", WIDTHS, indirect=True)
def test_an_uploaded_recording(page, speech, run_folder, request):
    name = request.node.callspec.params["page"]
    assert_fits(page)
    shoot(page, f"start_{name}")
    page.set_input_files(INPUT, speech)
    emotion = page.wait_for_selector(ANSWER).inner_text()
    predictions = pd.read_csv(run_folder / "predictions.csv", dtype=str, keep_default_na=False).set_index("ID")
    expected = predictions.loc[speech.stem]
    assert emotion.startswith(expected["predicted"]) and speech.name in emotion
    assert page.inner_text(".ser blockquote") == (expected["hypothesis"] or "no words were recognised")
    assert f"Tested on {len(predictions)} utterances of 1 speaker never heard" in page.inner_text("body")
    assert page.evaluate("document.querySelector('.ser img').naturalWidth") > 1000
    assert_fits(page)
    shoot(page, f"result_{name}")
    page.wait_for_selector("[data-testid=waveform-Recording]")
    page.click("button[aria-label=Play]")  # it is heard although the server has deleted it
    page.wait_for_function("document.querySelector('#time').innerText != '0:00'")


def test_downloads(page, speech):
    page.set_input_files(INPUT, speech)
    page.wait_for_selector(ANSWER)
    for ending, beginning in (("json", b'{\n "recording"'), ("TextGrid", b"File type"), ("png", b"\x89PNG")):
        with page.expect_download() as download:
            page.click(f".ser .files a:text-is('{ending}')")
        assert download.value.suggested_filename == f"{speech.stem}.{ending}"
        content = Path(download.value.path()).read_bytes()
        assert content.startswith(beginning)
        if ending == "json":
            assert json.loads(content)["recording"] == speech.name


@pytest.mark.parametrize("page", ["phone"], indirect=True)
def test_recording_with_the_microphone(page):
    page.click("button[aria-label='Record audio']")
    page.click("button.record-button")
    page.wait_for_timeout(2500)
    page.click("button.stop-button")
    said = page.wait_for_selector(ANSWER).inner_text()
    assert 1.5 < float(re.search(r"([\d.]+) s", said).group(1)) < 10
    assert_fits(page)
    shoot(page, "microphone")


@pytest.mark.parametrize("page", ["phone"], indirect=True)
def test_errors_and_what_comes_after_them(page, speech, tmp_path):
    text, large, long = tmp_path / "text.wav", tmp_path / "large.wav", tmp_path / "long.flac"
    text.write_text("<img src=x onerror=alert(1)> is no recording")
    page.set_input_files(INPUT, text)
    assert "No result: unreadable recording" in page.wait_for_selector(FAILURE).inner_text()
    assert not page.query_selector(".ser img")
    assert_fits(page)
    shoot(page, "text")
    page.click("button[aria-label=Clear]")
    page.wait_for_selector(FAILURE, state="detached")
    soundfile.write(long, np.zeros(61 * 8000), 8000)
    page.set_input_files(INPUT, long)
    assert "too long: 61.0 s (expected at most 60 s)" in page.wait_for_selector(FAILURE).inner_text()
    page.click("button[aria-label=Clear]")
    large.write_bytes(bytes(3 << 20))
    page.set_input_files(INPUT, large)
    assert "exceed the maximum allowed size" in page.wait_for_selector(TOAST).inner_text()
    shoot(page, "large")
    page.set_input_files(INPUT, speech)
    assert speech.name in page.wait_for_selector(ANSWER).inner_text()


def test_too_large_for_a_page_that_does_not_know_it(page):
    """The browser is told 413 by the server, too, and nothing breaks."""
    status = page.evaluate(
        """async () => {
            const form = new FormData();
            form.append('files', new Blob([new Uint8Array(3 << 20)]), 'a.wav');
            return (await fetch('/gradio_api/upload', {method: 'POST', body: form})).status;
        }"""
    )
    assert status == 413


def test_ctrl_c_ends_it_while_a_browser_looks(page, servers, address):
    process = servers.pop(address)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=120)[0] == "ended; nothing was kept\n" and process.returncode == 0
