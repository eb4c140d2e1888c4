# Flags of every target, compiler cache and linker.
find_program(MDN_CCACHE ccache)
if(MDN_CCACHE)
  # base_dir: a second clone finds what the first one compiled. The sloppiness lets ccache see
  # through the precompiled header.
  set(MDN_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1
                   CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
                   ${MDN_CCACHE})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${MDN_LAUNCHER})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${MDN_LAUNCHER})
endif()
find_program(MDN_MOLD mold)
if(MDN_MOLD)
  add_link_options($<$<LINK_LANGUAGE:CXX>:-fuse-ld=mold>)
endif()

set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG") # the kernels choose -O3, what is above torch -O1
add_library(mdn_flags INTERFACE)
target_include_directories(mdn_flags INTERFACE ${CMAKE_SOURCE_DIR})
target_compile_options(
  mdn_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow
                      -Wno-unknown-pragmas -fpch-preprocess
                      -fPIC>) # for programs too, so that they share the precompiled header
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  target_compile_options(mdn_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-unused-command-line-argument>)
endif()
if(MDN_SANITIZE)
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=undefined>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>)
  add_link_options(-fsanitize=address,undefined)
  set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O1 -g1 -DNDEBUG")
endif()
if(MDN_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
    message(FATAL_ERROR "MDN_FUZZ=ON needs clang (-DCMAKE_CXX_COMPILER=clang++): libFuzzer is its part")
  endif()
  add_compile_options($<$<COMPILE_LANGUAGE:CXX>:-fsanitize=fuzzer-no-link,address,undefined>
                      $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=undefined>)
  add_link_options(-fsanitize=address,undefined)
endif()
