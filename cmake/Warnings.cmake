# SPDX-License-Identifier: Apache-2.0
# ibnbd_warnings: an interface target that every one of our targets links.
add_library(ibnbd_warnings INTERFACE)
set(_common -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wundef)
target_compile_options(ibnbd_warnings INTERFACE
  ${_common}
  $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor -Wold-style-cast>
  $<$<BOOL:${IBNBD_WERROR}>:-Werror>)
