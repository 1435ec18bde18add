"""Recordings as spectra: the right band, whatever the loudness and the silence after it; the contract of a student."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streamkd_crossmodal.sound import SoundOptions, SoundStudent, Spectrum, streamkd_students, triangles

from streamkd import testing
from streamkd.errors import PluginError
from streamkd.records import InputColumn, RecordSchema

OPTIONS = SoundOptions(bands=20, frames=4)
SCHEMA = RecordSchema(inputs=(InputColumn(name="sound", shape=(1_000,)),))


def tone(frequency: float, samples: int = 2_000, room: int = 4_000) -> torch.Tensor:
    wave = torch.sin(2 * math.pi * frequency * torch.arange(samples) / 8_000)
    return torch.nn.functional.pad(wave, (0, room - samples))


@pytest.mark.parametrize("hidden", [0, 7])
def test_the_student_keeps_its_contract(hidden: int) -> None:
    """Row by row, a head that grows, copies and states."""
    [kind] = streamkd_students()
    testing.check_student(kind, {"bands": 8, "frames": 3, "hidden": hidden}, SCHEMA)


@settings(deadline=None, max_examples=20)
@given(st.integers(8, 100))
def test_bands_share_each_frequency(bands: int) -> None:
    """Between the first middle and the last the triangles sum to 1 everywhere, and none is above."""
    found = triangles(8_000, 8_192, bands)
    frequencies = torch.arange(4_097) * 8_000 / 8_192
    first, last = (frequencies[found[row].argmax()] for row in (0, -1))
    inside = (frequencies > first + 1) & (frequencies < last - 1)
    torch.testing.assert_close(found.sum(0)[inside], torch.ones(int(inside.sum())), rtol=0, atol=1e-3)
    assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize("frequency", [300.0, 1_000.0, 3_000.0])
def test_a_tone_is_loudest_in_its_own_band(frequency: float) -> None:
    """The band whose middle is nearest in mel, at all times."""
    mels = torch.linspace(0, 2_595 * math.log10(1 + 4_000 / 700), 22)[1:-1]
    nearest = (mels - 2_595 * math.log10(1 + frequency / 700)).abs().argmin()
    found = Spectrum(OPTIONS)(tone(frequency).unsqueeze(0)).reshape(20, 4)
    assert found.argmax(0).tolist() == [int(nearest)] * 4


def test_loudness_and_silence_tell_nothing() -> None:
    """A quarter of a noise, and more room after it, have nearly the same spectra; another noise has not."""
    draw = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 2_000, generator=draw).clamp(-1, 1)
    spectra = Spectrum(OPTIONS)
    whole, quiet, roomy, another = (
        spectra(torch.nn.functional.pad(row, (0, room)).unsqueeze(0))[0]
        for row, room in ((one, 500), (one / 4, 500), (one, 3_000), (other, 500))
    )
    apart = (whole - another).norm()
    assert (whole - quiet).norm() < 0.05 * apart
    assert (whole - roomy).norm() < 0.05 * apart


def test_silence_and_nothing_are_finite() -> None:
    """A recording of zeros, and no recording at all."""
    assert Spectrum(OPTIONS)(torch.zeros(2, 1_000)).isfinite().all()
    assert Spectrum(OPTIONS)(torch.zeros(0, 1_000)).shape == (0, 80)


@pytest.mark.parametrize("shape", [(8, 8), (100,)])
def test_what_is_no_recording_is_refused(shape: tuple[int, ...]) -> None:
    """In words, with a column that is one."""
    with pytest.raises(PluginError, match=r"needed one column of 256 samples or more.*[\s\S]*pad: true"):
        SoundStudent(SoundOptions(), shape, 2)
