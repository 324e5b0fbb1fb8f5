import itertools

import pytest
from matplotlib.figure import Figure

from hvp_engine.experiments.point_labels import place_labels


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.2])
def test_labels_of_close_points_do_not_cover_each_other_and_stay_inside(spread):
    figure = Figure(figsize=(3.0, 2.5), layout="constrained")
    axes = figure.add_subplot()
    points = [(0.5 + spread * i, 0.1 + 0.3 * spread * i) for i in range(5)]
    axes.plot(*zip(*points, strict=True), "o")
    axes.set(xlim=(0.0, 1.5), ylim=(0.0, 1.0))
    names = ["random LM", "gpt", "pre-trained LM", "resnet", "mixer"]
    place_labels(axes, points, names)
    figure.draw_without_rendering()
    extents = [text.get_window_extent() for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == names
    assert not any(one.overlaps(other) for one, other in itertools.combinations(extents, 2))
    inside = axes.get_window_extent()
    assert all(inside.x0 <= e.x0 and e.x1 <= inside.x1 and inside.y0 <= e.y0 and e.y1 <= inside.y1 for e in extents)
    assert not any(extent.contains(*axes.transData.transform(point)) for extent in extents for point in points)


def test_a_label_begins_above_its_point_and_towards_the_middle():
    axes = Figure().add_subplot()
    axes.plot([0.0, 1.0], [0.5, 0.5], "o")
    place_labels(axes, [(0.0, 0.5), (1.0, 0.5)], ["left", "right"])
    assert [text.get_ha() for text in axes.texts] == ["left", "right"]
    assert all(text.xyann[1] > 0.0 for text in axes.texts)


def test_more_labels_than_there_is_room_for_are_all_written():
    axes = Figure(figsize=(1.0, 1.0)).add_subplot()
    place_labels(axes, [(0.5, 0.5)] * 40, ["the same"] * 40)
    assert len(axes.texts) == 40
