from __future__ import annotations

from native_examples import cuda_examples
from native_fuzz import fuzz, load


def test_no_wrong_argument_of_a_cuda_kernel_ends_the_process_or_is_accepted(device_libraries):
    extension = str(device_libraries[1])  # its device has the memory of the host
    for name in cuda_examples(load(extension, "emulated_cuda")):
        assert fuzz(extension, "emulated_cuda", name) >= 1
