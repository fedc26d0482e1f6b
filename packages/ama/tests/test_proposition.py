"""Proposition 5.1: simulation against exact enumeration, closed forms, and the signs that algebra gives."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from reproalign.ama.cli import main
from reproalign.ama.study.features import (
    DISJOINT,
    FORMS,
    OUTPUT,
    SINGLE,
    WEIGHT,
    Setting,
    closed_forms,
    gaussian_accuracy,
    simulate,
)

WEIGHTS = {SINGLE: (1, 1, 0), OUTPUT: (2, 1, 1), WEIGHT: (4, 1, 1), DISJOINT: (2, 1, 0)}  # shared, own, the other's


def exact(setting: Setting, form: str) -> float:
    """Accuracy by going through every answer of every feature."""
    own = setting.features - setting.overlap
    weights = [WEIGHTS[form][0]] * setting.overlap + [WEIGHTS[form][1]] * own + [WEIGHTS[form][2]] * own
    shares = [setting.p / setting.classes] * setting.classes
    shares[0] += 1 - setting.p
    total = 0.0
    for answers in product(range(setting.classes), repeat=len(weights)):
        scores = np.bincount(answers, weights=weights, minlength=setting.classes)
        top = scores == scores.max()
        total += float(np.prod([shares[answer] for answer in answers])) * top[0] / top.sum()
    return total


@pytest.mark.parametrize("setting", [Setting(3, 0.8, 3, 1), Setting(2, 0.5, 4, 2), Setting(4, 1.0, 2, 0)])
def test_the_simulation_agrees_with_enumeration(setting: Setting) -> None:
    """R16: F_p of every form of averaging, by simulation and by enumeration."""
    found = simulate(setting, 60_000, seed=0)
    for form in FORMS:
        assert abs(found[form].value - exact(setting, form)) < 4.5 * found[form].stderr + 1e-9


def test_published_accuracies_come_out_within_error() -> None:
    expected = {15: (0.769, 0.794, 0.768, 0.761), 5: (0.768, 0.849, 0.786, 0.748)}
    for overlap, values in expected.items():
        found = simulate(Setting(3, 0.8, 20, overlap), 200_000, seed=0)
        for form, value in zip(FORMS, values, strict=True):
            assert abs(found[form].value - value) < 0.0005 + 3 * found[form].stderr


def test_the_gaussian_form_is_about_a_hundredth_too_high_at_twenty_features() -> None:
    setting = Setting(3, 0.8, 20, 15)
    found = simulate(setting, 200_000, seed=1)
    for value in found.values():
        assert 0.007 < value.closed - value.value < 0.016


def test_closed_forms_meet_where_nothing_or_everything_is_shared() -> None:
    """R16: closed forms that must agree at either end of the overlap."""
    nothing, everything = (closed_forms(Setting(3, 0.7, 12, overlap)) for overlap in (0, 12))
    assert nothing[OUTPUT] == pytest.approx(nothing[WEIGHT])
    assert nothing[SINGLE] == pytest.approx(nothing[DISJOINT])
    assert max(everything.values()) == pytest.approx(min(everything.values()))


@pytest.mark.parametrize("overlap", range(1, 20))
def test_averaged_weights_lose_where_more_than_half_is_shared(overlap: int) -> None:
    forms = closed_forms(Setting(2, 0.6, 20, overlap))
    assert np.sign(round(forms[WEIGHT] - forms[SINGLE], 9)) == np.sign((20 - overlap) * (20 - 2 * overlap))
    assert forms[OUTPUT] > forms[SINGLE]
    assert forms[WEIGHT] > forms[DISJOINT]
    assert forms[DISJOINT] < forms[SINGLE]


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_without_a_signal_every_class_is_as_likely(classes: int) -> None:
    assert gaussian_accuracy(0.0, classes, 1.0) == pytest.approx(1 / classes, abs=1e-4)


def test_a_setting_draws_the_same_whatever_else_is_swept(tmp_path: Path) -> None:
    common = ["study", "proposition", "samples=2000", "features=[8]"]
    assert main([*common, "overlap=[4]", f"output_dir={tmp_path / 'one'}"]) == 0
    assert main([*common, "overlap=[2,4]", "classes=[2,3]", f"output_dir={tmp_path / 'more'}"]) == 0
    (alone,), more = (json.loads((tmp_path / name / "proposition.json").read_text()) for name in ("one", "more"))
    assert alone in more
    assert len(more) == 4


@pytest.mark.parametrize(
    "arguments,message",
    [
        ("p=[0]", "p[0]=0.0 must be above 0 and at most 1"),
        ("classes=[1]", "classes[0]=1 must be at least 2"),
        ("overlap=[30]", "overlap=[30]: 30 is above the number of features 20"),
        ("samples=10", "samples=10 must be at least 1000"),
        ("features=[]", "features=[] must be one or more different values"),
    ],
)
def test_settings_out_of_range_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    assert main(["study", "proposition", arguments, f"output_dir={tmp_path / 'out'}"]) == 2
    assert message in capsys.readouterr().err
