# SPDX-License-Identifier: Apache-2.0
# ibnbd_sanitizers: an interface target that carries what IBNBD_SANITIZE asks for.
add_library(ibnbd_sanitizers INTERFACE)
if(IBNBD_SANITIZE STREQUAL "address")
  set(_san -fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=undefined)
elseif(IBNBD_SANITIZE STREQUAL "thread")
  set(_san -fsanitize=thread -fno-omit-frame-pointer)
elseif(NOT IBNBD_SANITIZE STREQUAL "")
  message(FATAL_ERROR "IBNBD_SANITIZE=${IBNBD_SANITIZE}: say address, thread, or nothing")
endif()
if(IBNBD_BUILD_FUZZERS AND IBNBD_SANITIZE STREQUAL "address")
  list(APPEND _san -fsanitize=fuzzer-no-link)  # libFuzzer follows the libraries, too.
endif()
# Instrumented code hides from GCC what it has initialised: std::regex "may be used uninitialized".
target_compile_options(ibnbd_sanitizers INTERFACE ${_san}
  $<$<AND:$<CXX_COMPILER_ID:GNU>,$<BOOL:${IBNBD_SANITIZE}>>:-Wno-maybe-uninitialized>)
target_link_options(ibnbd_sanitizers INTERFACE ${_san})
