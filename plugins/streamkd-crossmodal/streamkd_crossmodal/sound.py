"""The student ``sound``: a small network over the log-mel spectrum of a recording, also the body of a teacher.

    samples ─► without the silence it ends in ─► power spectrum ─► mel bands ─► log ─► stretched to ``frames``
            ─► mean 0, variance 1 ─► ReLU layer ─► head

Mel bands as in Davis & Mermelstein 1980: triangles, evenly spaced in mel(f) = 2595 log10(1 + f / 700). Loud or quiet,
fast or slow, a word has nearly the same spectrum.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from streamkd.api import Kind, Options, PluginError, hookimpl

WINDOW = 0.032  # seconds of a spectrum; half of it lies between two
FLOOR = 1e-6  # power that counts as silence, of samples from -1 to 1


class SoundOptions(Options):
    """What a recording is cut into, and the layer over it."""

    rate: int = Field(default=8_000, ge=1_000, description="samples a second")
    bands: int = Field(default=32, ge=4, le=256, description="mel bands of a spectrum")
    frames: int = Field(default=16, ge=1, le=1_024, description="spectra of a recording, whatever its length")
    hidden: int = Field(
        default=256, ge=0, description="width of the layer under the head; 0: the head reads the spectra"
    )


class Spectrum(nn.Module):
    """Samples [batch, samples] of -1 to 1 to log-mel spectra [batch, frames · bands], each of mean 0 and variance 1."""

    window: Tensor
    mel: Tensor

    def __init__(self, options: SoundOptions) -> None:
        super().__init__()
        self.length = 1 << round(WINDOW * options.rate).bit_length() - 1
        self.frames = options.frames
        self.register_buffer("window", torch.hann_window(self.length), persistent=False)
        self.register_buffer("mel", triangles(options.rate, self.length, options.bands), persistent=False)

    def forward(self, x: Tensor) -> Float[Tensor, "batch features"]:
        if not len(x):
            return x.new_zeros(0, self.mel.shape[0] * self.frames)
        power = torch.stft(x, self.length, self.length // 2, window=self.window, return_complex=True).abs() ** 2
        spectra = (self.mel @ power / self.length + FLOOR).log()
        last = (x.abs() > 0).int().cumsum(1).argmax(1) * 2 // self.length + 1  # spectra before the silence
        rows = [F.adaptive_avg_pool1d(row[:, :n], self.frames) for row, n in zip(spectra, last.tolist(), strict=True)]
        flat = torch.stack(rows).flatten(1)
        return F.layer_norm(flat, flat.shape[1:])


class SoundStudent(nn.Module):
    """Recordings [batch, samples] of -1 to 1 to logits [batch, classes]."""

    def __init__(self, options: SoundOptions, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.spectrum = Spectrum(options)
        if len(shape) != 1 or shape[0] < self.spectrum.length:
            raise PluginError(
                f"needed one column of {self.spectrum.length} samples or more, got records of {list(shape)}",
                where="student sound",
                fix="inputs: [{name: sound, shape: [8000], dtype: int16, scale: 0.0000305, pad: true}]; beside others "
                "name it under student, or under columns of the teacher",
            )
        width = options.bands * options.frames
        self.hidden = nn.Linear(width, options.hidden) if options.hidden else None
        self.head = nn.Linear(options.hidden or width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.spectrum(x)
        return self.head(h if self.hidden is None else torch.relu(self.hidden(h)))


def triangles(rate: int, length: int, bands: int) -> Float[Tensor, "bands frequencies"]:
    """What each band takes of each frequency of a spectrum: 1 in its middle, 0 at the middles of its neighbours."""
    top = 2_595 * torch.log10(torch.tensor(1 + rate / 2 / 700))
    middles = 700 * (10 ** (torch.linspace(0, float(top), bands + 2) / 2_595) - 1)
    frequencies = torch.arange(length // 2 + 1) * rate / length
    below, here, above = middles[:-2, None], middles[1:-1, None], middles[2:, None]
    rising, falling = (frequencies - below) / (here - below), (above - frequencies) / (above - here)
    return torch.minimum(rising, falling).clamp_min(0)


@hookimpl
def streamkd_students() -> Iterable[Kind]:
    """The one student."""
    yield Kind("sound", SoundStudent, SoundOptions, "a small network over the log-mel spectrum of a recording")
