# Adds the CUDA kernels to _native as HVP_ENGINE_CUDA says. The runtime is linked statically and asks for the driver
# only when a kernel is used: a module built here imports on a machine without one.

string(TOLOWER "${HVP_ENGINE_CUDA}" hvp_cuda_wish)
if(NOT hvp_cuda_wish MATCHES "^(auto|on|off|1|0|true|false|yes|no)$")
  message(FATAL_ERROR "HVP_ENGINE_CUDA is '${HVP_ENGINE_CUDA}'; use auto, on or off.")
endif()
if(hvp_cuda_wish MATCHES "^(off|0|false|no)$")
  message(STATUS "CUDA kernels: off")
  return()
endif()

# The nvcc that CMake is going to take: its architectures are asked below, and another one's would not build.
if(CMAKE_CUDA_COMPILER)
  set(hvp_nvcc ${CMAKE_CUDA_COMPILER})
elseif(DEFINED ENV{CUDACXX})
  get_filename_component(hvp_nvcc "$ENV{CUDACXX}" PROGRAM)
else()
  find_program(HVP_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin PATHS /usr/local/cuda/bin)
  set(hvp_nvcc ${HVP_NVCC})
  if(HVP_NVCC)
    set(ENV{CUDACXX} ${HVP_NVCC})
  endif()
endif()

# Machine code for the main architectures that this nvcc knows, and PTX of the newest of them for those to come.
set(hvp_cuda_architectures "")
if(hvp_nvcc)
  execute_process(COMMAND ${hvp_nvcc} --list-gpu-arch OUTPUT_VARIABLE hvp_nvcc_lists ERROR_QUIET)
  foreach(architecture 70 75 80 90 100 120)
    if(hvp_nvcc_lists MATCHES "compute_${architecture}\n")
      list(APPEND hvp_cuda_architectures ${architecture})
    endif()
  endforeach()
endif()
if(hvp_cuda_architectures)
  list(POP_BACK hvp_cuda_architectures hvp_cuda_newest)
  list(TRANSFORM hvp_cuda_architectures APPEND "-real")
  list(APPEND hvp_cuda_architectures ${hvp_cuda_newest})
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES ${hvp_cuda_architectures})
  endif()
  include(CheckLanguage)
  check_language(CUDA)
endif()
if(NOT hvp_cuda_architectures OR NOT CMAKE_CUDA_COMPILER)
  if(hvp_cuda_wish STREQUAL "auto")
    message(STATUS "CUDA kernels: off (no working nvcc found)")
    return()
  endif()
  message(FATAL_ERROR "HVP_ENGINE_CUDA=${HVP_ENGINE_CUDA}, but no working nvcc was found; install the CUDA toolkit, "
                      "set CUDACXX to its nvcc, or set HVP_ENGINE_CUDA=off.")
endif()

enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
message(STATUS "CUDA kernels: on, for ${CMAKE_CUDA_ARCHITECTURES} (${CMAKE_CUDA_COMPILER})")
add_library(hvp_cuda OBJECT
  csrc/cuda/reorthogonalize.cu
  csrc/cuda/lanczos_step.cu
  csrc/cuda/tridiagonal.cu
  csrc/cuda/device.cu
)
target_include_directories(hvp_cuda PRIVATE csrc/include)
target_compile_options(hvp_cuda PRIVATE --compiler-options=-Wall,-Wextra
                                        $<$<BOOL:${HVP_ENGINE_WERROR}>:--Werror=all-warnings>)
set_target_properties(hvp_cuda PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF
                                          CUDA_VISIBILITY_PRESET hidden CUDA_RUNTIME_LIBRARY Static)
target_sources(_native PRIVATE
  csrc/bindings/cuda_device.cpp
  csrc/bindings/cuda_lanczos_step.cpp
  csrc/bindings/cuda_reorthogonalize.cpp
  csrc/bindings/cuda_tridiagonal.cpp
)
target_compile_definitions(_native PRIVATE HVP_ENGINE_WITH_CUDA)
target_link_libraries(_native PRIVATE hvp_cuda CUDA::cudart_static)
set_target_properties(_native PROPERTIES LINKER_LANGUAGE CXX)
