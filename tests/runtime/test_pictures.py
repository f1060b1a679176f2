"""Pictures have ticks that can be read, and appear when they are whole."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from runtime.pictures import BLUE, draw_steps, finish_steps, new_figure, save_figure, scale_by_powers


@pytest.mark.parametrize("values", [(57.3, 61.2), (3, 900), (0.02, 40_000)])
def test_a_logarithmic_scale_has_plain_numbers_however_short_it_is(values: tuple[float, float]) -> None:
    figure = new_figure("title", 4, 3)
    axes = figure.add_subplot()
    draw_steps(
        axes, [{"step": 1, "flops": values[0]}, {"loss": 2}, {"step": 3, "flops": values[1]}], "flops", BLUE
    )
    scale_by_powers(axes)
    finish_steps(axes, "flops")
    figure.draw_without_rendering()
    low, high = axes.get_ylim()
    shown = [tick.label1.get_text() for tick in axes.yaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert 3 <= len(shown) <= 12
    assert all(float(label.replace(",", "")) > 0 for label in shown)
    assert all(float(step).is_integer() for step in axes.get_xticks())


def test_a_picture_that_cannot_be_drawn_leaves_nothing(tmp_path: Path) -> None:
    figure = new_figure("$\\frac{$", 4, 3)  # no formula
    with pytest.raises(ValueError, match="frac"):
        save_figure(figure, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
    save_figure(new_figure("title", 4, 3), tmp_path / "folder" / "a.png")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a.png"]
