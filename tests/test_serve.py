"""The page's server: what it answers, what it refuses, what it keeps (nothing), and how it starts and ends."""

import contextlib
import json
import os
import signal
import socket
import stat
import sys
import threading
from functools import partial
from pathlib import Path
from unittest import mock

import gradio as gr
import httpx
import numpy as np
import pytest
import soundfile
import torch
from gradio_client import Client, handle_file
from torch import nn

from speechbrain_ser.cli import main as cli
from speechbrain_ser.errors import UserError
from speechbrain_ser.inference.page import QUEUE, REMEMBERED, model_text, recognise, running, serve
from speechbrain_ser.inference.recognizer import EmotionRecognizer
from speechbrain_ser.lobes.cnn_blstm_attention import CNNBLSTMAttention
from speechbrain_ser.models.fu import FuModel
from speechbrain_ser.processing.log_mel import LogMel

from .test_crossval import wait
from .test_ddp import free_port

RATE = 16_000
MAX_BYTES = 1_000_000
API = "gradio_api"
META = {"meta": {"_type": "gradio.FileData"}}
WORDS = ({"emotion": "sad"}, None)  # an answer, and a timeline that nobody draws


def noise(path: Path, seconds: float = 1.0, seed: int = 0) -> Path:
    soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * RATE)), RATE)
    return path


@pytest.fixture(scope="module")
def recognizer() -> EmotionRecognizer:
    """Untrained, of three emotions."""
    torch.manual_seed(0)
    lobe = CNNBLSTMAttention(128, channels=(8, 8, 8), bottleneck=8, lstm_size=4, heads=2)
    heads = {"emotion": partial(nn.Linear, out_features=3)}
    model = FuModel(LogMel(), lobe, heads, loss_weights={"emotion": 1.0})
    return EmotionRecognizer(model, ["angry", "neutral", "sad"], run_opts={"device": "cpu"})


class Site:
    """A running page, and requests to it."""

    def __init__(self, url: str):
        self.url, self.folder = url, Path(os.environ["GRADIO_TEMP_DIR"])
        self.web = httpx.Client(base_url=url, timeout=300, trust_env=False)

    def send(self, path: Path) -> str:
        """An upload: where it lies."""
        response = self.web.post(f"{API}/upload", files={"files": (path.name, path.read_bytes())})
        assert response.status_code == 200, response.text
        return response.json()[0]

    def ask(self, *data, of: str = "recognize") -> str:
        """A request: its name."""
        return self.web.post(f"{API}/call/{of}", json={"data": data}).raise_for_status().json()["event_id"]

    def answer(self, name: str) -> dict:
        """What comes of a request: the answer, or {"error": words}."""
        lines = [line for line in self.web.get(f"{API}/call/recognize/{name}").text.splitlines() if ": " in line]
        fields = dict(line.split(": ", 1) for line in lines[-2:])
        data = json.loads(fields["data"])
        return data[0] if fields["event"] == "complete" else {"error": data["error"] if data else None}

    def recognize(self, path: Path) -> dict:
        return self.answer(self.ask({"path": self.send(path), **META}))

    @property
    def kept(self) -> list[str]:
        """The names of the files that lie in its folder."""
        return [path.name for path in self.folder.rglob("*") if path.is_file()]


@contextlib.contextmanager
def site_of(answer, **proxy):
    with (
        mock.patch.dict(os.environ),  # of the page that is there all the while
        running(answer, "About *it*.", "Limits.", "127.0.0.1", free_port(), MAX_BYTES, **proxy) as url,
    ):
        yield Site(url)


@pytest.fixture(scope="module")
def site(recognizer):
    with site_of(partial(recognise, recognizer, window=2.0, max_seconds=20.0)) as found:
        yield found


def test_an_answer_is_what_python_says(site, recognizer, tmp_path):
    path = noise(tmp_path / "a b ü.wav", 3.5)
    found, expected = site.recognize(path), recognizer.classify_file(path)
    assert found["emotion"] == expected.emotion and found["whole"] and found["transcript"] is None
    assert found["posteriors"] == pytest.approx(expected.posteriors, abs=1e-5)
    assert found["recording"] == path.name and found["duration"] == found["segments"][-1]["end"] == 3.5
    assert site.kept == []


def test_a_long_recording_is_the_mean_over_time(site, recognizer, tmp_path):
    path = noise(tmp_path / "long.wav", 17.3)
    found, timeline = site.recognize(path), recognizer.timeline(path, 2.0)
    assert not found["whole"] and [s["end"] for s in found["segments"]] == [s.end for s in timeline.segments]
    means, lengths = zip(*(([*s.posteriors.values()], s.end - s.start) for s in timeline.segments), strict=True)
    assert list(found["posteriors"].values()) == pytest.approx(np.average(means, 0, lengths).tolist(), abs=1e-5)


def test_what_is_no_speech_is_told(recognizer, tmp_path, monkeypatch):
    monkeypatch.setattr(recognizer, "speech_by", "energy")
    monkeypatch.setattr(recognizer, "min_speech", 0.1)
    monkeypatch.setattr("speechbrain_ser.processing.voice_activity._silero", lambda: None)
    clicks = np.zeros(RATE)
    clicks[::8000] = 0.9
    soundfile.write(tmp_path / "clicks.wav", clicks, RATE)
    found, timeline = recognise(recognizer, tmp_path / "clicks.wav")
    assert found["emotion"] is None and found["speech"] == pytest.approx(2 * 512 / RATE, abs=1e-6)
    assert found["speech_by"] == "energy" and [segment.emotion for segment in timeline.segments] == [None]


def test_stretches_of_speech_in_the_place_of_windows(recognizer, tmp_path, monkeypatch):
    monkeypatch.setattr("speechbrain_ser.processing.voice_activity._silero", lambda: None)
    sound = np.random.default_rng(0).normal(0, 0.1, 6 * RATE)
    sound[2 * RATE : 4 * RATE] = 0
    soundfile.write(tmp_path / "two.wav", sound, RATE)
    found, timeline = recognise(recognizer, tmp_path / "two.wav", segments="vad")
    first, second = found["segments"]
    assert timeline.by == "vad" and 0 < first["end"] < 2.5 and 3.5 < second["start"] < 4.5 and found["whole"]


def test_gradios_own_client(site, tmp_path):
    client = Client(site.url, verbose=False, download_files=False, analytics_enabled=False)
    found = client.predict(recording=handle_file(str(noise(tmp_path / "a.wav"))), api_name="/recognize")
    assert found["emotion"] in ("angry", "neutral", "sad") and site.kept == []
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/recognize"]


def test_bad_recordings_are_told_in_words(site, tmp_path):
    (tmp_path / "text.wav").write_text("These are minutes of a meeting.")
    (tmp_path / "empty.wav").touch()
    noise(tmp_path / "long.wav", 25)
    told = {"text": "unreadable recording", "empty": "empty recording", "long": "too long: 25.0 s (expected"}
    for name, said in told.items():
        error = site.recognize(tmp_path / f"{name}.wav")["error"]
        assert said in error and str(site.folder) not in error and site.kept == []
    assert "emotion" in site.recognize(noise(tmp_path / "good.wav"))


def test_a_failure_of_ours_does_not_tell_what_it_was(tmp_path, capfd):
    def broken(path):
        raise RuntimeError(f"secrets of {path}")

    with site_of(broken) as site:
        assert site.recognize(noise(tmp_path / "a.wav")) == {"error": None} and site.kept == []
        assert stat.S_IMODE(site.folder.stat().st_mode) == 0o700 and site.send(tmp_path / "a.wav")
    assert "secrets" in capfd.readouterr().err and not site.folder.exists()


def test_what_is_remembered_of_requests_is_bounded(tmp_path):
    with mock.patch.object(gr.Blocks, "launch", autospec=True, return_value=(None, "url", None)) as launch:
        with mock.patch.dict(os.environ), running(None, "", "", "127.0.0.1", 1, MAX_BYTES):
            pass
    ((page,), options) = launch.call_args
    assert options["state_session_capacity"] == page._queue.ANALYTICS_MAX_EVENTS == REMEMBERED


def test_too_large_an_upload_is_refused(site):
    response = site.web.post(f"{API}/upload", files={"files": ("a.wav", bytes(2 * MAX_BYTES))})
    assert response.status_code == 413 and "maximum allowed size" in response.text and site.kept == []


def test_no_more_wait_than_there_is_room_for(tmp_path):
    """One is recognised at a time, some wait, the next one is told so."""
    go, running_now = threading.Event(), []

    def slow(path):
        running_now.append(path)
        assert go.wait(300) and len(running_now) == 1 and path.exists()
        return running_now.clear() or WORDS

    with site_of(slow) as site:
        sent = [{"path": site.send(noise(tmp_path / "a.wav", seed=k)), **META} for k in range(QUEUE + 2)]
        names = [site.ask(sent[0])]
        wait(lambda: running_now)
        names += [site.ask(each) for each in sent[1:-1]]
        refused = site.web.post(f"{API}/call/recognize", json={"data": sent[-1:]})
        assert refused.status_code == 503 and "Queue is full" in refused.text
        go.set()
        assert [site.answer(name) for name in names] == [WORDS[0]] * len(names)
        assert site.kept == ["a.wav"]  # of the refused request; Gradio deletes it after a while


def test_no_other_file_is_served_or_recognised(site, tmp_path):
    secret = noise(tmp_path / "secret.wav")
    upwards = f"{site.folder}/../{secret.relative_to('/')}"
    for name in ("/etc/passwd", secret, upwards, "../../etc/passwd", "..%2f..%2fetc/passwd"):
        assert site.web.get(f"/{API}/file={name}").status_code in (403, 404)
        for more in (META, {}, {"is_stream": True, **META}):
            assert "sent recordings" in site.answer(site.ask({"path": str(name), **more}))["error"]
    assert "sent recordings" in site.answer(site.ask("/etc/passwd"))["error"]
    assert secret.exists() and site.web.get("/").status_code == 200


def test_no_address_is_fetched(site, tmp_path, monkeypatch):
    fetched, url = [], "http://127.0.0.1:9/secret.wav"
    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", lambda url, **_: fetched.append(url))
    for data in ({"path": url}, {"path": url.replace("http", "https"), "url": url}):
        assert "allowed only: sent recordings" in site.answer(site.ask({**data, **META}))["error"]
    assert "error" in site.answer(site.ask({"path": url, "is_stream": True, **META}))
    sent = {"path": site.send(noise(tmp_path / "a.wav")), "url": url, **META}
    assert "emotion" in site.answer(site.ask(sent)) and not fetched and site.kept == []


def test_other_sites_are_refused(site):
    port = httpx.URL(site.url).port
    for headers in ({"Host": f"rebound.example:{port}"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert site.web.get("/", headers=headers).status_code == 403
        assert site.web.post(f"{API}/upload", files={"files": b"a"}, headers=headers).status_code == 403
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "localhost"):
        assert site.web.get("/", headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200
    assert site.kept == []


def test_behind_a_proxy_that_has_it_below_a_path(tmp_path):
    """Whether the proxy passes on the name that it was asked by, or names this machine."""
    with site_of(lambda path: WORDS, public_name="ser.example.org", root_path="/ser") as site:
        for host in ("ser.example.org", "127.0.0.1:7860"):
            headers = {"Host": host, "Origin": "https://ser.example.org", "X-Forwarded-Proto": "https"}
            site.web.headers.update(headers)
            assert site.web.get("/").status_code == 200 and site.recognize(noise(tmp_path / "a.wav")) == WORDS[0]
            assert site.web.get("/config").json()["root"] == f"https://{host}/ser"
        for other in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Host": "["}):
            assert site.web.get("/", headers=other).status_code in (400, 403)
    for option, value in (("public_name", "https://ser.example.org"), ("root_path", "ser")):
        with pytest.raises(UserError, match=option.replace("_", "-")):
            serve("run", **{option: value})


def test_the_page_asks_nobody_else(site):
    page, config = site.web.get("/"), site.web.get("/config").json()
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert not config["analytics_enabled"] and not config["run_history"]
    assert site.web.get("/monitoring").status_code == 403
    assert "fonts.googleapis" not in page.text + site.web.get("/theme.css").text
    assert [c["api_name"] for c in config["dependencies"] if c["api_visibility"] == "public"] == ["recognize"]


def test_the_command_serves_until_ctrl_c(trained, tmp_path, small, capfd):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background begins with it ignored
    port, found = free_port(), []
    path = sorted((small.corpus("emodb") / "wav").iterdir())[0]

    def up() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}", trust_env=False).status_code == 200
        return False

    def visit():
        try:
            wait(up)
            found.append(Site(f"http://127.0.0.1:{port}").recognize(path))
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=visit).start()
    folder = trained("--pooling=sum", yaml="cai_mtl")
    assert cli(["serve", f"--model={folder}", f"--port={port}", "--device=cpu", "--trust-run"]) == 0
    out = capfd.readouterr().out
    assert f"http://127.0.0.1:{port}/" in out and out.endswith("ended; nothing was kept\n") and not up()
    alone = EmotionRecognizer.from_run(folder, {"device": "cpu"}).classify_file(path)
    assert found[0]["emotion"] == alone.emotion and found[0]["transcript"] == alone.transcript is not None


def test_what_the_page_says_of_a_model(trained, tmp_path):
    assert "Protocol: `speaker`" in model_text(trained("--pooling=sum", yaml="cai_mtl"))
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Card\n")
    assert model_text(tmp_path) == "# Card\n"
    assert "on the hub" in model_text("user/model")


def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port={port} cannot be used: .*in use"):
            serve("run", port=port)


def test_without_gradio(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "speechbrain_ser.inference.page")
    assert cli(["serve", "--model=run"]) == 2
    assert 'pip install "speechbrain-ser[serve]"' in capfd.readouterr().err


def test_a_card_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "README.md")
    assert "on the hub" in model_text(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("max_mb", 0), ("max_seconds", float("nan")), ("port", 99_999), ("window", 1e-4), ("step", 5.0)]
)
def test_wrong_options(trained, name, value):
    options = {"port": free_port(), "device": "cpu", "trust_run": True, name: value}
    with pytest.raises(UserError, match=name.replace("_", "-")):
        serve(str(trained("--pooling=sum", yaml="cai_mtl")), **options)


def test_other_machines_are_warned_of(trained, monkeypatch, caplog):
    monkeypatch.setattr("speechbrain_ser.inference.page.running", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for host, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        caplog.clear()
        with pytest.raises(KeyboardInterrupt):
            serve(
                str(trained("--pooling=sum", yaml="cai_mtl")), host=host, port=free_port(), device="cpu", trust_run=True
            )
        assert ("no password and no encryption" in caplog.text) == warned
