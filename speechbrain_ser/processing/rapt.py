"""RAPT: fundamental frequency by normalised cross-correlation and dynamic programming.

Talkin 1995, "A robust algorithm for pitch tracking (RAPT)", in Kleijn & Paliwal (eds.), Speech Coding and Synthesis.
The frames, the constants and the order of steps are those of his program `get_f0` as SPTK carries it (`pysptk.rapt`):
the two can be compared frame by frame. Three things differ: the level of a recording does not matter; nothing is random
(SPTK adds noise to the samples, here the power of that noise is added to the energies); and the path is searched over
the whole recording, not over about a second at a time.
"""

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import fft, signal

from speechbrain_ser.data.audio import SAMPLE_RATE
from speechbrain_ser.errors import UserError

# Talkin's constants, with the values of `get_f0` and SPTK
CANDIDATE_THRESHOLD = 0.3  # only correlation peaks above this part of the frame's highest are candidates
MAX_CANDIDATES = 19  # of a frame, beside being unvoiced
LAG_WEIGHT = 0.3  # how much a peak at the longest lag is lowered: the first of several equal peaks is the period
FREQUENCY_WEIGHT = 0.02  # cost of a period that changes at a rate of one e-fold a second
OCTAVE_COST = 0.35  # of doubling or halving the period
TRANSITION_COST = 0.005  # of switching between voiced and unvoiced
TRANSITION_AMPLITUDE = 0.5  # its part by the change of level: voices start where it rises and end where it falls
TRANSITION_SPECTRUM = 0.5  # its part by the change of spectrum
HOP = 256  # samples from frame to frame, SpeechSplit's: frame i correlates what starts at sample i * HOP
WINDOW = 120  # samples that are correlated: 7.5 ms
EVERY = 8  # samples for one of the signal, at 2 kHz, in which peaks are looked for first
TAPS = 81  # of the decimation filter: 5 ms
PATCH = 7  # lags at full rate looked at around a coarse peak
SPAN = 480  # samples of a window in which level and spectrum are measured: 30 ms
GAP = 320  # samples from one such window to the next: 20 ms
LEAD = (GAP - SPAN) // 2  # from a frame's first sample to such a window's: two windows meet about it
ORDER = 18  # of linear prediction
PRE_EMPHASIS = 0.4
WHITE_FLOOR_DB = 30.0  # of the white noise that keeps linear prediction stable
# the white noise that silence is taken to hold, in a signal of peak 1 (SPTK adds a deviation of 50 to samples of 16
# bits); the rest stands against a division by zero where there is digital silence
NOISE_POWER = (50 / 32768) ** 2 + 1e-12

BLOCK = 2048  # frames whose correlations are in memory at once


class Sought(NamedTuple):
    """The lags to look at, in samples."""

    first: int
    last: int

    @property
    def count(self) -> int:
        return self.last - self.first + 1


def frame_count(n_samples: int) -> int:
    """Return the frames of a recording: those of SpeechSplit's mel spectrogram, n_samples // 256 + 1.

    `pysptk.rapt` gives one less where 256 divides n_samples; SpeechSplit's program appends a sample then.
    """
    return n_samples // HOP + 1


def rapt(wav: np.ndarray, f_min: float = 50.0, f_max: float = 600.0) -> np.ndarray:
    """Return the fundamental frequency in Hz, 0 where unvoiced, float64 [frame_count(time)].

    As in `get_f0` the last frames (two or three), whose lags would reach past the end, are unvoiced. `wav` are finite
    samples [time] at 16 kHz and any level; only their ratio to the largest matters.

    Example
    -------
    >>> pulses = np.zeros(16_000)
    >>> pulses[::160] = 1.0
    >>> rapt(pulses)[30].round(2)
    np.float64(100.0)
    """
    wav = np.asarray(wav, dtype=np.float64)
    if wav.ndim != 1 or not np.isfinite(wav).all():
        found = f"the shape {list(wav.shape)}" if wav.ndim != 1 else "NaN or infinity"
        raise ValueError(f"expected finite samples [time], found {found}")
    sought = lags_of(f_min, f_max)
    f0 = np.zeros(frame_count(len(wav)))
    needed = TAPS // 2 + max(LEAD + SPAN, WINDOW + sought.last + 1)  # by a frame
    frames = max(0, (len(wav) - needed) // HOP)
    peak = np.abs(wav).max(initial=0.0)
    if not frames or not peak:
        return f0
    wav = wav / peak
    periods = _best_path(_candidates(wav, frames, sought), *_changes(wav, frames))
    voiced = periods > 0
    f0[:frames][voiced] = SAMPLE_RATE / periods[voiced]
    return f0


def lags_of(f_min: float, f_max: float) -> Sought:
    """Return the lags of frequencies; a UserError where these do not fit the sample rate or are too close together.

    Between those that are too close the coarse pass has no peak.
    """
    lowest, highest = SAMPLE_RATE / 10_000, SAMPLE_RATE / 2
    found = f"found f_min={f_min:g}, f_max={f_max:g}"
    if not lowest < f_min < f_max < highest:
        raise UserError(f"F0: expected {lowest:g} < f_min < f_max < {highest:g} Hz, {found}")
    sought = Sought(*(int(SAMPLE_RATE / f + 0.5) for f in (f_max, f_min)))
    if sought.count < 3 * EVERY:
        raise UserError(f"F0: expected f_min and f_max at least 1.5 ms of period apart, {found}")
    return sought


class Candidates(NamedTuple):
    """Of each frame, by lag; unused places have the cost infinity."""

    lags: np.ndarray  # in whole samples [frames, candidates]
    periods: np.ndarray  # the same, interpolated [frames, candidates]
    costs: np.ndarray  # of taking the candidate [frames, candidates]
    unvoiced: np.ndarray  # of taking none [frames]


def _candidates(wav, frames, sought):
    """Two passes: peaks of the decimated signal, then those at full rate close to them."""
    coarse_wav, coarse_noise = _decimate(wav)
    shape = frames, MAX_CANDIDATES
    lags, periods, costs = np.ones(shape), np.ones(shape), np.full(shape, np.inf)
    unvoiced = np.empty(frames)
    for block in (slice(i, min(i + BLOCK, frames)) for i in range(0, frames, BLOCK)):
        starts = np.arange(block.start, block.stop) * HOP
        near = _near_coarse_peaks(coarse_wav, coarse_noise, starts, sought)  # [frames, lags]
        correlation = _nccf(wav, starts, WINDOW, sought.first, sought.count, NOISE_POWER)
        correlation = np.where(near, correlation, 0.0)
        unvoiced[block] = correlation.max(axis=1).clip(min=0.0)
        rows, columns = _peaks(correlation)
        heights = correlation[rows, columns]
        place, kept = _places(rows, heights)
        rows, columns, heights = rows[kept], columns[kept], heights[kept]
        lag = columns + sought.first
        at = (rows + block.start, place[kept])
        lags[at] = lag
        periods[at] = lag + _vertex(correlation, rows, columns)[0]
        costs[at] = 1 - heights * (1 - lag * LAG_WEIGHT / sought.last)
    most = max(1, int(np.isfinite(costs).sum(axis=1).max()))
    return Candidates(lags[:, :most], periods[:, :most], costs[:, :most], unvoiced)


def _decimate(wav):
    """The signal at about 2 kHz, in phase with the original, and the power that noise has left there."""
    half = TAPS // 2
    time = np.arange(-half, half + 1)
    kernel = np.sinc(time / EVERY) / EVERY * (0.5 + 0.5 * np.cos(2 * np.pi * time / TAPS))
    lead = -half % EVERY  # so that the filter's delay is a whole number of coarse samples
    filtered = signal.upfirdn(kernel, np.concatenate([np.zeros(lead), wav]), down=EVERY)
    return filtered[(half + lead) // EVERY :], NOISE_POWER * np.square(kernel).sum()


def _nccf(wav, starts, window, first_lag, lags, noise_power):
    """Normalised cross-correlation [frames, lags] of windows, less their mean, with what follows them in `wav` [time].

    Windows begin at `starts` [frames]. The noise's power is added per sample to the energies: quiet frames correlate
    less.
    """
    span = window + first_lag + lags - 1
    parts = sliding_window_view(wav, span)[starts]  # [frames, span]
    parts = parts - parts[:, :window].mean(axis=1, keepdims=True)
    size = fft.next_fast_len(span, real=True)
    spectrum = fft.rfft(parts[:, :window], size).conj() * fft.rfft(parts, size)
    products = fft.irfft(spectrum, size)[:, first_lag : first_lag + lags]
    sums = np.cumsum(np.square(parts), axis=1)
    energies = sums[:, window + first_lag - 1 :] - sums[:, first_lag - 1 : first_lag - 1 + lags]
    floor = window * noise_power
    return products / np.sqrt((sums[:, window - 1, None] + floor) * (energies.clip(min=0.0) + floor))


def _near_coarse_peaks(wav, noise_power, starts, sought):
    """True at the lags of full rate that are worth a look [frames, lags]."""
    first = max(1, sought.first // EVERY)
    correlation = _nccf(wav, starts // EVERY, 1 + WINDOW // EVERY, first, 1 + sought.count // EVERY, noise_power)
    rows, columns = _peaks(correlation)
    offsets, heights = _vertex(correlation, rows, columns)
    lags = (columns + first) * EVERY + (offsets * EVERY + 0.5).astype(int)
    heights = heights * (1 - lags * LAG_WEIGHT / sought.count)
    _, kept = _places(rows, heights)
    begin = (lags[kept] - PATCH // 2 - sought.first).clip(0, sought.count - PATCH)
    near = np.zeros((len(starts), sought.count), dtype=bool)
    near[rows[kept, None], begin[:, None] + np.arange(PATCH)] = True
    return near


def _peaks(correlation):
    """Frames and columns of the local maxima (plateaus too) above a part of each frame's highest value."""
    middle = correlation[:, 1:-2]
    high = middle > CANDIDATE_THRESHOLD * correlation.max(axis=1, keepdims=True).clip(min=0.0)
    rows, columns = np.nonzero(high & (middle >= correlation[:, :-3]) & (middle >= correlation[:, 2:-1]))
    return rows, columns + 1


def _vertex(values, rows, columns):
    """Where the parabola through a maximum and its neighbours peaks, relative to the maximum, and how high."""
    before, at, after = (values[rows, columns + i] for i in (-1, 0, 1))
    bend = before + after - 2 * at
    flat = np.abs(bend) < 1e-6
    offset = np.where(flat, 0.0, (before - after) / (2 * np.where(flat, 1.0, bend)))
    return offset, at - 0.5 * bend * np.square(offset)


def _places(rows, heights):
    """The place of each peak within its frame, by lag, and whether it is among the frame's highest."""
    order = np.lexsort((-heights, rows))
    kept = np.zeros(len(rows), dtype=bool)
    kept[order] = _rank(rows) < MAX_CANDIDATES
    place = np.full(len(rows), -1)
    place[kept] = _rank(rows[kept])
    return place, kept


def _rank(rows):
    """Counts 0, 1, … within each run of equal, sorted rows."""
    return np.arange(len(rows)) - np.searchsorted(rows, rows)


def _changes(wav, frames):
    """Ratio of RMS levels after / before a frame, and how stationary its spectrum is, both [frames]."""
    level, stationarity = np.ones(frames), np.full(frames, 0.02)  # where there is no past
    known = -(LEAD // HOP)  # first frame whose window is inside
    starts = np.arange(known, frames) * HOP + LEAD
    back = GAP // HOP  # frames to the window before
    if len(starts) <= back:
        return level, stationarity
    blocks = [starts[i : i + BLOCK] for i in range(0, len(starts), BLOCK)]
    parts = [_level_and_spectrum(wav, block) for block in blocks]
    rms, autocorrelation, predictor = map(np.concatenate, zip(*parts, strict=True))
    past = starts[back:] >= GAP
    level[known + back :] = np.where(past, rms[back:] / rms[:-back], 1.0)
    # Itakura's distance: how much more power another sound's predictor leaves than the sound's own
    other, own = (_residual(each, autocorrelation[:-back]) for each in (predictor[back:], predictor[:-back]))
    stationarity[known + back :] = np.where(past, 0.2 / (other / own - 0.8), 0.02)
    return level, stationarity


def _level_and_spectrum(wav, starts):
    """RMS [frames], autocorrelation and linear predictor [frames, order + 1] of windows."""
    parts = sliding_window_view(wav, SPAN)[starts]  # [frames, span]
    hann = _hann(SPAN)
    power = np.square(parts) @ np.square(hann) + NOISE_POWER * np.square(hann).sum()
    shaped = (parts[:, 1:] - PRE_EMPHASIS * parts[:, :-1]) * _hann(SPAN - 1)
    size = fft.next_fast_len(SPAN + ORDER, real=True)
    autocorrelation = fft.irfft(np.square(np.abs(fft.rfft(shaped, size))), size)[:, : ORDER + 1]
    noise = NOISE_POWER * np.square(hann).sum()
    autocorrelation[:, :2] += noise * np.array([1 + PRE_EMPHASIS**2, -PRE_EMPHASIS])
    autocorrelation /= autocorrelation[:, :1]
    autocorrelation[:, 1:] /= 1 + 10 ** (-WHITE_FLOOR_DB / 20)
    return np.sqrt(power / SPAN), autocorrelation, _linear_predictor(autocorrelation)


def _hann(size):
    return 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(size) + 0.5) / size)


def _linear_predictor(autocorrelation):
    """Durbin's recursion for all frames at once, [frames, order + 1] to [frames, order + 1] that begin with 1."""
    predictor = np.zeros_like(autocorrelation)
    predictor[:, 0] = 1.0
    error = autocorrelation[:, 0].copy()
    for i in range(1, autocorrelation.shape[1]):
        reflection = -(predictor[:, :i] * autocorrelation[:, i:0:-1]).sum(axis=1) / error
        predictor[:, 1 : i + 1] += reflection[:, None] * predictor[:, i - 1 :: -1]
        error *= 1 - np.square(reflection)
    return predictor


def _residual(predictor, autocorrelation):
    """Power that a filter leaves: its own autocorrelation weighted with the sound's."""
    order = predictor.shape[1] - 1
    own = [(predictor[:, : order + 1 - i] * predictor[:, i:]).sum(axis=1) for i in range(order + 1)]
    own = np.stack(own, axis=1)  # [frames, order + 1]
    own[:, 1:] *= 2
    return (own * autocorrelation).sum(axis=1)


def _best_path(candidates, level, stationarity):
    """Period of each frame, 0 where unvoiced [frames]. The last column of every table is the unvoiced candidate."""
    frames = len(candidates.unvoiced)
    switch = TRANSITION_COST + TRANSITION_SPECTRUM * stationarity
    begin = switch + TRANSITION_AMPLITUDE / level
    end = switch + TRANSITION_AMPLITUDE * level
    local = np.concatenate([candidates.costs, candidates.unvoiced[:, None]], axis=1)
    log_lags = np.log(candidates.lags)
    slope = FREQUENCY_WEIGHT * SAMPLE_RATE / HOP
    total = local[0]
    came_from = np.zeros(local.shape, dtype=int)
    step = np.zeros((local.shape[1], local.shape[1]))  # cost [to, from]
    for i in range(1, frames):
        change = np.abs(log_lags[i][:, None] - log_lags[i - 1])
        step[:-1, :-1] = slope * np.minimum(change, OCTAVE_COST + np.abs(change - np.log(2)))
        step[:-1, -1] = begin[i]
        step[-1, :-1] = end[i]
        sums = step + total
        came_from[i] = sums.argmin(axis=1)
        total = sums.min(axis=1) + local[i]
    periods, last = np.pad(candidates.periods, ((0, 0), (0, 1))), total.argmin()
    path = np.empty(frames)
    for i in reversed(range(frames)):
        path[i] = periods[i, last]
        last = came_from[i, last]
    return path
