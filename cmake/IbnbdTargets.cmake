# SPDX-License-Identifier: Apache-2.0
# Every target of the project is made by one of these functions, so that warnings, sanitizers,
# include paths and the ban on exceptions are said once.

function(_ibnbd_common target)
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/libibnbd)
  target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:ibnbd_warnings> $<BUILD_INTERFACE:ibnbd_sanitizers>)
  target_compile_definitions(${target} PRIVATE
    $<$<CONFIG:Debug>:_GLIBCXX_ASSERTIONS IBNBD_DCHECKS=1>
    $<$<BOOL:${IBNBD_CANARY}>:IBNBD_CANARY=1>)
endfunction()

# ibnbd_library(NAME rtrs SRCS ... HDRS ... DEPS ... [EXCEPTIONS])
# A static library of one layer.  HDRS are compiled one by one by the target
# all_verify_interface_header_sets.  A library without SRCS is an interface library.
function(ibnbd_library)
  cmake_parse_arguments(A "EXCEPTIONS" "NAME" "SRCS;HDRS;DEPS" ${ARGN})
  if(A_SRCS)
    add_library(${A_NAME} STATIC ${A_SRCS})
    _ibnbd_common(${A_NAME})
    target_link_libraries(${A_NAME} PUBLIC ${A_DEPS})
    set(_scope PUBLIC)
    if(NOT A_EXCEPTIONS)
      target_compile_options(${A_NAME} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fno-exceptions>)
    endif()
  else()
    add_library(${A_NAME} INTERFACE)
    target_link_libraries(${A_NAME} INTERFACE ${A_DEPS})
    set(_scope INTERFACE)
  endif()
  target_include_directories(${A_NAME} ${_scope} ${CMAKE_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/libibnbd)
  if(A_HDRS)
    target_sources(${A_NAME} ${_scope} FILE_SET HEADERS BASE_DIRS ${CMAKE_SOURCE_DIR} FILES ${A_HDRS})
    set_target_properties(${A_NAME} PROPERTIES VERIFY_INTERFACE_HEADER_SETS ON)
  endif()
endfunction()

# ibnbd_program(NAME ibnbd-server SRCS ... DEPS ... [EXCEPTIONS])
function(ibnbd_program)
  cmake_parse_arguments(A "EXCEPTIONS" "NAME" "SRCS;DEPS" ${ARGN})
  add_executable(${A_NAME} ${A_SRCS})
  _ibnbd_common(${A_NAME})
  target_link_libraries(${A_NAME} PRIVATE ${A_DEPS})
  if(NOT A_EXCEPTIONS)
    target_compile_options(${A_NAME} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fno-exceptions>)
  endif()
endfunction()

# ibnbd_test(NAME rtrs_imm_test SRCS ... DEPS ... [LABELS unit] [TIMEOUT 60])
# A GoogleTest program, registered with CTest as one test: the whole file runs in milliseconds.
function(ibnbd_test)
  cmake_parse_arguments(A "" "NAME;TIMEOUT" "SRCS;DEPS;LABELS;ARGS" ${ARGN})
  if(NOT IBNBD_BUILD_TESTS)
    return()
  endif()
  if(NOT A_LABELS)
    set(A_LABELS unit)
  endif()
  if(NOT A_TIMEOUT)
    set(A_TIMEOUT 120)
  endif()
  add_executable(${A_NAME} ${A_SRCS})
  _ibnbd_common(${A_NAME})
  target_link_libraries(${A_NAME} PRIVATE ${A_DEPS} GTest::gmock GTest::gtest_main)
  target_compile_options(${A_NAME} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fno-exceptions>)
  add_test(NAME ${A_NAME} COMMAND ${A_NAME} ${A_ARGS})
  set_tests_properties(${A_NAME} PROPERTIES LABELS "${A_LABELS}" TIMEOUT ${A_TIMEOUT}
    SKIP_REGULAR_EXPRESSION "SKIPPED-WHOLE-FILE")
endfunction()

# ibnbd_fuzzer(NAME rtrs_message_fuzz SRCS ... DEPS ...)
# With IBNBD_BUILD_FUZZERS (clang): a libFuzzer program.  Otherwise a replay program that runs the
# corpus of tests/fuzz/corpus/<name>, registered as a test, so that every build replays it.
function(ibnbd_fuzzer)
  cmake_parse_arguments(A "" "NAME" "SRCS;DEPS" ${ARGN})
  if(IBNBD_BUILD_FUZZERS)
    add_executable(${A_NAME} ${A_SRCS})
    target_compile_options(${A_NAME} PRIVATE -fsanitize=fuzzer)
    target_link_options(${A_NAME} PRIVATE -fsanitize=fuzzer)
  else()
    add_executable(${A_NAME} ${A_SRCS} ${CMAKE_SOURCE_DIR}/tests/fuzz/replay_main.cc)
    add_test(NAME ${A_NAME}_replay
             COMMAND ${A_NAME} ${CMAKE_SOURCE_DIR}/tests/fuzz/corpus/${A_NAME})
    set_tests_properties(${A_NAME}_replay PROPERTIES LABELS fuzz TIMEOUT 120)
  endif()
  _ibnbd_common(${A_NAME})
  target_compile_options(${A_NAME} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fno-exceptions>)
  target_link_libraries(${A_NAME} PRIVATE ${A_DEPS})
endfunction()
