# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How llama.cpp is compiled in half the time, where the speed outside of ggml does not matter. Pure data.

Private to this collection. CMake includes the text after each project() of llama.cpp's tree. ggml, which computes,
keeps its flags. The library llama, which builds graphs and samples, is compiled with -O1, the rest not optimised.
Units are large, because headers cost more than the code. Files that define or forbid what others in their unit use
stay alone. Tried with the pinned release of the role llama_cpp.
"""

from __future__ import annotations

import typing as t

FILE: t.Final = "quick_compile.cmake"
CMAKE: t.Final = """\
if(PROJECT_NAME STREQUAL "ggml")
  set(CMAKE_CXX_FLAGS_RELEASE "-O3 -DNDEBUG")
  return()
endif()
set(CMAKE_CXX_FLAGS_RELEASE "-O0 -DNDEBUG")
function(compile_in_large_units)
  foreach(name llama llama-common mtmd server-context llama-server-impl)
    if(TARGET ${name})
      set_target_properties(${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 16)
    endif()
  endforeach()
  if(TARGET llama-common)
    file(GLOB alone ${CMAKE_SOURCE_DIR}/common/json.cpp)
    set_source_files_properties(${alone} DIRECTORY common PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  endif()
  if(TARGET mtmd)
    file(GLOB alone ${CMAKE_SOURCE_DIR}/tools/mtmd/mtmd-helper*.cpp)
    set_source_files_properties(${alone} DIRECTORY tools/mtmd PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  endif()
  if(TARGET llama)
    target_compile_options(llama PRIVATE -O1)
    file(GLOB core ${CMAKE_SOURCE_DIR}/src/*.cpp)
    set_source_files_properties(${core} DIRECTORY src PROPERTIES SKIP_UNITY_BUILD_INCLUSION OFF)
  endif()
endfunction()
cmake_language(DEFER CALL compile_in_large_units)
"""
