"""The answer as HTML: emotion, posteriors, transcript, picture and downloads, everything in the page itself."""

import base64
import json
from html import escape
from pathlib import Path

from speechbrain_ser.serve.recognition import Answer

STYLE = """
.gradio-container {max-width: 760px !important; margin: 0 auto !important}
.ser h3 {margin: 1.2em 0 .4em; font-size: 1em; font-weight: 600}
.ser .emotion {font-size: 1.9em; font-weight: 700; margin: 0 0 .5em; line-height: 1.2; overflow-wrap: anywhere}
.ser .emotion small {font-size: .5em; font-weight: 400; opacity: .75; display: block}
.ser .bars {display: grid; grid-template-columns: max-content 1fr 4.2em; gap: .35em .7em; align-items: center}
.ser .bars .bar {height: .8em; border-radius: .4em; background: var(--border-color-primary)}
.ser .bars .bar i {display: block; height: 100%; border-radius: .4em; background: var(--primary-500); min-width: 2px}
.ser .bars .share {text-align: right; font-variant-numeric: tabular-nums}
.ser blockquote {margin: 0 !important; padding: .1em 0 .1em .8em; border-left: 3px solid var(--primary-500);
  font-size: 1.05em; overflow-wrap: anywhere}
.ser img {width: 100%; height: auto; border-radius: 6px; background: #fff}
.ser .files a {display: inline-block; margin: .2em .6em .2em 0; padding: .4em .9em; border-radius: 6px;
  border: 1px solid var(--border-color-primary); text-decoration: none}
.ser-small {font-size: .9em; opacity: .85}
footer .divider {display: none}
"""


def render(answer: Answer) -> str:
    """What the page shows of an answer.

    Arguments
    ---------
    answer : Answer
        Its texts may hold anything.

    Returns
    -------
    str
        HTML that asks nobody for anything.

    Example
    -------
    >>> page = render(Answer("a.wav", 2.0, "sad", {"sad": 0.9, "<b>": 0.1}, "YES & NO"))
    >>> "YES &amp; NO" in page, "<b>" in page, "90.0 %" in page
    (True, False, True)
    """
    parts = [_emotion(answer), _bars(answer.posteriors)]
    if answer.transcript is not None:
        text = escape(answer.transcript) or "<i>no words were recognised</i>"
        parts.append(f"<h3>Transcript</h3><blockquote>{text}</blockquote>")
    if answer.picture is not None:
        source = _data("image/png", answer.picture)
        alt = "The waveform, the posterior of each emotion over time, and the transcript"
        parts.append(f'<h3>Over time</h3><img src="{source}" alt="{alt}">')
    parts.append(f'<h3>Download</h3><p class="files">{"".join(_files(answer))}</p>')
    return f'<div class="ser">{"".join(parts)}</div>'


def _emotion(answer: Answer) -> str:
    about = f"{escape(answer.name)}, {answer.seconds:.1f} s"
    if answer.emotion is None:
        return f'<p class="emotion">undecided<small>no emotion is likely enough; {about}</small></p>'
    return f'<p class="emotion">{escape(answer.emotion)}<small>{about}</small></p>'


def _bars(posteriors: dict[str, float]) -> str:
    rows = [
        f'<span>{escape(name)}</span><span class="bar"><i style="width: {100 * p:.1f}%"></i></span>'
        f'<span class="share">{100 * p:.1f} %</span>'
        for name, p in sorted(posteriors.items(), key=lambda item: -item[1])
    ]
    return f'<h3>Posteriors</h3><div class="bars">{"".join(rows)}</div>'


def _files(answer: Answer) -> list[str]:
    stem = Path(answer.name).stem
    text = json.dumps(answer.to_json(), ensure_ascii=False, indent=1)
    files = {"json": ("application/json", text.encode())}
    if answer.textgrid is not None:
        files["TextGrid"] = ("text/plain", answer.textgrid.encode())
    if answer.picture is not None:
        files["png"] = ("image/png", answer.picture)
    return [
        f'<a download="{escape(f"{stem}.{ending}")}" href="{_data(kind, content)}">{ending}</a>'
        for ending, (kind, content) in files.items()
    ]


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
