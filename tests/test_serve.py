"""The page's server: what it answers, what it refuses, what it keeps (nothing), and how it starts and ends."""

import contextlib
import importlib.util
import json
import os
import signal
import socket
import stat
import threading
import time
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from starlette.datastructures import UploadFile
from torch import nn

from speechbrain_ser.cli import main as cli
from speechbrain_ser.errors import UserError
from speechbrain_ser.inference.page import (
    BODY,
    QUEUE,
    Answer,
    Uploads,
    about,
    about_model,
    recognise,
    render,
    running,
    serve,
)
from speechbrain_ser.inference.recognizer import EmotionRecognizer
from speechbrain_ser.lobes.cnn_blstm_attention import CNNBLSTMAttention
from speechbrain_ser.models.fu import FuModel
from speechbrain_ser.processing.log_mel import LogMel

RATE = 16_000
MAX_BYTES = 1_000_000
API = "gradio_api"
META = {"meta": {"_type": "gradio.FileData"}}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
        self.url = url
        self.web = httpx.Client(base_url=url, timeout=300, trust_env=False)
        self.folder = Path(os.environ["GRADIO_TEMP_DIR"])

    def send(self, path: Path, **options) -> str:
        """An upload: where it lies."""
        response = self.web.post(f"{API}/upload", files={"files": (path.name, path.read_bytes())}, **options)
        assert response.status_code == 200, response.text
        return response.json()[0]

    def ask(self, *data) -> str:
        """A request: its name."""
        response = self.web.post(f"{API}/call/recognize", json={"data": data})
        assert response.status_code == 200, response.text
        return response.json()["event_id"]

    def answer(self, name: str) -> dict:
        """What comes of a request: the answer, or {"error": words}."""
        lines = [line for line in self.web.get(f"{API}/call/recognize/{name}").text.splitlines() if ": " in line]
        fields = dict(line.split(": ", 1) for line in lines[-2:])
        data = json.loads(fields["data"])
        return data[0] if fields["event"] == "complete" else {"error": data["error"]}

    def recognize(self, path: Path) -> dict:
        return self.answer(self.ask({"path": self.send(path), **META}))

    @property
    def files(self) -> list[Path]:
        """What lies in the folder."""
        return [path for path in self.folder.rglob("*") if path.is_file()]

    @property
    def kept(self) -> list[str]:
        """The names of that."""
        return [path.name for path in self.files]


@contextlib.contextmanager
def site_of(answer):
    with running(answer, "About *it*.", "Limits.", "127.0.0.1", free_port(), MAX_BYTES) as url:
        yield Site(url)


@pytest.fixture(scope="module")
def site(recognizer):
    with site_of(partial(recognise, recognizer, window=2.0, max_seconds=20.0)) as found:
        yield found


# ------------------------------------------------------------------ answers


def test_an_answer_is_what_python_says(site, recognizer, tmp_path):
    path = noise(tmp_path / "a b ü.wav", 3.5)
    found, expected = site.recognize(path), recognizer.classify_file(path)
    assert found["emotion"] == expected.emotion and found["whole"] and found["transcript"] is None
    assert found["posteriors"] == pytest.approx(expected.posteriors, abs=1e-5)
    assert found["recording"] == path.name and found["duration"] == 3.5 and found["phrases"] == []
    assert found["segments"][0]["start"] == 0 and found["segments"][-1]["end"] == 3.5
    assert site.kept == []


def test_a_long_recording_is_the_mean_over_time(site, recognizer, tmp_path):
    path = noise(tmp_path / "long.wav", 17.3)
    found, timeline = site.recognize(path), recognizer.timeline(path, 2.0)
    assert not found["whole"] and [s["end"] for s in found["segments"]] == [s.end for s in timeline.segments]
    means, lengths = zip(*(([*s.posteriors.values()], s.end - s.start) for s in timeline.segments), strict=True)
    mean = np.average(means, 0, lengths)
    assert list(found["posteriors"].values()) == pytest.approx(mean.tolist(), abs=1e-5)


def test_gradios_own_client(site, tmp_path):
    from gradio_client import Client, handle_file

    client = Client(site.url, verbose=False, download_files=False, analytics_enabled=False)
    path = noise(tmp_path / "a.wav")
    found = client.predict(recording=handle_file(str(path)), api_name="/recognize")
    assert found["emotion"] in ("angry", "neutral", "sad") and site.kept == []
    (endpoint,) = client.view_api(return_format="dict")["named_endpoints"]
    assert endpoint == "/recognize"


BAD = {
    "text.wav": (lambda path: path.write_text("These are minutes of a meeting."), "unreadable recording"),
    "empty.wav": (lambda path: path.write_bytes(b""), "empty recording"),
    "cut.wav": (lambda path: path.write_bytes(noise(path).read_bytes()[:5000]), "truncated recording"),
    "nan.wav": (lambda path: soundfile.write(path, [0.0] * RATE + [np.nan], RATE, subtype="FLOAT"), "NaN"),
    "silent.wav": (lambda path: soundfile.write(path, np.zeros(RATE), RATE), "silent: all samples are the same"),
    "long.flac": (
        lambda path: soundfile.write(path, np.zeros(25 * RATE), RATE),
        "too long: 25.0 s (expected",
    ),
    "dense.flac": (
        lambda path: soundfile.write(path, np.zeros((99, 8)), 192_000),
        "too dense: 8 channels at 192000 Hz",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_recordings_are_told_in_words(site, tmp_path, name):
    write, said = BAD[name]
    write(tmp_path / name)
    error = site.recognize(tmp_path / name)["error"]
    assert said in error and str(site.folder) not in error and site.kept == []
    assert "error" not in site.recognize(noise(tmp_path / "good.wav"))


def test_many_channels_are_fine(site, tmp_path):
    one, rate = soundfile.read(noise(tmp_path / "one.wav"))
    soundfile.write(tmp_path / "eight.wav", np.stack([one] * 8, 1), rate)
    assert sum(site.recognize(tmp_path / "eight.wav")["posteriors"].values()) == pytest.approx(1, abs=1e-5)


# ------------------------------------------------------------------ size, number


def test_too_large_an_upload_is_refused_while_it_comes(site, tmp_path, monkeypatch):
    """By its length, or, where none is given, when the limit is passed: no more than that is written to the disk."""
    upload, written = f"{API}/upload", []
    response = site.web.post(upload, files={"files": ("a.wav", bytes(2 * MAX_BYTES))})
    assert response.status_code == 413 and "maximum allowed size" in response.text
    write = UploadFile.write
    monkeypatch.setattr(UploadFile, "write", lambda file, data: written.append(len(data)) or write(file, data))

    def parts(*sizes):
        for size in sizes:
            yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
            yield from [bytes(100_000)] * (size // 100_000)
            yield b"\r\n"
        yield b"--x--\r\n"

    for sizes in ((5 * MAX_BYTES,), (900_000,) * 5):  # one file; files that are small enough, but not together
        written.clear()
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        response = site.web.post(upload, content=parts(*sizes), headers=headers)
        assert response.status_code == 413 and "maximum allowed size" in response.text
        assert MAX_BYTES / 2 < sum(written) < MAX_BYTES + BODY and site.kept == []
    assert "error" not in site.recognize(noise(tmp_path / "good.wav"))


def test_an_upload_that_is_broken_off_leaves_nothing(site):
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n' + bytes(200_000)
    address = httpx.URL(site.url)
    with socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(
            f"POST /{API}/upload HTTP/1.1\r\nHost: {address.netloc.decode()}\r\nContent-Length: 900000\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode()
        )
        connection.sendall(head)
        wait_for(lambda: site.kept)
    wait_for(lambda: not site.kept)


def wait_for(condition, seconds: float = 120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_no_more_wait_than_there_is_room_for(tmp_path):
    """One is recognised at a time, some wait, the next one is told so; equal recordings do not take each other's."""
    go, running_now = threading.Event(), []

    def slow(path):
        running_now.append(path)
        assert go.wait(300) and len(running_now) == 1 and path.read_bytes() == content
        running_now.pop()
        return Answer(path.name, 1.0, "sad", {"sad": 1.0})

    with site_of(slow) as site:
        content = noise(tmp_path / "a.wav").read_bytes()
        names = [site.ask(sent := {"path": site.send(tmp_path / "a.wav"), **META})]
        wait_for(lambda: running_now)
        names += [site.ask({"path": site.send(tmp_path / "a.wav"), **META}) for _ in range(QUEUE)]
        site.send(tmp_path / "a.wav")
        refused = site.web.post(f"{API}/call/recognize", json={"data": [sent]})
        assert refused.status_code == 503 and "Queue is full" in refused.text
        go.set()
        assert [site.answer(name)["emotion"] for name in names] == ["sad"] * len(names)
        assert site.kept == ["a.wav"]  # of the refused request; it is deleted after a while


def test_a_failure_of_ours_does_not_tell_what_it_was(tmp_path, caplog):
    def broken(path):
        raise RuntimeError(f"secrets of {path}")

    with site_of(broken) as site:
        error = site.recognize(noise(tmp_path / "a.wav"))["error"]
        assert "could not be recognised" in error and "secrets" not in error and site.kept == []
    assert "secrets" in caplog.text


# ------------------------------------------------------------------ files


def test_no_other_file_is_served(site, tmp_path):
    secret = tmp_path / "secret.wav"
    noise(secret)
    upwards = f"{site.folder}/../{secret.relative_to('/')}"
    for name in ("/etc/passwd", secret, upwards, "../../etc/passwd", "..%2f..%2fetc/passwd", Path(__file__)):
        for route in (f"{API}/file=", f"{API}/file/", "static/", "assets/", f"{API}/proxy=", "svelte/"):
            assert site.web.get(f"/{route}{name}").status_code in (403, 404)


@pytest.mark.parametrize("more", [META, {}, {"is_stream": True, **META}, {"url": "http://example.org/a.wav", **META}])
def test_no_other_file_is_recognised(site, tmp_path, monkeypatch, more):
    """Nor is any address asked for one."""
    asked = []
    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", lambda *a, **k: asked.append(a))
    secret = noise(tmp_path / "secret.wav")
    upwards = f"{site.folder}/../{secret.relative_to('/')}"
    addresses = ("http://example.org/a.wav", "https://example.org/a.wav", "file:///etc/passwd")
    for name in (str(secret), upwards, "/etc/passwd", str(site.folder), "", "\0", *addresses):
        assert site.answer(site.ask({"path": name, **more}))["error"]
    assert not asked and secret.exists()


@pytest.mark.parametrize("data", [None, "/etc/passwd", 3, [], {"path": 3, **META}])
def test_nonsense_is_refused(site, data):
    assert site.answer(site.ask(data))["error"]
    assert site.web.get("/").status_code == 200


def test_only_its_owner_reads_the_folder_and_it_goes_in_the_end(tmp_path):
    before = dict(os.environ)
    with site_of(lambda path: Answer(path.name, 1.0, "sad", {"sad": 1.0})) as site:
        site.send(noise(tmp_path / "a.wav"))
        assert stat.S_IMODE(site.folder.stat().st_mode) == 0o700 and site.kept == ["a.wav"]
    assert not site.folder.exists() and dict(os.environ) == before


def test_what_nobody_asks_about_is_swept(tmp_path):
    with Uploads(100) as uploads:
        paths = [uploads.folder / name for name in ("aa/a.wav", "tmp123", "bb/b.wav")]
        for path in paths:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(bytes(400))
        assert uploads.is_full()
        os.utime(paths[0], (0, 0)), os.utime(paths[1], (0, 0))
        uploads.sweep()
        assert list(uploads.folder.iterdir()) == [paths[2].parent] and not uploads.is_full()


def test_what_waits_is_bounded(site, tmp_path, monkeypatch):
    monkeypatch.setattr(Uploads, "is_full", lambda self: True)
    response = site.web.post(f"{API}/upload", files={"files": b"a"})
    assert response.status_code == 503 and "try again" in response.text


# ------------------------------------------------------------------ who may ask, and for what


def test_other_sites_are_refused(site):
    port = httpx.URL(site.url).port
    for headers in ({"Host": f"rebound.example:{port}"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        assert site.web.get("/", headers=headers).status_code == 403
        assert site.web.post(f"{API}/upload", files={"files": b"a"}, headers=headers).status_code == 403
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", "localhost"):
        assert site.web.get("/", headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200
    assert site.kept == []


def test_only_what_the_page_needs_is_reachable(site):
    for route in ("monitoring", f"{API}/runs", f"{API}/deep_link?session_hash=a", f"{API}/file=http://example.org/"):
        assert site.web.get(f"/{route}").status_code == 404
    for route in ("process_recording", "component_server", "run/recognize", "vibe-edit", "run-history/connect"):
        assert site.web.post(f"{API}/{route}", json={"data": [None]}).status_code == 404
    assert site.web.post(f"{API}/queue/join", content=bytes(100_000)).status_code == 413
    assert site.web.post(f"{API}/queue/join", content=iter([b"{}"])).status_code == 411
    assert site.web.delete("/").status_code == 404


def test_the_page_asks_nobody_else(site):
    page = site.web.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    config = site.web.get("/config").json()
    assert config["analytics_enabled"] is False and config["max_file_size"] == MAX_BYTES
    assert "fonts.googleapis" not in page.text + site.web.get("/theme.css").text
    assert [c["api_name"] for c in config["dependencies"] if c["api_visibility"] == "public"] == ["recognize"]


# ------------------------------------------------------------------ what the page shows


def test_names_and_words_are_no_html():
    evil = "<img src=x onerror=alert(1)>"
    page = render(Answer(evil, 1.0, evil, {evil: 1.0}, True, evil))
    assert "<img" not in page and page.count("&lt;img") == 5
    assert 'download="&quot;&gt;.json"' in render(Answer('">.wav', 1.0, None, {"sad": 0.4}))


def test_what_is_not_likely_enough_is_undecided():
    page = render(Answer("a.wav", 1.0, None, {"sad": 0.4, "happy": 0.35}, True, ""))
    assert "undecided" in page and "no words were recognised" in page


def test_the_picture_and_the_textgrid_are_in_the_page(recognizer, tmp_path):
    answer = recognise(recognizer, noise(tmp_path / "a.wav", 3.0), window=2.0)
    assert answer.picture.startswith(b"\x89PNG") and '"emotion"' in answer.textgrid
    page = render(answer)
    assert page.count("data:image/png;base64,") == 2 and 'download="a.TextGrid"' in page
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_what_the_page_says_of_the_model(trained):
    folder = trained("--pooling=sum", yaml="cai_mtl")
    metrics = json.loads((folder / "metrics.json").read_text())
    said = about_model(folder, metrics["classes"], True)
    n, wa = (metrics["selections"]["last"]["all"][figure] for figure in ("n", "WA"))
    assert (
        f"Tested on {n} utterances of 1 speaker never heard in training" in said
        and "(one speaker: no interval)" in said
    )
    assert f"accuracy (WA) {100 * wa:.1f} %" in said and "WER" in said and "Do not judge people by it" in said
    leaky = {**metrics, "speaker_disjoint": False, "leak": "all test speakers"}
    rows = pd.DataFrame({"speaker": list("aabbcc"), "emotion": list("xyxyxy"), "predicted": list("xyxxxy")})
    said = about(leaky, rows, ["x", "y"], False)
    assert (
        "of 3 speakers in training as well (all test speakers)" in said
        and "95 % interval" in said
        and "WER" not in said
    )


def test_what_the_page_says_of_a_package(tmp_path):
    result = "{dataset: {name: emodb <b>}, metrics: [{name: WA, value: 0.5}]}"
    (tmp_path / "README.md").write_text(f"---\nmodel-index:\n- results: [{result}]\n---\n# Card")
    said = about_model(tmp_path, ["x", "y"], True)
    assert "tells 2 emotions apart (x, y) and transcribes. Tested on emodb &lt;b&gt;: WA 50.0 %;" in said
    for card in (b"# A", b"---\n- 3\n---\n", b"\xff", b"---\n!!python/object/apply:os.system [x]\n---\n"):
        (tmp_path / "README.md").write_bytes(card)
        said = about_model(tmp_path, ["x", "y"], False)
        assert "tells 2 emotions apart (x, y). Its model card" in said and "Do not judge" in said


# ------------------------------------------------------------------ the command


def test_the_command_serves_until_ctrl_c(trained, tmp_path, small, capfd):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background begins with it ignored
    port, found = free_port(), []
    path = sorted((small.corpus("emodb") / "wav").iterdir())[0]

    def visit():
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(lambda: up(address))
            found.extend(Site(address).recognize(each) for each in (path, noise(tmp_path / "short.wav", 0.01)))
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=visit).start()
    folder = trained("--pooling=sum", yaml="cai_mtl")
    assert cli(["serve", f"--model={folder}", f"--port={port}", "--device=cpu"]) == 0
    out = capfd.readouterr().out
    assert f"http://127.0.0.1:{port}/" in out and out.endswith("ended; nothing was kept\n")
    assert found[1]["error"].startswith("too short: 10.0 ms")
    alone = EmotionRecognizer.from_run(folder, {"device": "cpu"}).classify_file(path)
    assert found[0]["emotion"] == alone.emotion and found[0]["transcript"] == alone.transcript is not None
    assert not up(f"http://127.0.0.1:{port}")


def up(address: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(address, trust_env=False).status_code == 200
    return False


def test_a_port_in_use(trained):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"--port={port} cannot be used: .*in use"):
            serve(str(trained("--pooling=sum", yaml="cai_mtl")), port=port)


def test_without_gradio(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "gradio" else find(name, *a))
    with pytest.raises(UserError, match=r'pip install "speechbrain-ser\[serve\]"'):
        serve("run")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_mb": 0}, "--max-mb"),
        ({"max_seconds": float("nan")}, "--max-seconds"),
        ({"port": 99_999}, "--port"),
        ({"host": "no.such.host.invalid"}, "--host"),
        ({"window": 0.0001}, "window"),
        ({"step": 5.0}, "step"),
    ],
)
def test_wrong_options(trained, options, said):
    with pytest.raises(UserError, match=said):
        serve(str(trained("--pooling=sum", yaml="cai_mtl")), **{"port": free_port(), "device": "cpu", **options})


def test_other_machines_are_warned_of(trained, monkeypatch, caplog):
    @contextlib.contextmanager
    def ended(*arguments):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr("speechbrain_ser.inference.page.running", ended)
    folder = str(trained("--pooling=sum", yaml="cai_mtl"))
    for host, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        caplog.clear()
        with contextlib.suppress(KeyboardInterrupt):
            serve(folder, host=host, port=free_port(), device="cpu")
        assert ("no password and no encryption" in caplog.text) == warned
