# Libraries that are used and not written here: Debian's packages, and libtorch of the PyPI wheel.
# Header-only: torch ships a newer fmt among its headers, and a file sees whichever comes first.
find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(HWY QUIET)
if(NOT TARGET hwy::hwy)
  find_package(PkgConfig REQUIRED)
  pkg_check_modules(HWY REQUIRED IMPORTED_TARGET libhwy)
  add_library(hwy::hwy ALIAS PkgConfig::HWY)
endif()
find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(ZSTD REQUIRED IMPORTED_TARGET libzstd)
pkg_check_modules(LIBCRYPTO REQUIRED IMPORTED_TARGET libcrypto)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
find_package(ZLIB REQUIRED)
find_package(GTest REQUIRED)
find_package(benchmark REQUIRED)

if(MDN_TORCH)
  # The wheel's TorchConfig.cmake insists on a CUDA toolkit; the libraries themselves do not, so
  # they are named here one by one.
  find_package(CLI11 REQUIRED)
  set(MDN_VENV ${CMAKE_SOURCE_DIR}/.venv CACHE PATH "Python environment that holds torch")
  set(MDN_PYTHON ${MDN_VENV}/bin/python3 CACHE FILEPATH "Its interpreter (elsewhere: any with torch)")
  execute_process(
    COMMAND ${MDN_PYTHON} -c
            "import importlib.util as u, os; print(os.path.dirname(u.find_spec('torch').origin))"
    OUTPUT_VARIABLE MDN_TORCH_DIR OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "no torch found by ${MDN_PYTHON}: run `make setup`, or give "
                        "-DMDN_PYTHON=<interpreter that has torch 2.11>")
  endif()
  get_filename_component(MDN_SITE ${MDN_TORCH_DIR} DIRECTORY)
  file(GLOB MDN_NVIDIA_LIBS ${MDN_SITE}/nvidia/*/lib)

  function(mdn_torch_library name)
    add_library(torch::${name} SHARED IMPORTED GLOBAL)
    set_target_properties(torch::${name} PROPERTIES IMPORTED_LOCATION
                                                    ${MDN_TORCH_DIR}/lib/lib${name}.so)
    target_include_directories(torch::${name} SYSTEM INTERFACE
      ${MDN_TORCH_DIR}/include ${MDN_TORCH_DIR}/include/torch/csrc/api/include)
  endfunction()
  mdn_torch_library(c10)
  mdn_torch_library(torch_cpu)
  set(MDN_TORCH_RPATH ${MDN_TORCH_DIR}/lib ${MDN_NVIDIA_LIBS})
  list(APPEND CMAKE_BUILD_RPATH ${MDN_TORCH_RPATH})
  add_library(mdn_torch INTERFACE)
  # Above torch no loop of ours counts, and optimising its templates takes a third of a file's time.
  target_compile_options(mdn_torch INTERFACE $<$<AND:$<CONFIG:Release>,$<COMPILE_LANGUAGE:CXX>>:-O1>)
  # libtorch_cpu.so needs libcudart and libcupti, which live in wheels of their own.
  target_link_libraries(mdn_torch INTERFACE torch::torch_cpu torch::c10)
  target_link_options(mdn_torch INTERFACE -Wl,--allow-shlib-undefined)
  if(MDN_CUDA)
    mdn_torch_library(torch_cuda)
    mdn_torch_library(c10_cuda)
    # Nothing calls libtorch_cuda directly: without --no-as-needed the CUDA backend is dropped.
    target_link_libraries(mdn_torch INTERFACE -Wl,--no-as-needed torch::torch_cuda torch::c10_cuda
                                              -Wl,--as-needed)
  endif()
endif()
