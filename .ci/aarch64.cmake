# Cross-compiles the extension for 64-bit ARM on Debian and Ubuntu (g++-aarch64-linux-gnu): `nox -s aarch64`.
# The headers are those of the Python that builds, whose pyconfig.h says of both architectures the same.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(PYTHON_MODULE_EXTENSION .so CACHE STRING "Suffix of the extension")
