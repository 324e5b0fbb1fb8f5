"""The table of spectra."""

from random_spectra import random_spectra

from hvp_engine.results.table import summary_table
from hvp_engine.system.formatting import format_number, format_with_error


def test_summary_has_every_block_and_its_numbers():
    spectra = random_spectra(3)
    lines = spectra.summary().splitlines()
    for name, spectrum in spectra.items():
        (line,) = [line for line in lines if line.startswith(name)]
        assert f"{spectrum.numel:,}" in line
        assert format_with_error(*spectrum.trace()) in line
        assert format_number(spectrum.extremes()[1]) in line
        assert "4–5" in line
    assert format_number(spectra.js0(), 3) in lines[-1]
    assert summary_table(spectra, spectra.js_distance()).row_count == 3
    assert "nan" not in random_spectra(1, probes=1).summary()
