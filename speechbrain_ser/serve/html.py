"""The answer as HTML: emotion, posteriors, transcript, picture and downloads, everything in the page itself."""

import base64
import json
from html import escape
from pathlib import Path

from speechbrain_ser.serve.recognition import Answer

STYLE = """
.gradio-container {max-width: 1100px !important; margin: 0 auto !important; min-width: 0; width: 100%}
.gradio-container :is(.main, .wrap, .contain) {min-width: 0; max-width: 100%}
.html-container:has(.ser) {padding: 0 !important}
.ser-small {font-size: .9em; opacity: .85; max-width: 50em}
.ser {line-height: 1.4}
.ser h3 {margin: 1.3em 0 .4em; font-size: 1em; font-weight: 600}
.ser .emotion {font-size: 1.9em; font-weight: 700; margin: 0; line-height: 1.2; overflow-wrap: anywhere}
.ser .emotion small {font-size: .5em; font-weight: 400; opacity: .75; display: block}
.ser .bars {display: grid; grid-template-columns: max-content 1fr 4.2em; gap: .35em .7em; align-items: center;
  max-width: 44em}
.ser .bars .bar {height: .8em; border-radius: .4em; background: var(--border-color-primary); overflow: hidden}
.ser .bars .bar i {display: block; height: 100%; background: var(--primary-500)}
.ser .bars .share {text-align: right; font-variant-numeric: tabular-nums}
.ser blockquote {margin: 0 !important; padding: .1em 0 .1em .8em; border-left: 3px solid var(--primary-500);
  font-size: 1.05em; overflow-wrap: anywhere; max-width: 44em}
.ser .picture {overflow-x: auto; background: #fff; border-radius: 6px}
.ser .picture img {width: 100%; min-width: 860px; max-width: none; height: auto; margin: 0}
.ser .files a {display: inline-block; margin: .2em .6em .2em 0; padding: .4em .9em; border-radius: 6px;
  border: 1px solid var(--border-color-primary); text-decoration: none}
.ser .error {padding: .7em 1em; border-left: 3px solid #dc2626; background: #dc262618; overflow-wrap: anywhere}
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
    >>> page = render(Answer("a.wav", 2.0, "sad", {"sad": 0.9, "<b>": 0.1}, True, "YES & NO"))
    >>> "YES &amp; NO" in page, "<b>" in page, "90.0 %" in page
    (True, False, True)
    """
    parts = [_emotion(answer), _bars(answer.posteriors)]
    if answer.transcript is not None:
        text = escape(answer.transcript) or "<i>no words were recognised</i>"
        parts.append(f"<h3>Transcript</h3><blockquote>{text}</blockquote>")
    if answer.picture is not None:
        source = _data("image/png", answer.picture)
        alt = "Waveform, emotions, posteriors and words over time"
        parts.append(f'<h3>Over time</h3><div class="picture" tabindex="0"><img src="{source}" alt="{alt}"></div>')
    parts.append(f'<h3>Download</h3><p class="files">{"".join(_files(answer))}</p>')
    return f'<div class="ser">{"".join(parts)}</div>'


def render_error(words: str) -> str:
    """What the page shows where there is no answer.

    Example
    -------
    >>> print(render_error("unreadable: <b>"))
    <div class="ser"><p class="error" role="alert"><b>No result:</b> unreadable: &lt;b&gt;</p></div>
    """
    return f'<div class="ser"><p class="error" role="alert"><b>No result:</b> {escape(words)}</p></div>'


def _emotion(answer: Answer) -> str:
    how = "heard as one utterance" if answer.is_whole else "the mean over time"
    about = f"{escape(answer.name)}, {answer.duration:.1f} s, {how}"
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
    text = json.dumps(answer.to_dict(), ensure_ascii=False, indent=1)
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
