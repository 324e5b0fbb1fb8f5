import torch

from hvp_engine.experiments.remembered import remembered


def test_what_is_first_asked_for_on_the_meta_device_has_numbers_for_all_others():
    @remembered(1)
    def load(n):
        return torch.arange(n)

    with torch.device("meta"):
        first = load(3)
    assert first.device.type == "cpu"
    assert load(3) is first
    assert load(3).tolist() == [0, 1, 2]


def test_only_the_latest_results_are_kept():
    calls = []

    @remembered(1)
    def load(name):
        calls.append(name)
        return name

    for name in ("a", "a", "b", "a"):
        load(name)
    assert calls == ["a", "b", "a"]


def test_a_file_that_is_edited_in_place_is_read_again(tmp_path):
    @remembered(2)
    def load(name, paths):
        return dict(paths)[name].read_text()

    file = tmp_path / "text.txt"
    for text in ("abc", "abc", "abcd"):
        file.write_text(text)
        assert load("text", (("text", file),)) == text
    assert load("gone", (("gone", file), ("other", tmp_path / "other"))) == "abcd"
