"""Where a model's features come from: a cache, or one for each gender."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch

from speechbrain_ser.dataio import RESAMPLER, load_audio
from speechbrain_ser.errors import UserError
from speechbrain_ser.processing.feature_cache import FeatureCache


def feature_source(features, folder: str | os.PathLike, frame: pd.DataFrame):
    """A cache of features for the utterances of a manifest.

    Arguments
    ---------
    features : object
        Has ``settings`` and ``extract``; where it has ``by_gender``, such objects by gender, they are asked instead.
    folder : str or os.PathLike
        Of the cache.
    frame : pandas.DataFrame
        Rows of a manifest: wav, gender, speaker.

    Returns
    -------
    FeatureCache or ByGender
        Gives the features of a recording's path.

    Raises
    ------
    UserError
        Where features depend on the gender and some speakers have none.
    """
    by_gender = getattr(features, "by_gender", None)
    if not by_gender:
        settings = {**features.settings, "resampler": RESAMPLER}
        return FeatureCache(folder, settings, features.extract, load_audio)
    unknown = frame.loc[~frame["gender"].isin(by_gender), "speaker"]
    if len(unknown):
        raise UserError(
            f"a range of F0 for each gender needs the gender of every speaker ({' or '.join(by_gender)}); "
            f"{len(unknown)} utterances have none, of speakers {', '.join(sorted(set(unknown))[:20])}"
        )
    caches = {gender: feature_source(each, folder, frame) for gender, each in by_gender.items()}
    return ByGender(caches, dict(zip(frame["wav"], frame["gender"], strict=True)))


class ByGender:
    """Features by recording, extracted in the way of its speaker's gender.

    Arguments
    ---------
    caches : mapping of str to FeatureCache
        By gender.
    gender_of : mapping of str to str
        By path.
    """

    def __init__(self, caches: Mapping[str, FeatureCache], gender_of: Mapping[str, str]):
        self.caches, self.gender_of = caches, gender_of

    def __getitem__(self, path: str | Path) -> torch.Tensor:
        """The features of a recording, the caller's own to change."""
        path = os.fspath(path)
        return self.caches[self.gender_of[path]][path]

    def fill(self, paths: Sequence[str], progress: bool = True) -> int:
        """Compute what is missing; returns how many recordings had to be computed."""
        return sum(
            cache.fill([p for p in paths if self.gender_of[os.fspath(p)] == gender], progress)
            for gender, cache in self.caches.items()
        )
