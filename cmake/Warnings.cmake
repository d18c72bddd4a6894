# SPDX-License-Identifier: Apache-2.0
# ibnbd_warnings: an interface target that every one of our targets links.
add_library(ibnbd_warnings INTERFACE)
set(_common -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wundef)
target_compile_options(ibnbd_warnings INTERFACE
  ${_common}
  $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor -Wold-style-cast>
  # GCC 12 sees overflows in std::string's own inlined code that are not there (its bugs 105329 and
  # 105651); whether it does depends on the lengths of literals, even on that of the build's path.
  "$<$<AND:$<COMPILE_LANG_AND_ID:CXX,GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-array-bounds;-Wno-restrict;-Wno-stringop-overflow;-Wno-stringop-overread>"
  $<$<BOOL:${IBNBD_WERROR}>:-Werror>)
