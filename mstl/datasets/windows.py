"""Where to cut a window out of an endoscopic frame: on the finding, or off it, and off what is no tissue."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

BLACK = 30  # grey levels: in no channel brighter, so outside the field of view or on the overlay of the endoscope's position
CAPTION = 0.18  # of the width, from the left: date and patient fields are burnt in here
MOST_BLACK = 0.05  # of a window
GOAL = 2 / 3  # of a polyp's window lie on the polyp, where it is large enough: surface and edge are both seen
MARGIN = 0.02  # of the longer side that a window of the background keeps from the mask, whose edge is drawn by hand


class Window(NamedTuple):
    left: int
    top: int
    side: int


def black_share(image: Image.Image, side: int) -> np.ndarray:
    """Of the window of `side` pixels that starts at each place the share that is black, or greener than red, which no mucosa is.

    image RGB of W × H; the result is float (H − side + 1, W − side + 1), empty where the window is larger than the image.
    """
    red, green, blue = (np.asarray(band) for band in image.split())
    return _window_mean((np.maximum(np.maximum(red, green), blue) < BLACK) | (green > red.astype(np.int16) + 10), side)


def on_finding(mask: np.ndarray, black: np.ndarray, side: int) -> Window | None:
    """The window whose share of the mask comes nearest to two thirds (all of a smaller finding), then nearest to its centroid.

    mask bool (H, W), black as `black_share` gives it. None where every window that touches the mask is black in more than 5 %.
    """
    share = _window_mean(mask, side)
    usable = (black <= MOST_BLACK) & (share > 0)
    if not usable.any():
        return None
    miss = np.abs(share - min(GOAL, share[usable].max()))
    tops, lefts = np.nonzero(usable & (miss <= miss[usable].min() + 0.005))
    y, x = np.nonzero(mask)
    away = np.hypot(lefts + side / 2 - x.mean() - 0.5, tops + side / 2 - y.mean() - 0.5)
    at = int(np.argmin(np.round(away, 6)))
    return Window(int(lefts[at]), int(tops[at]), side)


def off_finding(mask: np.ndarray, black: np.ndarray, side: int, random: np.random.Generator) -> Window | None:
    """A window drawn at random among those that keep their distance from the mask: with nothing black and right of the burnt-in
    caption, else with up to 5 % black, else on the caption too. None where there is no room."""
    margin = max(1, round(MARGIN * max(mask.shape)))
    room = (_window_mean(np.pad(mask, margin), side + 2 * margin) == 0) & (black <= MOST_BLACK)
    clear = room.copy()
    clear[:, : round(CAPTION * mask.shape[1])] = False
    for choice in (clear & (black == 0), clear, room):
        places = np.flatnonzero(choice)
        if len(places):
            top, left = divmod(int(random.choice(places)), choice.shape[1])
            return Window(left, top, side)
    return None


def _window_mean(values: np.ndarray, side: int) -> np.ndarray:
    """The mean of every window of `side` pixels in `values` (H, W) bool."""
    height, width = values.shape
    if min(height, width) < side:
        return np.zeros((0, 0))
    total = np.zeros((height + 1, width + 1), np.int32)
    np.cumsum(values, 0, np.int32, out=total[1:, 1:])
    np.cumsum(total, 1, np.int32, out=total)
    return (total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]) / side**2
